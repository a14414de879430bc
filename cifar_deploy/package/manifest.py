"""`manifest.txt`: what a package holds, a `key value` a line, for readers without JSON."""

from collections.abc import Iterable
from pathlib import Path

from cifar_deploy.disk import Json, read_json, sha256_of
from cifar_deploy.engines.flavour import NAMES as FLAVOURS
from cifar_deploy.engines.flavour import RTX
from cifar_deploy.errors import UserError, disk_errors, is_plain

NAME = "manifest.txt"
OWN = "manifest.json"  # the exported file's own, as it stood among the models
PROOF = "proof.json"  # what `validate` found out about it; not every package has one
FORMAT = "1"
LARGEST = 64 * 1024  # bytes; the C++ library reads no more either
REQUIRED = ("format", "backend", "file", "sha256", "classes", "labels", "labels_sha256")


def text(entries: Iterable[tuple[str, object]]) -> str:
    """The file's text: keys without spaces, values the rest of the line, LF.

    Raises UserError for a value that would break the line.
    """
    lines = []
    for key, value in entries:
        said = str(value)
        if not said or not said.isprintable() or said != said.strip():
            raise UserError(f"{key} is {said!r}: a package can hold no such name; rename it")
        lines.append(f"{key} {said}\n")
    return "".join(lines)


def is_package(path: Path) -> bool:
    """Whether `path` is a folder that `package --target cpp` wrote."""
    return (path / NAME).is_file()


def open_package(folder: Path) -> tuple[Path, tuple[str, ...], Json]:
    """The exported file in a package folder, its class names, and its own manifest.

    File and names are checked by their sha256, and that manifest and proof are of this file.

    Raises UserError where the manifest is none or what it speaks of is missing or changed.
    """
    entries = read(folder)
    file, labels = (_part(folder, entries, key) for key in ("file", "labels"))
    for part, key in ((file, "sha256"), (labels, "labels_sha256")):
        if sha256_of(part) != entries[key]:
            raise UserError(
                f"{part} is not the file that {NAME} speaks of (sha256 differs): it was changed or "
                "cut short; package it again"
            )
    try:
        classes = tuple(labels.read_bytes().decode().removesuffix("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise UserError(f"{labels} is no UTF-8 text; package it again") from error
    if not all(map(is_plain, classes)):
        raise UserError(f"{labels} has control characters; package it again")
    if str(len(classes)) != entries["classes"]:
        raise UserError(f"{labels} has {len(classes)} names, {NAME} says {entries['classes']}")
    own = read_json(folder / OWN)
    if own.get("sha256") != entries["sha256"] or own.get("flavour", RTX) not in FLAVOURS:
        raise UserError(f"{folder / OWN} is not the manifest of {file.name}; package it again")
    proof = folder / PROOF
    if proof.exists() and read_json(proof).get("sha256") != entries["sha256"]:
        raise UserError(f"{proof} is not the proof of {file.name}; package it again")
    return file, classes, own


def read(folder: Path) -> dict[str, str]:
    """What `manifest.txt` in a package folder says, by key.

    Raises UserError where there is none, or it lacks what every package has.
    """
    path = folder / NAME
    with disk_errors(path, "read"), path.open("rb") as opened:
        raw = opened.read(LARGEST + 1)
    entries: dict[str, str] = {}
    try:
        if len(raw) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        for line in raw.decode().split("\n"):
            key, _, value = line.partition(" ")
            if key in entries and key in REQUIRED:
                raise ValueError(f"{key} stands in it twice")
            entries[key] = value
        if missing := [key for key in REQUIRED if not entries.get(key)]:
            raise ValueError(f"{missing[0]} is missing")
        if entries["format"] != FORMAT:
            raise ValueError(f"its format is {entries['format']}, this program reads {FORMAT}")
    except ValueError as error:  # also bytes that are no UTF-8
        raise UserError(f"{path} is no manifest of a package ({error}); package again") from error
    return entries


def _part(folder: Path, entries: dict[str, str], key: str) -> Path:
    """The file that `key` names: in the folder itself, nowhere else."""
    name = entries[key]
    if Path(name).name != name or name == ".." or not name.isprintable():
        raise UserError(f"{folder / NAME}: {key} {name} is no plain file name; package again")
    return folder / name
