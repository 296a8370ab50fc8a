"""QM9: the raw files and the package, the networks, whole runs."""

import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtbench.errors import DataError
from mtbench.testing import TaskContract
from mtbench.training.task import Task
from mtbench_tasks import _molecules
from mtbench_tasks._molecules import ATOMS, ELEMENTS, HARTREE, PROPERTIES, TARGETS, read_smiles
from mtbench_tasks.qm9 import BOHR, QM9, EdgeConvolution, Encoder, Errors, Set2Set, coulomb
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


def test_a_broken_file_of_the_cache_is_made_anew(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTBENCH_CACHE", str(tmp_path))
    first = loaded(small)
    [file] = tmp_path.glob("*.npz")
    for left in (b"", b"no archive", file.read_bytes()[:-7]):
        file.write_bytes(left)
        again = loaded(small)
        for name, value in vars(first).items():
            assert np.array_equal(getattr(again, name), value), name


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("a foreign pickle ran",)


def test_a_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save([Bomb()], tmp_path / "qm9_v3.pt")
    with pytest.raises(DataError, match="torch-geometric's list"):
        loaded(tmp_path)
    assert capsys.readouterr().out == ""


def test_broken_molecules_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = [methane() for _ in range(9)]
    folder = write(tmp_path, good, [])
    blocks = (folder / "gdb9.sdf").read_text().split("$$$$\n")
    blocks[1] = blocks[1].replace(" C  ", " Xe ")
    blocks[2] = blocks[2].replace("  1  2  1  0", "  1  9  1  0")
    blocks[3] = blocks[3].replace("gdb_4", "gdb_99")
    blocks[4] = "\n".join(blocks[4].split("\n")[:6]) + "\n"
    blocks[7] = blocks[7].replace("gdb_8", "gdb_1")
    blocks[8] = blocks[8].replace(
        "   -0.6000   -0.6000    0.6000", "    0.6000    0.6000    0.6000"
    )
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
        "is there twice",
        "in one place",
    ]
    assert len(found.broken) == len(reasons)
    for line, reason in zip(found.broken, reasons, strict=True):
        assert reason in line
        assert "\n" not in line
    with pytest.raises(DataError, match="7 molecules cannot be read"):
        _molecules.load(folder, True, silent)
    assert [row[0] for row in QM9.inspect("qm9", folder)] == ["2", "0", "7"]


def test_the_list_of_excluded_molecules_may_end_without_a_line_break(tmp_path: Path) -> None:
    file = write(tmp_path, [methane()] * 3, [2, 3]) / "uncharacterized.txt"
    assert loaded(tmp_path).excluded == 2
    file.write_text(file.read_text().removesuffix("\n"))
    assert loaded(tmp_path).excluded == 2


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("gdb9.sdf", "", "no molecule can be read"),
        ("gdb9.sdf.csv", "a,b\n1,2\n", "is not QM9's table"),
        (
            "gdb9.sdf.csv",
            "\n".join([",".join(COLUMNS), *[",".join(["gdb_1", *["1"] * 19])] * 2]),
            "has one row, and gdb_1 has several",
        ),
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


# --- the package ---------------------------------------------------------------------------------

HEAD = ["XYZ_file", "Index", "SMILES", "Elements", "XYZ_Ang", *(c for c, _ in PROPERTIES.values())]
Packaged = tuple[str, list[str], Any, list[float]]
"""SMILES, elements, positions, and what the table has of each target."""


def packaged(smiles: str, elements: list[str], positions: Any, **values: float) -> Packaged:
    return smiles, elements, positions, [values.get(name, 1.0) for name in TARGETS]


