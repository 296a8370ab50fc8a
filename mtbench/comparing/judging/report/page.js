"use strict";
(() => {
const boards = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const SLOTS = 8;
const DIAGNOSIS = /^(update|weights|(shared|features) gradients|notes): /;
let clips = 0;

// Theme: the system's, until the button says otherwise; that is remembered.
const root = document.documentElement, KEY = "mtbench theme";
const remembered = () => { try { return localStorage.getItem(KEY); } catch { return null; } };  // it may be forbidden
if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
const system = matchMedia("(prefers-color-scheme: dark)");
document.getElementById("theme").addEventListener("click", () => {
  const now = root.dataset.theme || (system.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  try { localStorage.setItem(KEY, root.dataset.theme); } catch { /* then not */ }
});

// One tooltip for everything that has data-tip.
const tip = document.getElementById("tip");
function showTip(target, x, y) {
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 4))}px`;
  tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18}px`;
}
document.addEventListener("pointermove", event => {
  const target = event.target instanceof Element && event.target.closest("[data-tip]");
  if (target) showTip(target, event.clientX, event.clientY); else tip.hidden = true;
});
document.addEventListener("focusin", event => {
  const target = event.target.closest("[data-tip]");
  if (!target || !event.target.matches(":focus-visible")) { tip.hidden = true; return; }
  const box = target.getBoundingClientRect();
  showTip(target, box.left, box.bottom - 12);
});
document.addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });
for (const one of document.querySelectorAll("td [data-tip], td[data-tip], th [data-tip]:not(button)")) one.tabIndex = 0;

// Table: sort and filter.
function sortable(section) {
  const body = section.querySelector("tbody");
  const heads = [...section.querySelectorAll("thead th")];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.v;
    const rows = [...body.rows].map(row => [row, key(row), Number(key(row))]);
    rows.sort(([, a, x], [, b, y]) => {
      if (a === "" || b === "") return (a === "") - (b === "");  // what is missing stays last
      return way * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
    });
    body.append(...rows.map(([row]) => row));
  }));
}
function filterable(section) {
  const word = section.querySelector(".filter"), only = section.querySelector(".ranked");
  const rows = [...section.querySelectorAll("tbody tr")], count = section.querySelector(".count");
  const hides = row => only && only.checked && row.dataset.ranked !== "1";
  const apply = () => {
    const wanted = word.value.trim().toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of rows) {
      const name = row.dataset.name.toLowerCase();
      row.hidden = hides(row) || !wanted.every(w => name.includes(w));
      shown += !row.hidden;
    }
    count.textContent = shown === rows.length ? "" : `${shown} of ${rows.length}`;
  };
  word.addEventListener("input", apply);
  if (only) only.addEventListener("change", apply);
}

