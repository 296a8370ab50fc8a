"""QM9: the raw files as published, the network against torch-geometric's, whole runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtbench.errors import DataError
from mtbench_tasks import _molecules
from mtbench_tasks._molecules import ELEMENTS, TARGETS
from mtbench_tasks.qm9 import QM9, EdgeConvolution, Encoder, Errors, Set2Set
from tests.refusals import refused

COLUMNS = [
    "mol_id", "A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u298",
    "h298", "g298", "cv", "u0_atom", "u298_atom", "h298_atom", "g298_atom",
]  # fmt: skip

Atoms = list[tuple[str, float, float, float]]
Bonds = list[tuple[int, int, int]]


def block(name: str, atoms: Atoms, bonds: Bonds) -> str:
    """A molecule as gdb9.sdf has it."""
    lines = [name, "  -OEChem-03231823243D", ""]
    lines.append(f"{len(atoms):3d}{len(bonds):3d}  0     0  0  0  0  0  0999 V2000")
    lines += [
        f"{x:10.4f}{y:10.4f}{z:10.4f} {symbol:<3} 0  0  0  0  0  0  0  0  0  0  0  0"
        for symbol, x, y, z in atoms
    ]
    lines += [f"{i:3d}{j:3d}{kind:3d}  0  0  0  0" for i, j, kind in bonds]
    return "\n".join([*lines, "M  END", "$$$$", ""])


def methane() -> tuple[Atoms, Bonds]:
    corners = [(0.6, 0.6, 0.6), (-0.6, -0.6, 0.6), (-0.6, 0.6, -0.6), (0.6, -0.6, -0.6)]
    return [("C", 0, 0, 0), *(("H", *corner) for corner in corners)], [
        (1, k, 1) for k in range(2, 6)
    ]


def chain(rng: np.random.Generator) -> tuple[Atoms, Bonds]:
    heavy = rng.choice(["C", "N", "O", "F"], int(rng.integers(1, 5))).tolist()
    atoms = [*heavy, *["H"] * int(rng.integers(0, 4))]
    places = rng.normal(0, 2, (len(atoms), 3))
    bonds = [(i, i + 1, int(rng.integers(1, 4))) for i in range(1, len(heavy))]
    bonds += [(1, i, 1) for i in range(len(heavy) + 1, len(atoms) + 1)]
    return [(a, *map(float, p)) for a, p in zip(atoms, places, strict=True)], bonds


def write(folder: Path, molecules: list[tuple[Atoms, Bonds]], excluded: list[int]) -> Path:
    """The three raw files; the table's value of column c and molecule i is i + c / 100."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"gdb_{i}" for i in range(1, len(molecules) + 1)]
    (folder / "gdb9.sdf").write_text(
        "".join(block(name, *molecule) for name, molecule in zip(names, molecules, strict=True))
    )
    rows = [
        ",".join([name, *(f"{i + c / 100}" for c in range(1, len(COLUMNS)))])
        for i, name in enumerate(names, start=1)
    ]
    (folder / "gdb9.sdf.csv").write_text("\n".join([",".join(COLUMNS), *rows, ""]))
    listed = [f"{i:8d} C=O  C=O  0.1" for i in excluded]
    (folder / "uncharacterized.txt").write_text(
        "\n".join([*(f"heading {i}" for i in range(9)), *listed, f"{len(listed)} compounds", ""])
    )
    return folder


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    molecules = [methane(), *(chain(rng) for _ in range(59))]
    return write(tmp_path_factory.mktemp("qm9"), molecules, [2, 60])


def loaded(folder: Path) -> _molecules.Molecules:
    return _molecules.load(folder, False, silent)


def test_a_molecule_and_its_targets_in_their_units(small: Path) -> None:
    found = loaded(small)
    assert (len(found), found.excluded, found.broken) == (58, 2, ())
    assert found.numbers[:5].tolist() == [6, 1, 1, 1, 1]
    assert found.positions[2].tolist() == pytest.approx([-0.6, -0.6, 0.6])
    assert found.bonds[:4].tolist() == [[0, 1, 1], [0, 2, 1], [0, 3, 1], [0, 4, 1]]
    value = {name: 1 + c / 100 for c, name in enumerate(COLUMNS)}
    hartree, kcal = 27211.386246, 43.36414
    assert dict(zip(TARGETS, found.targets[0], strict=True)) == pytest.approx(
        {
            "mu": value["mu"],
            "alpha": value["alpha"],
            "homo": value["homo"] * hartree,
            "lumo": value["lumo"] * hartree,
            "r2": value["r2"],
            "zpve": value["zpve"] * hartree,
            "u0": value["u0_atom"] * kcal,
            "u": value["u298_atom"] * kcal,
            "h": value["h298_atom"] * kcal,
            "g": value["g298_atom"] * kcal,
            "cv": value["cv"],
        }
    )
    assert found.targets[1, 0] == pytest.approx(3.04)  # the second is excluded
    assert loaded(small).fingerprint == found.fingerprint