def methylene(nitrogen: str = "[NH2+]") -> Packaged:
    """CH2=NH2+, a hydrogen of the bracket's before the carbon, as the package has it."""
    places = [[0, 0, 0], [0.5, 0.9, 0], [1.3, 0, 0], [0.5, -0.9, 0], [1.8, 0.9, 0], [1.8, -0.9, 0]]
    return packaged(f"{nitrogen}=C", ["N", "H", "C", "H", "H", "H"], places, u0=-94.0, homo=-0.25)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Packaged]], Path]:
    def write_package(molecules: list[Packaged]) -> Path:
        folder = tmp_path / _molecules.PACKAGE / "data"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise ImportError('pkg_resources')")
        for part, file in enumerate(_molecules.PACKAGED):
            lines = [",".join(HEAD)]
            for i, (smiles, elements, positions, values) in enumerate(molecules):
                if i % len(_molecules.PACKAGED) == part:
                    symbols = str(elements).replace(" ", "")
                    numbers = ",".join(map(str, values))
                    lines.append(
                        f'"{i}.xyz",{i},"{smiles}","{symbols}","{json.dumps(positions)}",{numbers}'
                    )
            (folder / file).write_text("\n".join(lines))
        monkeypatch.syspath_prepend(str(tmp_path))
        return folder

    return write_package


def test_a_molecule_of_the_package(package: Callable[[list[Packaged]], Path]) -> None:
    package([methylene()] * 3)
    found = _molecules.load(None, True, silent)
    assert len(found) == 3
    assert found.numbers[:6].tolist() == [7, 1, 6, 1, 1, 1]
    assert found.bonds[:5].tolist() == [[0, 2, 2], [0, 1, 1], [0, 3, 1], [2, 4, 1], [2, 5, 1]]
    free = 4 * ATOMS["u0"][0] + ATOMS["u0"][1] + ATOMS["u0"][2]
    targets = dict(zip(TARGETS, found.targets[0], strict=True))
    assert targets["u0"] == pytest.approx((-94.0 - free) * HARTREE)
    assert targets["homo"] == pytest.approx(-0.25 * HARTREE)
    assert targets["cv"] == 1


def test_a_molecule_that_its_smiles_does_not_fit_is_dropped(
    package: Callable[[list[Packaged]], Path],
) -> None:
    smiles, elements, positions, values = methylene()
    apart = [[*positions[0][:2], 1.0], *positions[1:2], [1.8, 0.1, 0], *positions[3:]]
    package(
        [
            methylene(),
            ("C=N", elements, positions, values),
            (smiles, elements, apart, values),
            (smiles, elements, positions[:4], values),
            (smiles, elements, positions, [*values[:-1], np.nan]),
            ("C=1N", elements, positions, values),
            (smiles, ["Xe", *elements[1:]], positions, values),
            (smiles, elements, [*positions[:5], positions[4]], values),
        ]
    )
    found = _molecules.load(None, False, silent)
    reasons = [
        "in its order", "in its order", "in its order", "angstrom apart", "not finite", "'C=1N'",
        "in one place",
    ]  # fmt: skip
    assert len(found) == 1
    assert sorted(line.split()[2] for line in found.broken) == [f"{i}:" for i in range(1, 8)]
    for reason in reasons:
        assert any(reason in line for line in found.broken), found.broken
    with pytest.raises(DataError, match=r"qm9pack: 7 molecules cannot be read \(strict\)"):
        _molecules.load(None, True, silent)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'mtbench-toolkit\[qm9\]'"):
        _molecules.load(None, False, silent)


@pytest.mark.parametrize("text", ["", "XYZ_file,Index\n1,2\n"])
def test_a_package_of_another_layout(package: Callable[[list[Packaged]], Path], text: str) -> None:
    folder = package([methylene()])
    (folder / "qm9_part2.csv").write_text(text)
    with pytest.raises(DataError, match="is not the data of qm9pack"):
        _molecules.load(None, False, silent)


def test_tokens_of_smiles() -> None:
    assert read_smiles("N[CH-]C(=O)C1=CC1") == (
        [*"NCCOCCC"],
        [(0, 1, 1), (1, 2, 1), (2, 3, 2), (2, 4, 1), (4, 5, 2), (5, 6, 1), (4, 6, 1)],
    )
    assert read_smiles("C(#N)C1CC=1") == (
        [*"CNCCC"], [(0, 1, 3), (0, 2, 1), (2, 3, 1), (3, 4, 1), (2, 4, 2)],
    )  # fmt: skip
    for wrong in ("c1ccccc1", "C.C", "C1CC", "C(C", "C)C"):
        with pytest.raises((ValueError, IndexError)):
            read_smiles(wrong)


