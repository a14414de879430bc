import codecs
import hashlib
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from cifar_deploy.data import cifar10, pickles
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.errors import UserError

NAMES = (*cifar10.TRAIN_BATCHES, cifar10.TEST_BATCH)
READERS: dict[str, Callable[[Path], Dataset]] = {
    "cifar-10-batches-bin": cifar10.read_binary,
    "cifar-10-batches-py": cifar10.read_python,
}
RECONSTRUCT = np.zeros(1, np.uint8).__reduce__()[0]  # numpy's, whatever the version calls it


def python2_batch(data: Images, labels: list[int], filenames: list[str]) -> bytes:
    """The bytes that Python 2 and numpy 1 wrote: what stands in the official files."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode("latin1")

    out = (
        b"\x80\x02}q\x01("
        + text("batch_label")
        + b"q\x02"
        + text("training batch 1 of 5")
        + b"q\x03"
    )
    out += text("labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    out += text("data") + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
    out += b"K\x00\x85U\x01b\x87Rq\t(K\x01M" + struct.pack("<H", data.shape[0])
    out += b"M" + struct.pack("<H", data.shape[1]) + b"\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87R"
    out += b"q\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
    out += struct.pack("<i", data.size) + data.tobytes() + b"tb"
    numbered = (text(n) + b"r" + struct.pack("<I", 12 + i) for i, n in enumerate(filenames))
    return out + text("filenames") + b"]q\x0c(" + b"".join(numbered) + b"eu."


def batch(seed: int) -> tuple[Images, list[int]]:
    random = np.random.default_rng(seed)
    data = np.frombuffer(random.bytes(10_000 * 3072), np.uint8).reshape(10_000, 3072)
    return data, random.integers(0, 10, 10_000).tolist()


def with_labels(data: Images, labels: list[Any], protocol: int = 4, **more: Any) -> bytes:
    return pickle.dumps({"data": data, "labels": labels, **more}, protocol)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same random images in both forms, the pickles as different Pythons write them."""
    place = tmp_path_factory.mktemp("forms")
    for form in READERS:
        (place / form).mkdir()
    for i, name in enumerate(NAMES):
        data, labels = batch(i)
        filenames = [f"image_s_{n:06}.png" for n in range(10_000)]
        if i < 3:
            raw = python2_batch(data, labels, filenames)
        elif i == 3:
            raw = with_labels(data, labels, 2, filenames=filenames)
        else:
            raw = with_labels(data, labels, 4, filenames=filenames)
        (place / "cifar-10-batches-py" / name).write_bytes(raw)
        records = np.concatenate([np.array(labels, np.uint8)[:, None], data], 1)
        (place / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(records.tobytes())
    yield place
    shutil.rmtree(place)  # 400 MB


def replaced(source: Path, place: Path, name: str, raw: bytes | None) -> Path:
    """Links to all of `source`, but the file `name` holds `raw`, or is missing."""
    place.mkdir()
    for path in source.iterdir():
        if path.name != name:
            (place / path.name).symlink_to(path)
    if raw is not None:
        (place / name).write_bytes(raw)
    return place


# --- the real data ---


def test_real_data_is_cifar10_in_its_order(real_data: Dataset) -> None:
    # The first labels as every tutorial prints them: frog, truck, truck, ...; cat, ship, ship, ...
    assert real_data.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert real_data.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert np.bincount(real_data.train.labels).tolist() == [5000] * 10
    assert np.bincount(real_data.test.labels).tolist() == [1000] * 10
    # The frog's first pixels, row by row.
    assert real_data.train.images[0, 0, :2].tolist() == [[59, 62, 63], [43, 46, 45]]
    assert real_data.train.images[0, 1, 0].tolist() == [16, 20, 20]
    assert real_data.classes == cifar10.CLASSES


def test_real_data_with_a_flipped_bit_is_refused(real_data: Dataset, tmp_path: Path) -> None:
    source = Path(real_data.origin)
    if real_data.verified == cifar10.UNVERIFIED:
        pytest.skip("this copy of CIFAR-10 has no known checksum")
    binary = cifar10.is_binary(source)
    name = cifar10.TRAIN_BATCHES[2] + (".bin" if binary else "")
    raw = bytearray((source / name).read_bytes())
    raw[-5000 if binary else 5_000_000] ^= 1
    folder = replaced(source, tmp_path / source.name, name, bytes(raw))
    with pytest.raises(UserError, match=rf"{name} has the wrong checksum"):
        READERS["cifar-10-batches-bin" if binary else "cifar-10-batches-py"](folder)


def test_official_checksums_are_torchvisions() -> None:
    published = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    assert cifar10.KNOWN["official"] == published
    binary = {f"{name}.bin" for name in published}
    assert cifar10.KNOWN["official binary"].keys() == cifar10.KNOWN["reassembled"].keys() == binary
    for release, known in cifar10.KNOWN.items():
        said = cifar10._verify(Path(), {name: {value} for name, value in known.items()})
        assert said == f"{release}: every checksum matches"
        assert cifar10.is_release(said)


# --- both readers ---


def test_both_forms_give_the_same_data_set(forms: Path) -> None:
    binary = cifar10.read_binary(forms / "cifar-10-batches-bin")
    python = cifar10.read_python(forms / "cifar-10-batches-py")
    assert binary.sha256 == python.sha256
    assert binary.verified == python.verified == cifar10.UNVERIFIED
    for i in range(6):
        data, labels = batch(i)
        split, start = (python.test, 0) if i == 5 else (python.train, 10_000 * i)
        assert split.labels[start : start + 10_000].tolist() == labels
        # Planar on disk: red, green and blue of pixel (4, 7) of image 9.
        at = data[9, [4 * 32 + 7, 1024 + 4 * 32 + 7, 2048 + 4 * 32 + 7]].tolist()
        assert split.images[start + 9, 4, 7].tolist() == at
    assert (len(python.train), len(python.test)) == (50_000, 10_000)
    assert python.train.images.dtype == np.uint8
    assert python.train.images.flags.writeable  # what torch.from_numpy asks for


@pytest.mark.parametrize("form", READERS)
def test_missing_and_truncated_files(forms: Path, tmp_path: Path, form: str) -> None:
    source, suffix = forms / form, ".bin" if form.endswith("bin") else ""
    missing = replaced(source, tmp_path / "missing", f"test_batch{suffix}", None)
    with pytest.raises(UserError, match=f"test_batch{suffix} is missing"):
        READERS[form](missing)
    name = f"data_batch_1{suffix}"
    whole = (source / name).read_bytes()
    for length in (0, 1, 1_000_000, len(whole) - 1):
        folder = replaced(source, tmp_path / f"{length}", name, whole[:length])
        with pytest.raises(UserError, match=rf"{name}.*(not a CIFAR-10 batch|instead of)"):
            READERS[form](folder)
    longer = replaced(source, tmp_path / "longer", name, None)
    (longer / name).touch()
    os.truncate(longer / name, cifar10.LARGEST_FILE + 1)
    with pytest.raises(UserError, match="larger than any"):
        READERS[form](longer)


@pytest.mark.parametrize("form", READERS)
def test_one_wrong_checksum_among_known_ones(
    forms: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = hashlib.md5 if form.endswith("py") else hashlib.sha256
    source = forms / form
    known = {path.name: algorithm(path.read_bytes()).hexdigest() for path in source.iterdir()}
    monkeypatch.setitem(cifar10.KNOWN, "mine", known)
    assert READERS[form](source).verified == "mine: every checksum matches"
    name = next(name for name in known if name.startswith("test"))
    raw = bytearray((source / name).read_bytes())
    raw[2_000_000] ^= 4
    with pytest.raises(UserError, match=rf"{name} has the wrong checksum.*the mine CIFAR-10"):
        READERS[form](replaced(source, tmp_path / form, name, bytes(raw)))


def test_labels_out_of_range(tmp_path: Path) -> None:
    data, labels = batch(0)
    for wrong in (10, 255):
        records = np.concatenate([np.array([*labels[:-1], wrong], np.uint8)[:, None], data], 1)
        (tmp_path / "data_batch_1.bin").write_bytes(records.tobytes())
        with pytest.raises(UserError, match=r"data_batch_1\.bin has labels outside"):
            cifar10.read_binary(tmp_path)
    for wrong in (10, -1, 1 << 100):
        (tmp_path / "data_batch_1").write_bytes(with_labels(data, [*labels[:-1], wrong]))
        with pytest.raises(UserError, match="data_batch_1 has labels outside"):
            cifar10.read_python(tmp_path)


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    data, labels = batch(0)
    cifar100 = {"data": data, "fine_labels": labels, "coarse_labels": labels}
    for value, said in (
        (cifar100, "no list of 10000 labels"),
        ({"data": data, "labels": labels[:-1]}, "no list of 10000 labels"),
        ({"data": data, "labels": [*labels[:-1], "3"]}, "no list of 10000 labels"),
        ({"data": data[:5000], "labels": labels[:5000]}, "no data of shape"),
        ({"labels": labels}, "no data of shape"),
        ([1, 2, 3], "holds a list"),
    ):
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps(value, 4))
        with pytest.raises(UserError, match=said):
            cifar10.read_python(tmp_path)


# --- hostile pickles ---


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments, self.state


def array_state(shape: tuple[Any, ...], raw: bytes, dtype: str = "u1") -> Calls:
    state = (1, shape, np.dtype(dtype), False, raw)
    return Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state=state)