def test_torch_geometrics_file_gives_the_same_molecules(small: Path, tmp_path: Path) -> None:
    raw = loaded(small)
    records = []
    for m in range(len(raw)):
        atoms = slice(*raw.atom_starts[m : m + 2])
        first, second, kind = torch.from_numpy(raw.bonds[slice(*raw.bond_starts[m : m + 2])].T)
        ends = torch.stack([torch.cat([first, second]), torch.cat([second, first])]).long()
        x = torch.zeros(atoms.stop - atoms.start, 11)
        x[:, 5] = torch.from_numpy(raw.numbers[atoms])
        y = torch.zeros(1, 19, dtype=torch.float64)
        for name, target in zip(TARGETS, raw.targets[m], strict=True):
            y[0, TARGETS[name][2]] = target / (1000 if name in _molecules.ENERGIES else 1)
        kinds = torch.cat([kind, kind]).long() - 1
        records.append(
            {
                "x": x,
                "edge_index": ends,
                "edge_attr": torch.nn.functional.one_hot(kinds, 4).float(),
                "y": y,
                "pos": torch.from_numpy(raw.positions[atoms]),
                "name": f"gdb_{m}",
                "idx": m,
            }
        )
    (tmp_path / "raw").mkdir()
    torch.save(records, tmp_path / "raw" / "qm9_v3.pt")
    packed = loaded(tmp_path)
    for name in ("numbers", "positions", "bonds", "atom_starts", "bond_starts"):
        assert np.array_equal(getattr(packed, name), getattr(raw, name)), name
    assert np.allclose(packed.targets, raw.targets)
    assert packed.fingerprint != raw.fingerprint


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("a foreign pickle ran",)


def test_a_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save([Bomb()], tmp_path / "qm9_v3.pt")
    with pytest.raises(DataError, match="torch-geometric's list"):
        loaded(tmp_path)
    assert capsys.readouterr().out == ""


def test_broken_molecules_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = [methane() for _ in range(7)]
    folder = write(tmp_path, good, [])
    blocks = (folder / "gdb9.sdf").read_text().split("$$$$\n")
    blocks[1] = blocks[1].replace(" C  ", " Xe ")
    blocks[2] = blocks[2].replace("  1  2  1  0", "  1  9  1  0")
    blocks[3] = blocks[3].replace("gdb_4", "gdb_99")
    blocks[4] = "\n".join(blocks[4].split("\n")[:6]) + "\n"
    (folder / "gdb9.sdf").write_text("$$$$\n".join(blocks))
    table = (folder / "gdb9.sdf.csv").read_text().replace("7.04", "")
    (folder / "gdb9.sdf.csv").write_text(table)
    found = loaded(folder)
    assert len(found) == 2
    reasons = [
        "'Xe'",
        "not between its atoms",
        "no row in the table",
        "announced",
        "lacks a target",
    ]
    assert len(found.broken) == len(reasons)
    for line, reason in zip(found.broken, reasons, strict=True):
        assert reason in line
        assert "\n" not in line
    with pytest.raises(DataError, match="5 molecules cannot be read"):
        _molecules.load(folder, True, silent)
    assert [row[0] for row in QM9.inspect("qm9", folder)] == ["2", "0", "5"]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("gdb9.sdf", "", "no molecule can be read"),
        ("gdb9.sdf.csv", "a,b\n1,2\n", "is not QM9's table"),
        ("gdb9.sdf.csv", "\x00\xff", "is not QM9's table"),
        ("uncharacterized.txt", "\n" * 9 + "what\n\n", "list of excluded molecules"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, file: str, content: str, said: str) -> None:
    folder = write(tmp_path, [methane()], [])
    (folder / file).write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=said):
        loaded(folder)


def test_no_files_no_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is downloaded"):
        loaded(tmp_path)
    with pytest.raises(DataError, match="--data"):
        _molecules.load(None, False, silent)


def test_splits_are_disjoint_and_the_scale_is_that_of_training(small: Path) -> None:
    task = QM9(data=small, held_out=8)
    splits = task.setup(0, silent)
    chosen = [set(part.chosen.tolist()) for part in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in chosen] == [42, 8, 8]
    assert len(set.union(*chosen)) == 58
    batch = splits.train.batch(torch.arange(42))
    assert batch["targets"].mean(0).abs().max() < 1e-5
    assert torch.allclose(batch["targets"].std(0), torch.ones(11), atol=1e-4)
    again = task.setup(0, silent).train.chosen
    assert torch.equal(again, splits.train.chosen)
    assert not torch.equal(task.setup(1, silent).train.chosen, again)
    with pytest.raises(DataError, match="too few"):
        QM9(data=small, held_out=29).setup(0, silent)