// Drawing.
function el(parent, name, attributes = {}, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}
function html(parent, name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}
const known = values => values.filter(v => v !== null && v !== undefined && Number.isFinite(v));
const format = v => v === null || v === undefined ? "–" : String(Number(v.toPrecision(3)));
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
function logTicks(low, high) {
  const found = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
    for (const m of [1, 2, 5]) { const v = m * 10 ** p; if (v >= low * 0.999 && v <= high * 1.001) found.push(v); }
  return found.length > 7 ? found.filter((_, i) => i % 3 === 0) : found.length > 2 ? found : ticks(low, high, 4);
}
function scale(values, from, to, { log = false, pad = 0.05, zero = false } = {}) {
  let low = Math.min(...values), high = Math.max(...values);
  if (zero) { low = Math.min(low, 0); high = Math.max(high, 0); }
  const f = log ? Math.log : v => v, back = log ? Math.exp : v => v;
  let a = f(low), b = f(high);
  const margin = b > a ? (b - a) * pad : (log ? 0.1 : Math.abs(a) * 0.1 || 1);
  a -= margin; b += margin;
  const map = v => from + (f(v) - a) / (b - a) * (to - from);
  map.low = back(a); map.high = back(b); map.log = log;
  map.ticks = count => log ? logTicks(map.low, map.high) : ticks(map.low, map.high, count);
  return map;
}
function canvas(parent, height, label) {
  const width = Math.max(220, parent.clientWidth || 640);
  const svg = el(parent, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  return { svg, width, height };
}
// The plot area with grid, ticks and axis names; `xs`, `ys` are values to be shown.
function frame(parent, height, label, xs, ys, { x = {}, y = {}, xName = "", yName = "", left = 54 } = {}) {
  const { svg, width } = canvas(parent, height, label);
  const right = width - 10, top = yName ? 24 : 8, bottom = height - (xName ? 40 : 22);
  const X = scale(xs, left, right, x), Y = scale(ys, bottom, top, y);
  for (const t of Y.ticks(Math.max(4, Math.round((bottom - top) / 48)))) {
    el(svg, "line", { class: "grid", x1: left, x2: right, y1: Y(t), y2: Y(t) });
    el(svg, "text", { x: left - 8, y: Y(t) + 4, "text-anchor": "end" }, format(t));
  }
  for (const t of X.ticks(Math.max(2, Math.round((right - left) / 80))))
    if (!x.whole || Number.isInteger(t)) el(svg, "text", { x: X(t), y: bottom + 16, "text-anchor": "middle" }, format(t));
  el(svg, "line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom });
  if (xName) el(svg, "text", { x: right, y: height - 6, "text-anchor": "end" }, xName);
  if (yName) el(svg, "text", { x: 0, y: 13 }, yName);
  return { svg, X, Y, left, right, top, bottom };
}
const path = (points, X, Y) => points.map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
// Names beside points, where they hide nothing; where it is crowded, further off, with a line: print has no tips.
function nameThem(f, points, state) {
  const taken = points.map(p => [f.X(p.x) - 5, f.Y(p.y) - 5, f.X(p.x) + 5, f.Y(p.y) + 5]);
  const free = box => !taken.some(t => box[0] < t[2] && t[0] < box[2] && box[1] < t[3] && t[1] < box[3]);
  const inside = box => box[0] >= f.left && box[2] <= f.right + 8 && box[1] >= f.top - 8 && box[3] <= f.bottom;
  let left = points.filter(p => state.slot(p.name) || points.length <= 80).sort((a, b) => state.slot(b.name) - state.slot(a.name)).map(p => {
    const text = el(f.svg, "text", { class: state.slot(p.name) ? "name ink" : "name" }, short(p.name, 22));
    return { text, w: text.getComputedTextLength() + 4, x: f.X(p.x), y: f.Y(p.y) };
  });
  const around = Array.from({ length: 24 }, (_, i) => [Math.cos(i * Math.PI / 12), Math.sin(i * Math.PI / 12)]);
  // Where no line is clear of all else, one may cross others rather than leave a name out.
  for (const clear of [true, false]) for (let far = 0; left.length && far < 400; far += 14) left = left.filter(({ text, w, x, y }) => {
    const spots = far ? around.map(([c, s]) => [x + far * c + w * (c - 1) / 2, y + far * s + 7 * (s - 1) + 11, c, s])
      : [[x + 7, y + 4], [x - w - 7, y + 4], [x - w / 2, y - 10], [x - w / 2, y + 19]];
    for (const [a, b, c, s] of spots) {
      const box = [a, b - 11, a + w, b + 3], line = [];
      for (let r = 7; r < far; r += 3) line.push([x + r * c - 1, y + r * s - 1, x + r * c + 1, y + r * s + 1]);
      if (!inside(box) || !free(box) || (clear && !line.every(free))) continue;
      if (far) text.before(el(f.svg, "line", { class: "leader", x1: x + 5 * c, y1: y + 5 * s, x2: x + far * c, y2: y + far * s }));
      text.setAttribute("x", a + 2), text.setAttribute("y", b);
      taken.push(box, ...line);
      return false;
    }
    return true;
  });
  for (const { text } of left) text.remove();
}
const short = (text, length) => text.length > length ? `${text.slice(0, length - 1)}…` : text;
const slotted = (state, name) => ({ "data-slot": state.slot(name) });
// Points that no other one beats in both, lower is better, as a staircase.
function staircase(points) {
  const sorted = [...points].sort((a, b) => a.x - b.x || a.y - b.y), kept = [];
  for (const p of sorted) if (!kept.length || p.y < kept[kept.length - 1].y) kept.push(p);
  return kept;
}
function card(parent, title, text, wide = false) {
  const node = html(parent, "article", wide ? "card wide" : "card");
  html(node, "h2", "", title);
  if (text) html(node, "p", "quiet", text);
  return html(node, "div", "plot");
}

// Estimates with their intervals, a row each; `band` is what counts as no difference.
function intervals(parent, state, rows, key, { title, text, label, wide = false, band = 0, describe }) {
  const shown = rows.filter(r => r[key] !== null).sort((a, b) => a[key] - b[key]);
  if (!shown.length) return;
  const plot = card(parent, title, text, wide);
  plot.classList.add("tall");
  const line = 24, height = shown.length * line + 34;
  const { svg, width } = canvas(plot, height, label);
  const names = Math.min(width * 0.36, 14 + 7 * Math.max(...shown.map(r => Math.min(26, r.name.length))));
  const X = scale(known(shown.flatMap(r => [r[key], r[`${key}_low`], r[`${key}_high`], -band, band])), names + 6, width - 10, { zero: true });
  if (band) el(svg, "rect", { x: X(-band), y: 24, width: X(band) - X(-band), height: height - 24, fill: "var(--quiet)", opacity: 0.12 });
  for (const t of X.ticks(Math.max(2, Math.round((width - names) / 70)))) {
    el(svg, "line", { class: t === 0 ? "axis" : "grid", x1: X(t), x2: X(t), y1: 24, y2: height });
    el(svg, "text", { x: X(t), y: 14, "text-anchor": "middle" }, format(t));
  }
  shown.forEach((row, i) => {
    const y = 28 + line * (i + 0.5), low = row[`${key}_low`], high = row[`${key}_high`];
    const g = el(svg, "g", { ...slotted(state, row.name), "data-tip": `${row.name}\n${format(row[key])} [${format(low)}, ${format(high)}]${describe(row)}` });
    el(g, "rect", { x: 0, y: y - line / 2, width, height: line, fill: "transparent" });
    el(g, "text", { x: names - 6, y: y + 4, "text-anchor": "end", class: state.slot(row.name) ? "ink" : "" }, short(row.name, Math.floor((names - 6) / 6.6)));
    if (low !== null) el(g, "line", { x1: X(low), x2: X(high), y1: y, y2: y, stroke: "var(--slot)", "stroke-width": 3, "stroke-opacity": 0.45, "stroke-linecap": "round" });
    el(g, "circle", { cx: X(row[key]), cy: y, r: 4.5, fill: row.complete ? "var(--slot)" : "var(--card)", stroke: "var(--slot)", "stroke-width": 2 });
  });
}
const named = board => board.rows.map((row, i) => ({ ...row, name: board.names[i] }));
function forest(board, state, parent) {
  intervals(parent, state, named(board), "delta_m", {
    title: "Δm against single-task", label: "Intervals of delta-m by method",
    text: `Percent, lower is better, with 95 % paired bootstrap intervals. Left of the line: better than K single-task models${board.reference ? ` (${board.reference})` : ""}. Hollow: not ranked.`,
    describe: row => row.reason ? `\nnot ranked: ${row.reason}` : "" });
}
function against(board, state, parent) {
  intervals(parent, state, named(board), "difference", {
    title: `Against ${board.baseline}`, label: `Differences to ${board.baseline} by method`, wide: true, band: board.margin,
    text: `Difference of Δm, in points; left is better. The interval has the level of its verdict: all of it on one side of 0 is a difference. The grey band is ±${board.margin}: what counts as equivalent.`,
    describe: row => row.told ? `\n${row.told}` : "" });
}

function costs(board, state, parent) {
  const relative = board.rows.some(r => r.cost_ratio !== null);
  const quality = board.rows.some(r => r.delta_m !== null) ? "delta_m" : "mean_rank";
  const points = board.rows.map((row, i) => ({ name: board.names[i], complete: row.complete, x: relative ? row.cost_ratio : row.seconds_per_step, y: row[quality] }))
    .filter(p => p.x !== null && p.x > 0 && p.y !== null);
  if (points.length < 2) return;
  const plot = card(parent, "Quality against cost", `Each method by what ${relative ? "its training" : "a step"} costs and what it reaches; lower and further left is better. The line is the Pareto front of the ranked rows.`);
  const f = frame(plot, tall(board), "Quality against cost", points.map(p => p.x), points.map(p => p.y), {
    x: { log: true, pad: 0.12 }, y: { pad: 0.1 },
    xName: relative ? "cost of training, × the plain sum's" : "seconds a step", yName: quality === "delta_m" ? "Δm % ↓" : "rank ↓" });
  const front = staircase(points.filter(p => p.complete));
  let d = "";
  front.forEach((p, i) => { d += i ? `H${f.X(p.x)}V${f.Y(p.y)}` : `M${f.X(p.x)} ${f.top}V${f.Y(p.y)}`; });
  if (front.length) el(f.svg, "path", { d: `${d}H${f.right}`, fill: "none", stroke: "var(--accent)", "stroke-width": 1.5, "stroke-dasharray": "5 4", opacity: 0.8 });
  dots(f, points, state, p => `${p.name}\n${relative ? "cost ×" : "seconds a step"} ${format(p.x)}\n${quality === "delta_m" ? "Δm %" : "rank"} ${format(p.y)}`);
  nameThem(f, points, state);
}
// As tall as the list beside it.
const tall = board => Math.max(380, Math.min(600, board.rows.length * 24 + 34));
function dots(f, points, state, describe) {
  for (const p of [...points].sort((a, b) => (state.slot(a.name) > 0) - (state.slot(b.name) > 0)))
    el(f.svg, "circle", { ...slotted(state, p.name), cx: f.X(p.x), cy: f.Y(p.y), r: state.slot(p.name) ? 6 : 4.5, fill: p.complete === false ? "var(--card)" : "var(--slot)", stroke: p.complete === false ? "var(--slot)" : "var(--card)", "stroke-width": 2, opacity: state.slot(p.name) ? 1 : 0.7, "data-tip": describe(p) });
}

function places(board, state, parent) {
  const k = board.places.length;
  if (!paired(board)) return;
  const names = board.names.filter((_, i) => board.rows[i].complete);
  const plot = card(parent, "How stable the order is", `How often each row takes each place of the table when the ${board.unit}s are resampled. It speaks of those that were run.`);
  plot.classList.add("tall");
  const line = Math.max(15, Math.min(26, 420 / k)), height = k * line + 26;
  const { svg, width } = canvas(plot, height, "Probabilities of places by method");
  const left = Math.min(width * 0.36, 14 + 7 * Math.max(...names.map(n => Math.min(26, n.length)))), step = (width - left - 4) / k;
  board.places.forEach((row, i) => {
    const y = i * line;
    el(svg, "text", { x: left - 8, y: y + line / 2 + 4, "text-anchor": "end", class: state.slot(names[i]) ? "ink" : "" }, short(names[i], Math.floor((left - 8) / 6.6)));
    row.forEach((share, r) => {
      if (!(share > 0.0005)) return;
      el(svg, "rect", { ...slotted(state, names[i]), x: left + r * step, y: y + 1, width: Math.max(1, step - 1.5), height: line - 2, rx: 2, fill: "var(--slot)", "fill-opacity": 0.08 + 0.92 * share, "data-tip": `${names[i]}\nplace ${r + 1}: ${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %` });
      if (step > 34 && share >= 0.05) el(svg, "text", { x: left + (r + 0.5) * step, y: y + line / 2 + 4, "text-anchor": "middle", style: share > 0.75 ? "fill:var(--card)" : "fill:var(--ink)", "pointer-events": "none" }, `${Math.round(100 * share)} %`);
    });
  });
  const every = Math.ceil(26 / step);
  for (let r = 0; r < k; r += every) el(svg, "text", { x: left + (r + 0.5) * step, y: height - 8, "text-anchor": "middle" }, String(r + 1));
}

const paired = board => board.places.length > 1 && board.places.length <= 80;
const tuned = board => Object.keys(board.budget).length > 0;

function front(board, state, parent) {
  const data = board.front;
  if (!data) return;
  const [first, second] = Object.keys(board.primary), higher = Object.values(board.primary);
  const points = Object.entries(data.points).map(([name, [x, y]]) => ({ name, x, y, complete: board.rows[board.names.indexOf(name)].complete }));
  if (!points.length) return;
  // Far-off trials would squeeze everything else into a corner.
  const near = ["x", "y"].map((key, axis) => {
    const all = [...points.map(p => p[key]), ...data.front.map(p => p[axis])], low = Math.min(...all), high = Math.max(...all);
    return [low - 0.7 * (high - low), high + 0.7 * (high - low)];
  });
  const inside = (v, axis) => v >= near[axis][0] && v <= near[axis][1];
  const drawn = Object.entries(data.trials).flatMap(([name, list]) => state.slot(name) ? list.map(([x, y]) => ({ name, x, y })) : []);
  const trials = drawn.filter(p => inside(p.x, 0) && inside(p.y, 1)), beyond = drawn.length - trials.length;
  const line = board.baseline && data.front.length > 1;
  const plot = card(parent, "Two metrics, one picture", `Validation, means over seeds${trials.length ? "; small: tuning trials of the methods in colour" : ""}${beyond ? `, ${beyond} of which lie beyond the picture` : ""}.${line ? ` The dashed line is the front of ${board.baseline}'s trials: what scalarization reaches with the same budget.` : ""}`, !paired(board) && !tuned(board));
  const every = [...points, ...trials, ...(line ? data.front.map(([x, y]) => ({ x, y })) : [])];
  const f = frame(plot, tall(board), "Two primary metrics on validation", every.map(p => p.x), every.map(p => p.y), {
    x: { pad: 0.08 }, y: { pad: 0.08 }, xName: `${first} ${higher[0] ? "→ better" : "← better"}`, yName: `${second} ${higher[1] ? "↑" : "↓"}` });
  if (line) el(f.svg, "path", { d: steps(data.front, f, higher), fill: "none", stroke: "var(--accent)", "stroke-width": 1.8, "stroke-dasharray": "5 4" });
  for (const p of trials) el(f.svg, "circle", { ...slotted(state, p.name), cx: f.X(p.x), cy: f.Y(p.y), r: 2.6, fill: "var(--slot)", opacity: 0.55, "data-tip": `${p.name}, a trial\n${first} ${format(p.x)}\n${second} ${format(p.y)}` });
  dots(f, points, state, p => `${p.name}\n${first} ${format(p.x)}\n${second} ${format(p.y)}`);
  nameThem(f, points, state);
}

// What a front dominates ends in stairs: between two points nothing has been reached.
function steps(points, f, higher) {
  const first = higher[0] ? "V" : "H";
  return points.map(([x, y], i) => i === 0 ? `M${f.X(x)} ${f.Y(y)}` : first === "V" ? `V${f.Y(y)}H${f.X(x)}` : `H${f.X(x)}V${f.Y(y)}`).join("");
}

function lines(parent, height, title, series, state, names = {}) {
  const all = series.filter(s => s.x.length);
  if (!all.length) return;
  const many = all.filter(s => !s.dotted).length > 3;  // bands would hide each other
  const shown = s => many || s.dotted ? s.mean : [...s.mean, ...s.low, ...s.high];
  const values = known(all.flatMap(shown)).filter(v => !names.log || v > 0);  // 0 has no place on a logarithmic axis
  if (!values.length) return;
  const f = frame(parent, height, title, all.flatMap(s => s.x), values, {
    x: { pad: 0.02, whole: true }, y: { log: names.log, pad: 0.05 }, left: 48, ...names });
  if (many) f.svg.classList.add("many");
  const clip = `clip${++clips}`;
  el(el(f.svg, "clipPath", { id: clip }), "rect", { x: f.left, y: f.top - 2, width: f.right - f.left, height: f.bottom - f.top + 2 });
  for (const s of all) {
    const g = el(f.svg, "g", { ...slotted(state, s.name), "clip-path": `url(#${clip})`, "data-tip": `${s.name}\n${s.dotted ? "training, " : ""}last ${format(s.mean[s.mean.length - 1])}` });
    const ok = s.x.map((x, i) => i).filter(i => s.mean[i] !== null && (!names.log || s.mean[i] > 0));
    const band = ok.filter(i => s.low[i] !== null && s.high[i] !== null && (!names.log || s.low[i] > 0));
    if (band.length > 1 && !s.dotted) el(g, "path", { d: `${path([...band.map(i => [s.x[i], s.high[i]]), ...band.reverse().map(i => [s.x[i], s.low[i]])], f.X, f.Y)}Z`, fill: "var(--slot)", class: "band" });
    const points = ok.map(i => [s.x[i], s.mean[i]]);
    if (points.length === 1) el(g, "circle", { cx: f.X(points[0][0]), cy: f.Y(points[0][1]), r: 3, fill: "var(--slot)" });
    else if (points.length) el(g, "path", { d: path(points, f.X, f.Y), fill: "none", stroke: "var(--slot)", "stroke-width": s.dotted ? 1.4 : 2, "stroke-linejoin": "round", "stroke-dasharray": s.dotted ? "2 3" : "none" });
  }
}

function budget(board, state, parent) {
  const series = Object.entries(board.budget).filter(([name]) => state.slot(name))
    .map(([name, [mean, low, high]]) => ({ name, mean, low, high, x: mean.map((_, i) => i + 1) })).filter(s => known(s.mean).length);
  if (!series.length) return;
  const plot = card(parent, "What tuning buys", "The best validation score of the first n trials: the mean over repetitions of the search, with the least and the greatest.", Boolean(board.front) && paired(board));
  lines(plot, 330, "Best of the first n trials", series, state, { xName: "trials", yName: "selection score ↑" });
}

// What a parameter does: a method's variants along it, a panel a quantity.
function responses(board, state, parent) {
  for (const one of board.along) {
    const plot = card(parent, `${one.method} along ${one.parameter}`, `${one.rows[0]} to ${one.rows.at(-1)}: rows that differ in ${one.parameter} alone, with 95 % intervals.${board.baseline ? ` Dashed: ${board.baseline}.` : ""}`, true);
    const grid = html(plot, "div", "multiples");
    const places = one.panels.map(panel => {
      const place = html(grid, "div");
      html(place, "h3", "", panel.title);
      return place;
    });  // all of them first: their number decides their width
    one.panels.forEach((panel, i) => {
      const points = one.values.map((x, j) => [x, ...panel.points[j], one.rows[j]]).filter(p => p[1] !== null);
      if (!points.length) return;
      const f = frame(places[i], 200, `${panel.title} along ${one.parameter}`, one.values, known([...points.flatMap(p => p.slice(1, 4)), panel.baseline]), {
        x: { log: one.logarithmic }, y: { pad: 0.08 }, left: 48, xName: one.parameter });
      if (panel.baseline !== null) el(f.svg, "line", { x1: f.left, x2: f.right, y1: f.Y(panel.baseline), y2: f.Y(panel.baseline), stroke: "var(--quiet)", "stroke-width": 1.2, "stroke-dasharray": "5 4" });
      el(f.svg, "path", { d: path(points, f.X, f.Y), fill: "none", stroke: "var(--accent)", "stroke-width": 1.5 });
      for (const [x, mean, low, high, name] of points) {
        const g = el(f.svg, "g", { "data-tip": `${name}\n${format(mean)} [${format(low)}, ${format(high)}]` });
        if (low !== null) el(g, "line", { x1: f.X(x), x2: f.X(x), y1: f.Y(low), y2: f.Y(high), stroke: "var(--accent)", "stroke-width": 3, "stroke-opacity": 0.45, "stroke-linecap": "round" });
        el(g, "circle", { cx: f.X(x), cy: f.Y(mean), r: 4.5, fill: "var(--accent)" });
      }
    });
  }
}

function multiples(board, state, parent, title, text, wanted, options = {}) {
  const chosen = board.drawn.filter(name => state.slot(name));
  const groups = new Map();
  for (const name of chosen) for (const [quantity, curve] of Object.entries(board.histories[name])) {
    if (!wanted(quantity)) continue;
    const key = quantity.replace(/ \((training|validation)\)$/, "");
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push({ name, ...curve, dotted: quantity.endsWith("(training)") });
  }
  if (!groups.size) return;
  const plot = card(parent, title, text, true);
  const grid = html(plot, "div", "multiples");
  const places = [...groups.keys()].map(key => {
    const one = html(grid, "div");
    html(one, "h3", "", key);
    return one;
  });  // all of them first: their number decides their width
  [...groups].forEach(([key, series], i) => lines(places[i], 190, key, series, state, options[key] || {}));
}

function draw(section) {
  const target = section.querySelector(".charts");
  if (!target || section.hidden) return;
  const board = boards[Number(section.dataset.board)];
  const state = { slot: name => (section.slots.get(name) || 0) };
  target.replaceChildren();
  forest(board, state, target);
  costs(board, state, target);
  against(board, state, target);
  responses(board, state, target);
  places(board, state, target);
  front(board, state, target);
  budget(board, state, target);
  multiples(board, state, target, "Training", "By epoch. Solid: validation, mean over seeds, with the least and the greatest seed as band. Dotted: training.", q => !DIAGNOSIS.test(q));
  multiples(board, state, target, "Diagnostics", "First step of each epoch. Update: of the shared parameters, against the plain sum's gradient: its relative length, which is one with the learning rate, and their cosine. Gradients: the objectives', pairwise, where they were computed. Notes: what a method says of itself, an epoch's mean. A diagnosis, not a quality.", q => DIAGNOSIS.test(q), { "update: length": { log: true } });
}

// Chips say which methods are in colour; a ninth takes the place of the oldest.
function chips(section) {
  const bar = section.querySelector(".chips");
  section.slots = new Map();
  if (!bar) return;
  const board = boards[Number(section.dataset.board)];
  const start = [board.baseline, board.reference, ...board.names].filter(Boolean);
  for (const name of [...new Set(start)].slice(0, Math.min(6, SLOTS))) section.slots.set(name, section.slots.size + 1);
  const order = board.names.map(name => {
    const chip = html(bar, "button", "chip", name);
    chip.type = "button";
    chip.addEventListener("click", () => {
      const slots = section.slots;
      if (slots.has(name)) slots.delete(name);
      else {
        if (slots.size === SLOTS) slots.delete(slots.keys().next().value);
        const used = new Set(slots.values());
        slots.set(name, [...Array(SLOTS).keys()].map(i => i + 1).find(i => !used.has(i)));
      }
      paint();
      draw(section);
    });
    return [name, chip];
  });
  const paint = () => order.forEach(([name, chip]) => {
    chip.setAttribute("aria-pressed", String(section.slots.has(name)));
    chip.dataset.slot = section.slots.get(name) || 0;
  });
  paint();
}

const sections = [...document.querySelectorAll("section.board")];
for (const section of sections) {
  chips(section);
  if (section.querySelector("table")) { sortable(section); filterable(section); }
}
const pick = document.getElementById("pick");
function show(id) {
  for (const section of sections) section.hidden = section.id !== id;
  draw(document.getElementById(id));
}
if (pick) pick.addEventListener("change", () => show(pick.value));
show(pick ? pick.value : sections[0].id);  // a browser may remember another choice
let drawnAt = innerWidth, wait;
addEventListener("resize", () => {
  if (innerWidth === drawnAt) return;
  clearTimeout(wait);
  wait = setTimeout(() => { drawnAt = innerWidth; draw(sections.find(s => !s.hidden)); }, 120);
});
})();
