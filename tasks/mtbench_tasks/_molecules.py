"""QM9's molecules as arrays, read once from the files as published or from the package qm9pack."""

import hashlib
import importlib.util
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mtbench.errors import DataError
from mtbench.plugins import extras
from mtbench.training.machine.cache import cache_dir, writing
from mtbench.training.task import Progress

VERSION = 2  # part of the cache key: raise it when the same files give other molecules

ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}

RAW = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")
PROCESSED = "qm9_v3.pt"
PACKAGE = "qm9pack"
PACKAGED = ("qm9_part1.csv", "qm9_part2.csv", "qm9_part3.csv")

HARTREE = 27_211.386246  # meV, as torch-geometric has it
MOST = 255  # atoms: a bond names them by bytes; QM9 has at most 29
KCAL = 43.36414  # meV a molecule

TARGETS: dict[str, tuple[str, float, int]] = {
    "mu": ("mu", 1.0, 0),
    "alpha": ("alpha", 1.0, 1),
    "homo": ("homo", HARTREE, 2),
    "lumo": ("lumo", HARTREE, 3),
    "r2": ("r2", 1.0, 5),
    "zpve": ("zpve", HARTREE, 6),
    "u0": ("u0_atom", KCAL, 12),
    "u": ("u298_atom", KCAL, 13),
    "h": ("h298_atom", KCAL, 14),
    "g": ("g298_atom", KCAL, 15),
    "cv": ("cv", 1.0, 11),
}
"""By target: its column in ``gdb9.sdf.csv``, what that is multiplied by (energies become meV), and
its column in ``qm9_v3.pt``, where energies are in eV."""

PROPERTIES: dict[str, tuple[str, float]] = {
    "mu": ("Dipole_debye", 1.0),
    "alpha": ("Polarizability_bohr3", 1.0),
    "homo": ("HOMO_au", HARTREE),
    "lumo": ("LUMO_au", HARTREE),
    "r2": ("R2_bohr2", 1.0),
    "zpve": ("ZPVE_au", HARTREE),
    "u0": ("InternalEnergy_0K_au", HARTREE),
    "u": ("InternalEnergy_298K_au", HARTREE),
    "h": ("Enthalphy_298K_au", HARTREE),
    "g": ("GibbsFreeEnergy_298K_au", HARTREE),
    "cv": ("Heatcapacity_Cv_cal_mol_K", 1.0),
}
"""By target: its column in the package, and what that is multiplied by."""

ATOMS = {
    "u0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "u": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "h": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "g": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
}
"""Energies of free H, C, N, O and F, hartree: QM9's ``atomref.txt``. The package has a molecule's
energy, the task's targets are what is left of it without its atoms'."""

TOKEN = re.compile(r"\[?([CNOF])(?:H\d?)?[+-]?\]?|([=#])|([()])|(\d)")
"""Of QM9's SMILES, which are Kekulé's: an atom, a bond's order, a branch, a ring's end."""

LONGEST = 2.0
"""Angstrom between bonded atoms; QM9's are below 1.7."""

ENERGIES = tuple(name for name, (_, factor, _) in TARGETS.items() if factor != 1)


@dataclass(frozen=True)
class Molecules:
    """M molecules, one after another.

    Attributes:
        numbers: (A,), the atoms' atomic numbers.
        positions: (A, 3), in angstrom.
        bonds: (E, 3): two atoms, counted from 0 within the molecule, and the bond's type, 1 single,
            2 double, 3 triple, 4 aromatic. Every bond is there once.
        atom_starts: (M + 1,), where each molecule's atoms begin and end.
        bond_starts: (M + 1,), likewise.
        targets: (M, 11), in the order and units of `TARGETS`.
        broken: what was dropped because it could not be read, a line each.
        excluded: number of molecules left out because their geometry did not pass the dataset's
            own consistency check (``uncharacterized.txt``).
        fingerprint: hash of the files.
    """

    numbers: NDArray[np.uint8]
    positions: NDArray[np.float32]
    bonds: NDArray[np.uint8]
    atom_starts: NDArray[np.int64]
    bond_starts: NDArray[np.int64]
    targets: NDArray[np.float64]
    broken: tuple[str, ...]
    excluded: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.targets)


_Reader = Callable[[list[Path], Progress], dict[str, Any]]

_Parsed = tuple[list[int], list[list[float]], list[list[int]], list[float]]
"""A molecule: atomic numbers, positions, bonds, targets."""


