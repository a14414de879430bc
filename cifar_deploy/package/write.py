"""A package on disk: a folder or a .tar.gz, whole or not at all, the same bytes every time."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

from cifar_deploy.disk import atomic_folder, atomic_path, read_json
from cifar_deploy.errors import UserError, disk_errors

Contents = dict[str, bytes]  # path in the package, with /, and the file's bytes

# From 1980, for GNU tar warns of 1970 and zip knows nothing before, to 2010.
TIMES = range(315_532_800, 1_262_304_000)
ARCHIVE = ".tar.gz"
OTHER_ARCHIVES = (".zip", ".tgz", ".tar", ".gz", ".bz2", ".xz", ".zst", ".7z")


def check_target(out: Path, force: bool) -> None:
    """Raise UserError where `out` is taken, or is no name that a folder or archive can have."""
    if out.name in ("", ".."):
        raise UserError(f"--out {out}: name the folder, or a file ending in {ARCHIVE}")
    with disk_errors(out, "write"):
        _check(out, force)


def _check(out: Path, force: bool) -> None:
    if out.suffix in OTHER_ARCHIVES and not out.name.endswith(ARCHIVE):
        raise UserError(f"--out {out}: an archive's name ends in {ARCHIVE}, a folder's otherwise")
    if out.name.endswith(ARCHIVE):
        if out.is_dir():
            raise UserError(f"--out {out} is a folder; a name ending in {ARCHIVE} is an archive")
    elif out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder, or a file ending in {ARCHIVE}")
    elif out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not force:
        raise UserError(f"{out} exists; remove it, name another with --out, or give --force")
    if out.is_dir() and not _is_ours(out):
        raise UserError(f"{out} is no package; --force replaces only packages")


def _is_ours(folder: Path) -> bool:
    manifest = folder / "manifest.json"
    return manifest.is_file() and "weights_sha256" in read_json(manifest)


def write(contents: Contents, out: Path, name: str) -> None:
    """Write `contents` as the folder `out`, or as an archive of a folder `name` at `out`.

    Raises UserError where the disk refuses.
    """
    if out.name.endswith(ARCHIVE):
        with atomic_path(out) as part:
            part.write_bytes(_archive(contents, name))
        return
    with atomic_folder(out) as part:
        for path, data in contents.items():
            file = part / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


def _archive(contents: Contents, name: str) -> bytes:
    """Sorted, nobody's: nothing in it tells when, where or by whom it was made.

    Its time goes by the contents. Of one size and one time rsync and `cmake --install` would take
    another model's files for those that they have.
    """
    every = hashlib.sha256()
    for path in sorted(contents):
        every.update(hashlib.sha256(contents[path]).digest())
    time = TIMES[int.from_bytes(every.digest()[:8], "big") % len(TIMES)]
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=time) as squeezed,
        tarfile.open(fileobj=squeezed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(contents):
            entry = tarfile.TarInfo(f"{name}/{path}")
            entry.size, entry.mtime, entry.mode = len(contents[path]), time, 0o644
            archive.addfile(entry, io.BytesIO(contents[path]))
    return packed.getvalue()
