"""What TensorRT remembers between runs: timings of a build, kernels that a first run compiled."""

import os
from pathlib import Path

from cifar_deploy.disk import check_place, parsed, write_bytes
from cifar_deploy.errors import UserError, disk_errors
from cifar_deploy.store import manifest_path, read_manifest, write_manifest

KIND = "cache"  # as its manifest says


def folder() -> Path:
    """Where caches lie: $XDG_CACHE_HOME/cifar-deploy, else ~/.cache/cifar-deploy.

    Raises UserError where neither is known.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "cifar-deploy"
    except RuntimeError:
        raise UserError("this user has no home folder; set XDG_CACHE_HOME for caches") from None


def path(kind: str, version: str, gpu: str, *more: str) -> Path:
    """The cache of a kind for a library version and a GPU, by name."""
    words = "-".join((kind, version, gpu.lower(), *more))
    return folder() / f"{words.replace(' ', '-').replace('/', '-')}.cache"


def read(path: Path) -> bytes:
    """What was kept there, or nothing: a cache that is gone or was changed is made anew.

    Only bytes that this program wrote, by their sha256, are handed to a library.
    """
    try:
        if not path.is_file() or read_manifest(path) is None:
            return b""
        return path.read_bytes()
    except (UserError, OSError):
        return b""


def check(path: Path) -> None:
    """Raise UserError where `path` cannot become a cache: another file is there, or no folder."""
    if path.exists() and not _is_ours(path):
        raise UserError(f"{path} is there and is no cache of this program's; name another file")
    check_place(path)


def _is_ours(path: Path) -> bool:
    """Whether what stands at `path` may be made anew: by its manifest, or since that is damaged."""
    beside = manifest_path(path)
    if not beside.exists():
        return False
    with disk_errors(beside, "read"):
        raw = beside.read_bytes()
    try:
        said = parsed(raw)
    except ValueError:
        return True
    return isinstance(said, dict) and said.get("kind") == KIND


def write(path: Path, data: bytes) -> None:
    """Keep `data`. Raises UserError where the disk refuses."""
    # The manifest first: should this be killed in between, `read` takes none of the old bytes, and
    # `check` knows whose they are.
    write_manifest(path, {"kind": KIND}, data)
    write_bytes(path, data)