REAL = importlib.util.find_spec(_molecules.PACKAGE)


@pytest.mark.skipif(REAL is None, reason="the extra qm9 is not installed")
def test_the_real_package(package: Callable[[list[Packaged]], Path]) -> None:
    assert REAL is not None
    assert REAL.submodule_search_locations is not None
    folder = package([])
    for name in _molecules.PACKAGED:
        with Path(*REAL.submodule_search_locations, "data", name).open() as stream:
            (folder / name).write_text("".join(stream.readline() for _ in range(150)))
    found = _molecules.load(None, False, silent)
    assert (len(found), len(found.broken)) == (445, 2)  # C#CC#C and C#CC#N
    # Methane, as MoleculeNet's table has it, in kcal/mol.
    expected = [-395.999594594, -398.643290011, -401.014646522, -372.471772148]
    assert found.targets[0, 6:10] / 43.36414 == pytest.approx(expected, rel=1e-6)
    # Every atom's bonds make its valence, where it has no charge.
    for m in range(len(found)):
        numbers = found.numbers[slice(*found.atom_starts[m : m + 2])]
        bonds = found.bonds[slice(*found.bond_starts[m : m + 2])]
        valence = np.bincount(bonds[:, :2].ravel(), bonds[:, 2].repeat(2), len(numbers))
        usual = np.array([{1: 1, 6: 4, 7: 3, 8: 2, 9: 1}[int(n)] for n in numbers])
        assert (valence - usual).sum() == 0, m
        assert (abs(valence - usual) <= 1).all(), m


# --- splits and batches --------------------------------------------------------------------------


def test_splits_are_disjoint_and_only_training_is_drawn_by_the_seed(small: Path) -> None:
    task = QM9(data=small, network="mpnn", held_out=8, molecules=30)
    splits = task.setup(0, silent)
    chosen = [set(part.chosen.tolist()) for part in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in chosen] == [30, 8, 8]
    assert len(set.union(*chosen)) == 46
    batch = splits.train.batch(torch.arange(30))
    assert batch["targets"].mean(0).abs().max() < 1e-5
    assert torch.allclose(batch["targets"].std(0), torch.ones(11), atol=1e-4)
    again, other = task.setup(0, silent), task.setup(1, silent)
    assert torch.equal(again.train.chosen, splits.train.chosen)
    assert not torch.equal(other.train.chosen, splits.train.chosen)
    for part in ("val", "test"):
        assert torch.equal(getattr(other, part).chosen, getattr(splits, part).chosen)
    with pytest.raises(DataError, match="too few"):
        QM9(data=small, held_out=29).setup(0, silent)


def test_both_networks_see_the_same_molecules(small: Path) -> None:
    coulomb_splits, graphs = (
        QM9(data=small, network=network, held_out=8, molecules=20).setup(3, silent)
        for network in ("coulomb", "mpnn")
    )
    for part in ("train", "val", "test"):
        split, other = getattr(coulomb_splits, part), getattr(graphs, part)
        rows = torch.arange(len(other))
        batch, graph = split.batch(rows), other.batch(rows)
        assert torch.equal(batch["targets"], graph["targets"])
        assert torch.equal(batch["scale"][0], graph["scale"])
    inputs = coulomb_splits.train.batch(torch.arange(20))["inputs"]
    assert inputs.mean(0).abs().max() < 1e-5
    deviations = inputs.std(0, correction=0)
    assert (((deviations - 1).abs() < 1e-3) | (deviations < 1e-6)).all()


def test_molecules_larger_than_qm9s_have_no_coulomb_matrix(tmp_path: Path) -> None:
    large: Atoms = [("C", float(i), 0.0, 0.0) for i in range(30)]
    folder = write(tmp_path, [*(methane() for _ in range(9)), (large, [])], [])
    with pytest.raises(DataError, match=r"up to 29 atoms.*found one of 30"):
        QM9(data=folder, held_out=2).setup(0, silent)


