"""CIFAR-10 (Krizhevsky 2009) in the two official forms: Python pickles and the binary version."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cifar_deploy.data import pickles
from cifar_deploy.data.dataset import SIZE, Dataset, Images, Labels, Split
from cifar_deploy.errors import UserError, disk_errors

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_BATCH = "test_batch"
PER_BATCH = 10_000
PIXELS = 3 * SIZE * SIZE
LARGEST_FILE = 64 << 20  # bytes; an official batch has 31 MB

# What the files are known to hash to, by the name of the release.
# "official": the MD5 sums that the data set's page and torchvision publish for the Python version.
# "official binary": those of what is in cifar-10-binary.tar.gz, whose own MD5 the page publishes
# (c32a1d4ab5d03f1284b67883e8d87530), as several programs that fetch it have them.
# "reassembled": SHA-256 of the binary version put together from public copies, in which 95 images
# could only be had recompressed (every other image is the official one).
KNOWN = {
    "official": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    "official binary": {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
    "reassembled": {
        "data_batch_1.bin": "4744fac107bc3b4fd95ba7aaafe3830d9e49aa513f4c7f6fbb7766f7ec871323",
        "data_batch_2.bin": "4d0a9f6a8434c9b3b3de28d817dc3d360a3f82d86a14f3c7bf6d2d8fc64188e2",
        "data_batch_3.bin": "1a4d0920ea06101641902b09fdac800cad7b5105963deee31ddff8e83fbabe6c",
        "data_batch_4.bin": "1a1401a79ee78d63b83259d2b3f22a52142e7dd6309a0164c460dc6abd7ac38b",
        "data_batch_5.bin": "ce4b8267c2f77f8915b4299443568f52defe265996f0a8b7966b63b7adf6d4d2",
        "test_batch.bin": "123ca0dad8f960344d9149742165d4215093c84c8c4bdc5922af93b614bdb501",
    },
}
SUMS = {32: "md5", 64: "sha256"}  # by their digits
MATCHES = ": every checksum matches"
UNVERIFIED = "unverified: none of the files has a known checksum"


def is_binary(folder: Path) -> bool:
    """Whether `folder` is (a part of) the binary version."""
    return any((folder / f"{name}.bin").is_file() for name in (*TRAIN_BATCHES, TEST_BATCH))


def is_python(folder: Path) -> bool:
    """Whether `folder` is (a part of) the Python version."""
    return any((folder / name).is_file() for name in (*TRAIN_BATCHES, TEST_BATCH))


def read_binary(folder: Path) -> Dataset:
    """`cifar-10-batches-bin`: 10,000 records of a label byte and 3,072 planar pixels a file.

    Raises UserError for a missing or truncated file, a label over 9, or a wrong checksum.
    """
    return _read(folder, ".bin", _decode_binary)


def read_python(folder: Path) -> Dataset:
    """`cifar-10-batches-py`: the official pickles, read by `pickles.load`.

    Raises UserError for a missing, truncated or foreign file, or a wrong checksum.
    """
    return _read(folder, "", _decode_python)


def _read(
    folder: Path, suffix: str, decode: Callable[[bytes, Path], tuple[Images, Labels]]
) -> Dataset:
    batches = {}
    hashes = {}
    for name in (*TRAIN_BATCHES, TEST_BATCH):
        path = folder / (name + suffix)
        if not path.is_file():
            raise UserError(f"{path} is missing: the data set is incomplete; unpack it again")
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path} is larger than any CIFAR-10 batch; unpack the data set again")
        with disk_errors(path, "read"):
            raw = path.read_bytes()
        hashes[path.name] = {
            hashlib.new(SUMS[len(known[path.name])], raw, usedforsecurity=False).hexdigest()
            for known in KNOWN.values()
            if path.name in known
        }
        batches[name] = decode(raw, path)
    train = [batches[name] for name in TRAIN_BATCHES]
    return Dataset(
        name="CIFAR-10",
        origin=str(folder),
        classes=CLASSES,
        train=Split(np.concatenate([b[0] for b in train]), np.concatenate([b[1] for b in train])),
        test=Split(*batches[TEST_BATCH]),
        verified=_verify(folder, hashes),
    )


def _verify(folder: Path, hashes: dict[str, set[str]]) -> str:
    """Name the release that the files are. Raises UserError where only some of them match one."""
    for release, known in KNOWN.items():
        wrong = [name for name, values in hashes.items() if known.get(name) not in values]
        if not wrong:
            return f"{release}{MATCHES}"
        if len(wrong) < len(hashes):
            raise UserError(
                f"{folder / wrong[0]} has the wrong checksum (the other files are the {release} "
                "CIFAR-10): it is damaged; unpack the data set again"
            )
    return UNVERIFIED


def is_release(verified: str) -> bool:
    """Whether a data set's `verified` names a known release: all hold the same pictures."""
    return verified.removesuffix(MATCHES) in KNOWN


def _decode_binary(raw: bytes, path: Path) -> tuple[Images, Labels]:
    expected = PER_BATCH * (1 + PIXELS)
    if len(raw) != expected:
        raise UserError(
            f"{path} has {len(raw):,} bytes instead of {expected:,}: it is cut short or foreign; "
            "unpack the data set again"
        )
    records = np.frombuffer(raw, np.uint8).reshape(PER_BATCH, 1 + PIXELS)
    return _planar(records[:, 1:]), _labels(records[:, 0].tolist(), path)


def _decode_python(raw: bytes, path: Path) -> tuple[Images, Labels]:
    batch = pickles.load(raw, str(path))
    pixels, labels = batch.get("data"), batch.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.shape != (PER_BATCH, PIXELS):
        raise UserError(f"{path} is not a CIFAR-10 batch: no data of shape [10000, 3072] in it")
    if (
        not isinstance(labels, list)
        or len(labels) != PER_BATCH
        or not all(isinstance(label, int) for label in labels)
    ):
        raise UserError(f"{path} is not a CIFAR-10 batch: no list of 10000 labels in it")
    return _planar(pixels), _labels(labels, path)


def _planar(pixels: Images) -> Images:
    """[n, 3072] with whole colour planes -> [n, 32, 32, 3]."""
    planes = pixels.reshape(-1, 3, SIZE, SIZE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _labels(labels: list[int], path: Path) -> Labels:
    # Compared before numpy takes them: Python's integers may be too large for it.
    if min(labels) < 0 or max(labels) >= len(CLASSES):
        raise UserError(f"{path} has labels outside 0..9: it is damaged or another data set")
    return np.array(labels, np.int64)