def test_a_batch_holds_each_molecule_whole(small: Path) -> None:
    found = loaded(small)
    splits = QM9(data=small, held_out=8).setup(0, silent)
    indices = torch.tensor([5, 0, 11])
    batch = splits.val.batch(indices % 8)
    for row, molecule in enumerate(splits.val.chosen[indices % 8].tolist()):
        atoms = slice(*found.atom_starts[molecule : molecule + 2])
        n = atoms.stop - atoms.start
        rows = batch["inputs"][row].numpy()
        assert np.array_equal(rows[:n, 0], found.numbers[atoms])
        assert np.array_equal(rows[:n, 1:4], found.positions[atoms])
        assert not rows[n:].any()
        bonds = rows[:, 4:]
        assert np.array_equal(bonds, bonds.T)
        listed = found.bonds[slice(*found.bond_starts[molecule : molecule + 2])]
        assert np.count_nonzero(bonds) == 2 * len(listed)
        for i, j, kind in listed:
            assert bonds[i, j] == kind


def test_padding_and_company_do_not_change_a_molecule(small: Path) -> None:
    split = QM9(data=small, held_out=8).setup(0, silent).train
    torch.manual_seed(0)
    encoder = Encoder(16)
    together = encoder(split.batch(torch.arange(10))["inputs"])[0]
    for i in range(10):
        alone = encoder(split.batch(torch.tensor([i]))["inputs"])[0]
        assert torch.allclose(alone[0], together[i], atol=1e-5)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_the_encoder_sees_no_order_of_atoms_and_no_frame(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 7, (), generator=generator))
    numbers = torch.tensor([*ELEMENTS.values()])[torch.randint(0, 5, (n,), generator=generator)]
    positions = torch.randn(n, 3, generator=generator)
    bonds = torch.randint(0, 4, (n, n), generator=generator).triu(1).float()
    bonds = bonds + bonds.T
    order = torch.randperm(n, generator=generator)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    torch.manual_seed(seed)
    encoder = Encoder(8)

    def encode(z: torch.Tensor, p: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return encoder(torch.cat([z[:, None].float(), p, b], 1)[None])[0]

    expected = encode(numbers, positions, bonds)
    moved = positions[order] @ rotation + 3
    turned = encode(numbers[order], moved, bonds[order][:, order])
    assert torch.allclose(turned, expected, atol=1e-4)


def test_messages_are_those_of_torch_geometric() -> None:
    nn = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    ours = EdgeConvolution(5, 6)
    network = torch.nn.Sequential(ours.hidden, torch.nn.ReLU(), ours.matrix)
    theirs = nn.NNConv(6, 6, network, aggr="mean")
    theirs.lin.weight.data, theirs.bias.data = ours.root.weight.data, ours.root.bias.data
    h, features = torch.randn(2, 4, 6), torch.randn(2, 4, 4, 5)
    others = 1 - torch.eye(4)
    found = ours(h, ours.edges(features), (others / 3).expand(2, 4, 4))
    i, j = others.nonzero(as_tuple=True)
    for b in range(2):
        expected = theirs(h[b], torch.stack([j, i]), features[b, i, j])
        assert torch.allclose(found[b], expected, atol=1e-5)


def test_reading_a_set_is_that_of_torch_geometric() -> None:
    nn = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    ours, theirs = Set2Set(5), nn.Set2Set(5, processing_steps=3)
    for name, value in ours.lstm.state_dict().items():
        getattr(theirs.lstm, f"{name}_l0").data = value
    h = torch.randn(3, 4, 5)
    present = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    sets = torch.arange(3).repeat_interleave(present.sum(1))
    assert torch.allclose(ours(h, present), theirs(h[present], sets), atol=1e-6)


def test_errors_are_in_the_targets_units() -> None:
    meter = Errors()
    scale = torch.arange(1.0, 12)
    for error, count in ((1.0, 3), (2.0, 1)):
        targets = torch.zeros(count, 11)
        outputs = [torch.full((count,), -error)] * 11
        meter.update(outputs, {"targets": targets, "scale": scale})
    assert [*meter.compute().values()] == pytest.approx((1.25 * scale).tolist())
    assert all(np.isnan(value) for value in Errors().compute().values())


def test_runs_to_a_finished_record(small: Path, tmp_path: Path, mtbench: Any) -> None:
    methods = [word for name in ("ew", "uw", "cagrad", "rlar") for word in ("--method", name)]
    settings = ("--held-out", 8, "--width", 4, "--batch-size", 16, "--threads", 1)
    code, out, err = mtbench(
        "run", "--task", "qm9", "--data", small, *methods, "--epochs", 1, *settings,
        "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert len([*tmp_path.glob("qm9/*/seed0-*/result.json")]) == 4
    assert "molecules [42, 8, 8]" in out


def test_refusals(small: Path, tmp_path: Path, mtbench: Any) -> None:
    start = ("run", "--task", "qm9", "--method", "ew", "--out", tmp_path)
    refused(mtbench(*start), "--data")
    refused(mtbench(*start, "--data", small), "too few")
    refused(mtbench(*start, "--held-out", 0), "held_out", "found 0")
    refused(mtbench(*start, "--data", tmp_path), "gdb9.sdf")
