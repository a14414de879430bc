import contextlib
import functools
import hashlib
import http.server
import io
import os
import pickle
import signal
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import python
from torchvision.datasets import CIFAR10

from cifar_deploy.data import find, synthetic
from cifar_deploy.errors import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working folder, no variable, no proxy, and an address that nobody answers."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv(find.DATA_VARIABLE, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.socket() as deaf:  # bound, so that no other has the port, and not listening
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{port}/{CIFAR10.filename}")
        yield


def test_order_of_places(
    picture_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, variable = picture_folder("flag"), picture_folder("variable")
    picture_folder("work/data")
    small = functools.partial(synthetic.generate, train=20, test=10)
    monkeypatch.setattr(synthetic, "generate", small)
    assert find.load().origin == "data"
    monkeypatch.setenv(find.DATA_VARIABLE, str(variable))
    assert find.load().name == "variable"
    assert find.load(data_dir=flag).name == "flag"
    assert find.load("synthetic").name == "synthetic"
    with pytest.raises(UserError, match=r"flag is a folder; leave one out"):
        find.load("synthetic", data_dir=flag)
    monkeypatch.setenv(find.DATA_VARIABLE, "")
    assert find.load().origin == "data"


def test_named_but_missing(
    picture_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture_folder("work/data")  # is not taken instead
    with pytest.raises(UserError, match=r"^--data-dir: .*nowhere does not exist"):
        find.load(data_dir=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(find.DATA_VARIABLE, str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"^\$CIFAR_DEPLOY_DATA: .*empty holds no data set"):
        find.load()
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(UserError, match="--data mnist: it can be auto or synthetic"):
        find.load("mnist")


def test_a_file_where_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "cifar-10.tar.gz").touch()
    with pytest.raises(UserError, match=r"cifar-10\.tar\.gz holds no data set"):
        find.load(data_dir=tmp_path / "cifar-10.tar.gz")


def test_the_batches_folder_itself_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").touch()
    with pytest.raises(UserError, match=r"data_batch_1\.bin has 0 bytes"):
        find.load(data_dir=tmp_path)


def test_neither_data_nor_network(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        find.load()
    message = str(caught.value)
    assert "no CIFAR-10 in data/ and none could be downloaded" in message
    assert "refused" in message
    for way_out in ("--data-dir", "$CIFAR_DEPLOY_DATA", "--data synthetic"):
        assert way_out in message
    assert message.count("\n") < 2
    assert not Path("data").exists()
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="no data set in data/; name one with --data-dir"):
        find.load(download=False)


# --- the download, from a server on this machine ---


def archive(seed: int = 0) -> bytes:
    """A tar of the official layout. Its images are black, which makes it small."""
    labels = np.random.default_rng(seed).integers(0, 10, 10_000).tolist()
    batch = pickle.dumps({"data": np.zeros((10_000, 3072), np.uint8), "labels": labels}, 2)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            entry = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            entry.size = len(batch)
            tar.addfile(entry, io.BytesIO(batch))
    return packed.getvalue()


@contextlib.contextmanager
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}"
        monkeypatch.setattr(CIFAR10, "url", address)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = archive()
    (tmp_path / CIFAR10.filename).write_bytes(raw)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(raw).hexdigest())
    with served(tmp_path, monkeypatch):
        dataset = find.load()
    assert dataset.origin == "data/cifar-10-batches-py"
    assert (len(dataset.train), len(dataset.test)) == (50_000, 10_000)
    assert [path.name for path in Path("data").iterdir()] == ["cifar-10-batches-py"]
    assert capsys.readouterr().out == ""
    assert socket.getdefaulttimeout() is None
    assert find.load(download=False).sha256 == dataset.sha256


def test_what_a_killed_download_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = archive()
    (tmp_path / CIFAR10.filename).write_bytes(raw)
    script = f"""
import os, signal, sys
from torchvision.datasets import CIFAR10
from cifar_deploy.data import find
CIFAR10.url, CIFAR10.tgz_md5 = sys.argv[1], "{hashlib.md5(raw).hexdigest()}"
def die(event, arguments):
    if event == "open" and str(arguments[0]).endswith("data_batch_2"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
find.load()
"""
    others = Path("data", f".download-{os.getpid()}-of-who-lives")
    others.mkdir(parents=True)
    with served(tmp_path, monkeypatch):
        killed = python("-c", script, CIFAR10.url)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len([*Path("data").glob(".download-*/*.tar.gz")]) == 1
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(raw).hexdigest())
        find.load()
    assert {path.name for path in Path("data").iterdir()} == {"cifar-10-batches-py", others.name}


@pytest.mark.parametrize("damage", ["cut short", "another file"])
def test_a_damaged_archive_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    raw = archive()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(raw).hexdigest())
    wrong = raw[: len(raw) // 2] if damage == "cut short" else archive(1)
    (tmp_path / CIFAR10.filename).write_bytes(wrong)
    Path("data").mkdir()
    Path("data/notes.txt").write_text("mine")
    with served(tmp_path, monkeypatch):
        for _ in range(2):
            with pytest.raises(UserError, match="none could be downloaded"):
                find.load()
            assert [path.name for path in Path("data").iterdir()] == ["notes.txt"]