def load(data: Path | None, strict: bool, progress: Progress) -> Molecules:
    """Return the molecules of a folder, or of the package ``qm9pack``.

    The folder, or its subfolder ``raw``, holds ``gdb9.sdf``, ``gdb9.sdf.csv`` and
    ``uncharacterized.txt``, as MoleculeNet publishes them and torch-geometric unpacks them where
    rdkit is installed, or ``qm9_v3.pt``, which torch-geometric fetches where it is not. Parsing
    takes a minute and is done once: the arrays stay in the cache folder, by content.

    Args:
        data: the folder; None for the package.
        strict: raise instead of dropping what cannot be read.
        progress: is told how the parsing goes.

    Raises:
        DataError: no such folder, files or package, or they are not QM9.
    """
    read, files = _package() if data is None else _find(data)
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    fingerprint = f"qm9-1-{digest.hexdigest()[:16]}"
    cached = cache_dir() / f"{fingerprint}-{VERSION}.npz"
    if (found := _fetch(cached)) is None:
        found = read(files, progress)
        with writing(cached) as temporary:
            np.savez(temporary, **found)
    broken = tuple(map(str, found.pop("broken")))
    if strict and broken:
        source = PACKAGE if data is None else data
        raise DataError(f"{source}: {len(broken)} molecules cannot be read (strict); {broken[0]}")
    excluded = int(found.pop("excluded"))
    return Molecules(**found, broken=broken, excluded=excluded, fingerprint=fingerprint)


def _fetch(file: Path) -> dict[str, Any] | None:
    """Read a file of arrays; None when it is absent or broken."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (
        OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError,
    ):  # fmt: skip
        return None


def _find(data: Path) -> tuple[_Reader, list[Path]]:
    for folder in (data, data / "raw"):
        if all((folder / name).is_file() for name in RAW):
            return _raw, [folder / name for name in RAW]
        if (folder / PROCESSED).is_file():
            return _processed, [folder / PROCESSED]
    raise DataError(
        f"{data}: neither it nor its folder raw holds {', '.join(RAW)} (of MoleculeNet's qm9.zip "
        f"and QM9's figshare page), or {PROCESSED} (of torch-geometric); nothing is downloaded here"
    )


def _package() -> tuple[_Reader, list[Path]]:
    # Found, not imported: the package imports pkg_resources, which newer setuptools have not.
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise DataError(
            f"task qm9 needs the package {PACKAGE}: {extras.command('qm9')}; or give --data PATH, "
            f"a folder with {', '.join(RAW)}"
        )
    folder = Path(*found.submodule_search_locations or ()) / "data"
    return _packaged, [folder / name for name in PACKAGED]


def _packaged(files: list[Path], progress: Progress) -> dict[str, Any]:
    wanted = [column for column, _ in PROPERTIES.values()]
    try:
        table = pd.concat(
            pd.read_csv(file, usecols=["Index", "SMILES", "Elements", "XYZ_Ang", *wanted])
            for file in files
        )
        targets = table[wanted].to_numpy(np.float64)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{files[0].parent}: is not the data of {PACKAGE}: {_line(error)}"
        ) from error
    factors = np.array([factor for _, factor in PROPERTIES.values()])
    free = np.array([ATOMS.get(name, (0.0,) * len(ELEMENTS)) for name in PROPERTIES])
    molecules: list[_Parsed] = []
    broken = []
    rows = zip(table["Index"], table["SMILES"], table["Elements"], table["XYZ_Ang"], strict=True)
    for count, (index, smiles, elements, places) in enumerate(rows):
        if count % 5_000 == 0:
            progress("reading molecules", count, len(table))
        try:
            symbols = elements.strip("[]").replace("'", "").split(",")
            positions = np.array(re.sub(r"[\[\]]", "", places).split(","), float).reshape(-1, 3)
            bonds = _bonded(smiles, symbols, positions)
            atoms = np.array([symbols.count(element) for element in ELEMENTS])
            known = (targets[count] - free @ atoms) * factors
            if not (np.isfinite(known).all() and np.isfinite(positions).all()):
                raise ValueError("a target or a position is not finite")
            _must_lie_apart(positions)
            numbers = [ELEMENTS[symbol] for symbol in symbols]
            molecules.append((numbers, positions.tolist(), bonds, known.tolist()))
        except (AttributeError, IndexError, KeyError, ValueError) as error:
            broken.append(f"{PACKAGE}, molecule {index}: {_line(error)}")
    return _pack(molecules, broken, 0, files[0])


def _bonded(smiles: str, symbols: list[str], positions: NDArray[np.float64]) -> list[list[int]]:
    """Return a molecule's bonds: between heavy atoms the SMILES', each hydrogen's to the nearest.

    Raises:
        ValueError: the atoms are not those of the SMILES in its order, or bonded ones lie apart.
    """
    atoms, pairs = read_smiles(smiles)
    heavy = [i for i, symbol in enumerate(symbols) if symbol != "H"]
    if [symbols[i] for i in heavy] != atoms or len(positions) != len(symbols):
        raise ValueError(f"its atoms are not those of {smiles}, in its order")
    bonds = [[heavy[first], heavy[second], order] for first, second, order in pairs]
    for i in set(range(len(symbols))) - set(heavy):
        nearest = np.square(positions[heavy] - positions[i]).sum(1).argmin()
        bonds.append([heavy[nearest], i, 1])
    if bonds:
        first, second, _ = np.array(bonds).T
        if np.square(positions[first] - positions[second]).sum(1).max() > LONGEST**2:
            raise ValueError(f"atoms that {smiles} bonds are more than {LONGEST} angstrom apart")
    return bonds


def _must_lie_apart(positions: Any) -> None:
    """Refuse a molecule whose input would not be finite: it holds the inverse of distances.

    Args:
        positions: (A, 3), finite.

    Raises:
        ValueError: two atoms have one.
    """
    places = np.asarray(positions, np.float32).tolist()  # as they are kept
    if len(set(map(tuple, places))) < len(places):
        raise ValueError("two of its atoms lie in one place")


def read_smiles(smiles: str) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Return the heavy atoms of one of QM9's SMILES and their bonds, as (first, second, order).

    >>> read_smiles("C1=CO1")
    (['C', 'C', 'O'], [(0, 1, 2), (1, 2, 1), (0, 2, 1)])

    Raises:
        ValueError: it has something that QM9's do not have.
    """
    atoms: list[str] = []
    pairs: list[tuple[int, int, int]] = []
    branches: list[int] = []
    rings: dict[str, tuple[int, int]] = {}
    last, order, read = 0, 1, 0
    for token in TOKEN.finditer(smiles):
        if token.start() != read:
            break
        read = token.end()
        atom, bond, parenthesis, ring = token.groups()
        if bond:
            order = {"=": 2, "#": 3}[bond]
        elif parenthesis == "(":
            branches.append(last)
        elif parenthesis:
            last = branches.pop()
        elif atom:
            atoms.append(atom)
            if len(atoms) > 1:
                pairs.append((last, len(atoms) - 1, order))
            last, order = len(atoms) - 1, 1
        elif ring in rings:
            first, begun = rings.pop(ring)
            pairs.append((first, last, max(begun, order)))
            order = 1
        else:
            rings[ring], order = (last, order), 1
    if read != len(smiles) or rings or branches:
        raise ValueError(f"{smiles!r} cannot be read as QM9's SMILES are")
    return atoms, pairs