def hostile(marker: Path) -> dict[str, bytes]:
    touch = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
    evil = Calls(exec, touch)
    objects = np.empty(1, object)
    objects[0] = evil
    values: dict[str, Any] = {
        "os.system": Calls(os.system, f"touch {marker}"),
        "eval": Calls(eval, f"open({str(marker)!r}, 'w')"),
        "exec": evil,
        "subprocess": Calls(subprocess.Popen, ["touch", str(marker)]),
        "object array": objects,
        "float array": np.zeros(3),
        "another codec": Calls(codecs.encode, "abc", "rot13"),
        "a codec that unpacks": Calls(codecs.encode, b"abc", "zip"),
        "giant shape": array_state((10**12, 3072), b"abc"),
        "negative shape": array_state((-1, -3), b"abc"),
        "shape of strings": array_state(("3",), b"abc"),
        "state for a name": Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state=(None, {"a": 1})),
        "unfilled array": Calls(RECONSTRUCT, np.ndarray, (0,), b"b"),
        "foreign array type": Calls(RECONSTRUCT, np.ma.MaskedArray, (0,), b"b"),
    }
    command = f"touch {marker}".encode()
    tuples = b"K\x01" + b"\x85" * 100_000
    pairs = b"K\x01" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(100))
    return {
        **{name: pickle.dumps({"data": value}, 4) for name, value in values.items()},
        "os.system in protocol 0": b"cos\nsystem\n(S'" + command + b"'\ntR.",
        "os.system in protocol 2": pickle.dumps({"data": values["os.system"]}, 2),
        "a class by INST": b"(S'" + command + b"'\nios\nsystem\n.",
        "a class by NEWOBJ": b"\x80\x02cnumpy\nndarray\n)\x81.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent id": b"\x80\x02U\x01aQ.",
        "state for a function": b"\x80\x02c_codecs\nencode\n}U\x01aK\x01sb.",
        "a memo of gigabytes": b"\x80\x02}r\xff\xff\xff\x7f.",
        "a buffer of gigabytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        "a string of gigabytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".",
        "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "a deep key": b"\x80\x02}" + tuples + b"K\x01s.",
        "a key of 2^100 parts": b"\x80\x02}" + pairs + b"K\x01s.",
        "a list in itself": b"\x80\x02]q\x00h\x00a.",
        "marks that do not match": b"\x80\x02}(K\x01u.",
        "an empty stack": b"\x80\x02a.",
        "popping over a mark": b"\x80\x02K\x01(K\x02\x86.",
        "no end": b"\x80\x02}",
        "text": b"GIF89a and nothing more",
    }


@pytest.mark.parametrize("name", hostile(Path("marker")))
def test_hostile_pickles_are_refused_and_not_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "data_batch_1").write_bytes(hostile(marker)[name])
    with pytest.raises(UserError, match="data_batch_1 is not a CIFAR-10 batch") as caught:
        cifar10.read_python(tmp_path)
    assert not marker.exists()
    assert len(str(caught.value)) < 400


def test_the_hostile_pickles_would_have_run(tmp_path: Path) -> None:
    # Else the test above shows nothing.
    for name in ("os.system", "exec", "object array", "os.system in protocol 0", "a class by INST"):
        marker = tmp_path / name.replace(" ", "_")
        code = "import pickle, sys; pickle.load(sys.stdin.buffer)"
        subprocess.run([sys.executable, "-c", code], input=hostile(marker)[name], check=True)
        assert marker.exists(), name


def test_a_memo_number_takes_no_memory() -> None:
    # Python's own unpickler would allocate 32 GiB for this one.
    value = pickles.load(b"\x80\x02}r\xff\xff\xff\x7fU\x01aK\x01s.", "memo")
    assert value == {"a": 1}