def test_a_batch_holds_each_molecule_whole(small: Path) -> None:
    found = loaded(small)
    splits = QM9(data=small, network="mpnn", held_out=8).setup(0, silent)
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
    split = QM9(data=small, network="mpnn", held_out=8).setup(0, silent).train
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


def test_a_coulomb_matrix_by_hand() -> None:
    # O at 2 bohr from H, F at 3 from O and at 5 from H.
    inputs = torch.zeros(1, 4, 8)  # the last is no atom
    inputs[0, :3, 0] = torch.tensor([1.0, 8.0, 9.0])
    inputs[0, :3, 1] = torch.tensor([-2.0, 0.0, 3.0]) * BOHR
    found = coulomb(inputs)[0]
    first, second = torch.triu_indices(29, 29)
    matrix = torch.zeros(29, 29)
    matrix[first, second] = found[:435]
    f, o, h = 0.5 * 9**2.4, 0.5 * 8**2.4, 0.5
    expected = torch.tensor([[f, 72 / 3, 9 / 5], [0, o, 8 / 2], [0, 0, h]])
    assert torch.allclose(matrix[:3, :3], expected)
    assert matrix.count_nonzero() == 6
    assert found[435:].tolist() == [1, 0, 0, 1, 1]  # H, C, N, O, F


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), padding=st.integers(0, 3))
def test_a_coulomb_matrix_sees_no_order_of_atoms_and_no_frame(seed: int, padding: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 9, (), generator=generator))
    numbers = torch.tensor([*ELEMENTS.values()])[torch.randint(0, 5, (n,), generator=generator)]
    positions = torch.randn(n, 3, generator=generator)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    order = torch.randperm(n, generator=generator)

    def described(z: torch.Tensor, p: torch.Tensor, padding: int) -> torch.Tensor:
        inputs = torch.zeros(1, n + padding, 4 + n + padding)
        inputs[0, :n, 0], inputs[0, :n, 1:4] = z.float(), p
        return coulomb(inputs)

    found = described(numbers, positions, 0)
    moved = described(numbers[order], positions[order] @ rotation + 3, padding)
    assert torch.allclose(found, moved, rtol=1e-3, atol=1e-3)


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


@pytest.fixture(scope="module")
def maker(small: Path) -> Callable[[], Task]:
    return partial(QM9, data=small, held_out=8, width=16)


class TestContract(TaskContract):
    @pytest.fixture
    def make(self, maker: Callable[[], Task]) -> Callable[[], Task]:
        return maker


@pytest.mark.parametrize(
    ("network", "names"),
    [("coulomb", ("ew", "uw", "cagrad", "rlar")), ("mpnn", ("cagrad", "rlar"))],
)
def test_runs_to_a_finished_record(
    network: str, names: tuple[str, ...], small: Path, tmp_path: Path, mtbench: Any
) -> None:
    methods = [word for name in names for word in ("--method", name)]
    settings = (
        "--network",
        network,
        "--held-out",
        8,
        "--width",
        4,
        "--batch-size",
        16,
        "--threads",
        1,
    )
    code, out, err = mtbench(
        "run", "--task", "qm9", "--data", small, *methods, "--epochs", 1, *settings,
        "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert len([*tmp_path.glob("qm9/*/seed0-*/result.json")]) == len(names)
    assert "molecules [42, 8, 8]" in out


def test_refusals(small: Path, tmp_path: Path, mtbench: Any) -> None:
    inspect = ("data", "inspect", "qm8", "--task", "qm9", "--data", small)
    refused(mtbench(*inspect), "task qm9 has no source 'qm8'")
    start = ("run", "--task", "qm9", "--method", "ew", "--out", tmp_path)
    refused(mtbench(*start, "--data", small), "too few")
    refused(mtbench(*start, "--held-out", 0), "held_out", "found 0")
    refused(mtbench(*start, "--molecules", 1), "molecules", "found 1")
    refused(mtbench(*start, "--data", tmp_path), "gdb9.sdf")