def _raw(files: list[Path], progress: Progress) -> dict[str, Any]:
    structures, table, excluded = files
    skip = _excluded(excluded)
    columns = [column for column, _, _ in TARGETS.values()]
    try:
        read = pd.read_csv(table, index_col="mol_id", usecols=["mol_id", *columns])
        factors = [factor for _, factor, _ in TARGETS.values()]
        targets = read[columns].to_numpy(np.float64) * factors
    except ValueError as error:
        raise DataError(f"{table}: is not QM9's table: {_line(error)}") from error
    if read.index.has_duplicates:
        twice = read.index[read.index.duplicated()][0]
        raise DataError(f"{table}: a molecule has one row, and {twice} has several; leave one")
    rows = {str(name): row for name, row in zip(read.index, targets, strict=True)}
    used = set[str]()
    molecules: list[_Parsed] = []
    broken = []
    left_out = 0
    for count, block in enumerate(_blocks(structures), start=1):
        if count % 5_000 == 0:
            progress("reading molecules", count, len(rows))
        name = block[0].strip()
        if name in skip:
            left_out += 1
            continue
        try:
            if name in used:
                raise ValueError("is there twice: the first one is used")
            molecules.append((*_molecule(block), _known(rows, name)))
            used.add(name)
        except (ValueError, IndexError, KeyError) as error:
            broken.append(f"{structures.name}, molecule {count} ({name[:40]!r}): {_line(error)}")
    return _pack(molecules, broken, left_out, structures)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _excluded(file: Path) -> set[str]:
    """Return the names listed in ``uncharacterized.txt``, between a heading and a closing line."""
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")[9:-1]
        return {f"gdb_{int(line.split()[0])}" for line in lines}
    except (ValueError, IndexError) as error:
        raise DataError(f"{file}: is not QM9's list of excluded molecules: {error}") from error


