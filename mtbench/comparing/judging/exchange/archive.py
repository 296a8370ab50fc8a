"""The file that results travel in.

It is a zip: ``manifest.json`` (format, version, and for each cell its path and the sha256 of each
of its files) and the records of finished cells. It holds neither weights nor pickles, nothing of it
is ever executed, and reading trusts nothing that it says.
"""

import hashlib
import io
import json
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mtbench.comparing.judging.exchange.records import RECORDS, Checked, parsed, show
from mtbench.errors import RunError
from mtbench.plugins.registry import NAME
from mtbench.training.cell.result import Part
from mtbench.version import __version__

FORMAT, VERSION = "mtbench results", 1
MAX_ARCHIVE, MAX_UNPACKED = 64 * 2**20, 256 * 2**20
MAX_MEMBERS = 65_535
MAX_RATIO = 200
"""Of a member's size to its compressed one, beyond the first MiB; records of epochs reach 50."""

_ENTRY = b"PK\x01\x02"


class _Header(Part):
    format: str
    version: int
    mtbench: str


class _Listed(Part, extra="forbid"):
    path: str
    files: dict[str, str]


class _Manifest(_Header, extra="forbid"):
    cells: list[_Listed]


@dataclass(frozen=True)
class Package:
    """The content of an exported file.

    Attributes:
        file: its name.
        sha256: its digest.
        cells: what it holds.
    """

    file: str
    sha256: str
    cells: list[Checked]


def read(file: Path) -> Package:
    """Return what an exported file holds, every check made that needs no other file.

    Raises:
        RunError: it is no such file, broken, or contradicts itself.
    """
    if file.is_dir():
        raise RunError(
            f"{file}: is a folder, and no file of `mtbench export`; runs are copied from one by "
            "`mtbench merge OUT FOLDER`"
        )
    if file.exists() and not file.is_file():
        raise RunError(f"{file}: is no regular file: a pipe may never end")
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_ARCHIVE + 1)
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror})") from error
    try:
        cells = _cells(unpack(raw))
    except RunError as error:
        raise RunError(f"{file}: {error}") from error
    except Exception as error:  # zipfile raises many kinds for a broken file
        raise RunError(
            f"{file}: no whole file of `mtbench export` ({type(error).__name__}: {error})"
        ) from error
    digest = hashlib.sha256(raw).hexdigest()
    return Package(
        file.name,
        digest,
        [replace(cell, origin=f"{file}: {cell.path}") for cell in cells],
    )


def pack(cells: Iterable[Checked]) -> bytes:
    """Return an archive whose bytes depend on the cells' records (and zlib) alone."""
    cells = sorted(cells, key=lambda cell: cell.path)
    listed = [
        {"path": cell.path, "files": {k: _sha256(v) for k, v in sorted(cell.files.items())}}
        for cell in cells
    ]
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "mtbench": __version__,
        "cells": listed,
    }
    members = {f"{cell.path}/{name}": raw for cell in cells for name, raw in cell.files.items()}
    members["manifest.json"] = json.dumps(manifest, indent=1).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted(members.items()):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED, 9)
    return buffer.getvalue()


def unpack(raw: bytes) -> dict[str, bytes]:
    """Return an archive's members by name, in bounded memory."""
    if len(raw) > MAX_ARCHIVE:
        raise RunError(f"larger than {MAX_ARCHIVE >> 20} MiB")
    if raw.count(_ENTRY) > MAX_MEMBERS:  # counted before zipfile makes an object of each
        raise RunError(f"more than {MAX_MEMBERS} members")
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = archive.infolist()
        for member in members:
            _must_be_plain(member)
        counts = Counter(member.filename for member in members)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise RunError(f"member {show(twice[0])} is there twice")
        if sum(member.file_size for member in members) > MAX_UNPACKED:
            raise RunError(f"unpacks to more than {MAX_UNPACKED >> 20} MiB")
        found = {}
        for member in members:
            with archive.open(member) as stream:  # one more than promised, so that the CRC is read
                found[member.filename] = stream.read(member.file_size + 1)
        return found


def _must_be_plain(member: zipfile.ZipInfo) -> None:
    shown = show(member.orig_filename)
    parts = member.filename.split("/")
    if member.orig_filename != member.filename or not all(map(NAME.fullmatch, parts)):
        raise RunError(f"member {shown} is no plain relative name")
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        raise RunError(f"member {shown} is a link or another special file")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RunError(f"member {shown} is compressed by method {member.compress_type}, not 0 or 8")
    if member.file_size > max(2**20, MAX_RATIO * member.compress_size):
        raise RunError(f"member {shown} unpacks to more than {MAX_RATIO} times its size")


def _cells(members: dict[str, bytes]) -> list[Checked]:
    """Return the cells that the manifest lists, each file of them checked."""
    if "manifest.json" not in members:
        raise RunError("has no manifest.json: no file of `mtbench export`")
    raw = members.pop("manifest.json")
    header = parsed(_Header, raw, "manifest.json")
    if header.format != FORMAT:
        raise RunError(f"manifest.json: format must be {FORMAT!r}, found {show(header.format)}")
    if header.version != VERSION:
        raise RunError(
            f"is of format version {header.version} (by mtbench {show(header.mtbench)}), and "
            f"this mtbench {__version__} reads version {VERSION}"
        )
    listed = parsed(_Manifest, raw, "manifest.json").cells
    if len({entry.path for entry in listed}) < len(listed):
        raise RunError("manifest.json: lists a cell twice")
    names = {f"{entry.path}/{name}" for entry in listed for name in entry.files}
    if extra := sorted(members.keys() - names):
        raise RunError(f"member {show(extra[0])} is not in the manifest")
    if absent := sorted(names - members.keys()):
        raise RunError(f"member {show(absent[0])} is in the manifest, but missing")
    cells = []
    for entry in listed:
        if other := sorted(set(entry.files) - set(RECORDS)):
            raise RunError(f"member {show(f'{entry.path}/{other[0]}')} is no record of a cell")
        files = {name: members[f"{entry.path}/{name}"] for name in entry.files}
        for name, content in files.items():
            if _sha256(content) != entry.files[name]:
                raise RunError(f"member {show(f'{entry.path}/{name}')} is not what was exported")
        cell = Checked.of(files, entry.path)
        if cell.path != entry.path:
            raise RunError(f"{show(entry.path)}: its spec is that of {cell.path}")
        cells.append(cell)
    if not cells:
        raise RunError("holds no cell")
    return cells


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