def _blocks(file: Path) -> Iterator[list[str]]:
    """Yield the lines of each molecule of a structure file, without holding the file."""
    block: list[str] = []
    with file.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.startswith("$$$$"):
                yield block
                block = []
            else:
                block.append(line)
    if "".join(block).strip():
        yield block  # cut off: fails as a molecule


def _molecule(block: list[str]) -> tuple[list[int], list[list[float]], list[list[int]]]:
    """Return a V2000 block's atomic numbers, positions and bonds.

    Fields have fixed widths, three characters a count or index and ten a coordinate: large ones
    touch.
    """
    atoms, bonds = int(block[3][:3]), int(block[3][3:6])
    lines = block[4 : 4 + atoms + bonds]
    if not 1 <= atoms <= MOST or len(lines) < atoms + bonds:
        raise ValueError(f"{atoms} atoms and {bonds} bonds announced, {len(lines)} lines found")
    numbers, positions, pairs = [], [], []
    for line in lines[:atoms]:
        symbol = line[31:34].strip()
        if symbol not in ELEMENTS:
            raise ValueError(f"elements must be {', '.join(ELEMENTS)}, found {symbol!r}")
        numbers.append(ELEMENTS[symbol])
        positions.append([float(line[start : start + 10]) for start in (0, 10, 20)])
    if not np.isfinite(np.array(positions, np.float32)).all():
        raise ValueError("a position is not finite")
    _must_lie_apart(positions)
    for line in lines[atoms:]:
        first, second, kind = (int(line[start : start + 3]) for start in (0, 3, 6))
        if not (1 <= first <= atoms and 1 <= second <= atoms and 1 <= kind <= 4):
            raise ValueError(f"bond {line.strip()!r} is not between its atoms")
        pairs.append([first - 1, second - 1, kind])
    return numbers, positions, pairs


def _known(rows: dict[str, NDArray[np.float64]], name: str) -> list[float]:
    if name not in rows:
        raise ValueError("has no row in the table")
    found = rows[name]
    if not np.isfinite(found).all():
        raise ValueError("lacks a target")
    return list(found)


def _processed(files: list[Path], progress: Progress) -> dict[str, Any]:
    (file,) = files
    try:
        records = torch.load(file, weights_only=True)
        assert isinstance(records, list)
    except Exception as error:  # torch raises many kinds for a broken file
        raise DataError(
            f"{file}: is not torch-geometric's list of molecules ({type(error).__name__})"
        ) from error
    columns = [column for _, _, column in TARGETS.values()]
    factors = np.where([name in ENERGIES for name in TARGETS], 1000.0, 1.0)
    molecules: list[_Parsed] = []
    broken = []
    for count, record in enumerate(records, start=1):
        try:
            ends, kinds = record["edge_index"], record["edge_attr"].argmax(1) + 1
            once = ends[0] < ends[1]
            bonds = torch.cat([ends, kinds[None]])[:, once].T
            targets = record["y"].double().numpy()[0, columns] * factors
            numbers = record["x"][:, 5].int().tolist()
            positions = record["pos"].float()
            if not (
                positions.shape == (len(numbers), 3)
                and positions.isfinite().all()
                and len(numbers) <= MOST
                and bool(((ends >= 0) & (ends < len(numbers))).all())
            ):
                raise ValueError("its atoms, positions and bonds do not fit each other")
            _must_lie_apart(positions)
            if not (
                np.isfinite(targets).all()
                and targets.shape == (len(TARGETS),)
                and set(numbers) <= set(ELEMENTS.values())
            ):
                raise ValueError("lacks a target, or has an element that QM9 has not")
            molecules.append((numbers, positions.tolist(), bonds.tolist(), list(targets)))
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, ValueError) as error:
            broken.append(f"{file.name}, molecule {count}: {_line(error)}")
    return _pack(molecules, broken, 0, file)


def _pack(molecules: list[_Parsed], broken: list[str], excluded: int, file: Path) -> dict[str, Any]:
    if not molecules:
        raise DataError(f"{file}: no molecule can be read" + "".join(f"; {b}" for b in broken[:1]))
    numbers, positions, bonds, targets = zip(*molecules, strict=True)
    return {
        "numbers": np.concatenate([np.array(n, np.uint8) for n in numbers]),
        "positions": np.concatenate([np.array(p, np.float32) for p in positions]),
        "bonds": np.concatenate([np.array(b, np.uint8).reshape(-1, 3) for b in bonds]),
        "atom_starts": np.cumsum([0, *map(len, numbers)]),
        "bond_starts": np.cumsum([0, *map(len, bonds)]),
        "targets": np.array(targets),
        "broken": np.array(broken, dtype=np.str_),
        "excluded": np.array(excluded),
    }
