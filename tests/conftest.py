"""What several rooms' tests share: the data sets, quick training, and what to skip and why."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cifar_deploy import export_model
from cifar_deploy.data import find, synthetic
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.engines import flavour
from cifar_deploy.engines.flavour import Flavour
from cifar_deploy.errors import UserError
from cifar_deploy.store import ModelFolder

ROOT = Path(__file__).parents[1]
# What takes minutes of a processor, the longest first: begun last, it would be waited for.
LONG = ("export", "cpp", "test_cli.py", "train", "test_gpu_script.py", "benchmark", "validate")
NO_DATA = "the real CIFAR-10 is not here: set CIFAR_DEPLOY_DATA or put it under data/"


@pytest.fixture(autouse=True)
def subnormal_numbers() -> Iterator[None]:
    """There are some again after a training in a test's own process, which flushes them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def real_data() -> Dataset:
    """The real CIFAR-10; the test is skipped where it is not to be had without a download.

    A damaged copy, or a variable that names no data set, is an error and not a skip.
    """
    if not os.environ.get(find.DATA_VARIABLE) and not Path("data").exists():
        pytest.skip(NO_DATA)
    try:
        return find.load(download=False)
    except UserError as error:
        if os.environ.get(find.DATA_VARIABLE):
            raise
        pytest.skip(f"{NO_DATA} ({error})")


@pytest.fixture(scope="session")
def small_data() -> Dataset:
    """A small generated data set: 2,000 training and 500 test images."""
    return synthetic.generate(train=2_000, test=500)


@pytest.fixture(scope="session")
def rtx() -> Flavour:
    """TensorRT for RTX, which builds engines without a GPU; it exists for Linux x86-64 only."""
    try:
        return flavour.load(flavour.RTX)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def exported_cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository's simple_cnn with its ONNX files in fp32 and fp16; not to be changed."""
    place = tmp_path_factory.mktemp("models") / "simple_cnn"
    shutil.copytree(ROOT / "models" / "simple_cnn", place)
    export_model(place, precision=("fp32", "fp16"))
    return place


@pytest.fixture
def own_cnn(exported_cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """The same in models/ of the present directory, which is the test's own."""
    shutil.copytree(exported_cnn, tmp_path / "models" / "simple_cnn")
    monkeypatch.setenv(find.DATA_VARIABLE, str((find.named() or Path("data")).absolute()))
    monkeypatch.delenv("CIFAR_DEPLOY_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)
    return ModelFolder(Path("models/simple_cnn"))


@pytest.fixture
def ctrl_c() -> Callable[[], None]:
    """Ctrl-C for this process."""
    return lambda: os.kill(os.getpid(), signal.SIGINT)


def pytest_configure() -> None:
    # A shell makes what it runs in the background deaf to Ctrl-C, nohup to a terminal that closes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # A test that imports OpenVINO by itself is not to tell Google Analytics of it.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def top(item: pytest.Item) -> str:
        return item.path.relative_to(Path(__file__).parent).parts[0]

    items.sort(key=lambda item: (*LONG, top(item)).index(top(item)))
    for item in items:  # what a folder's session fixtures make is made once
        # Those of train/ are nothing, and its tests the most of all.
        group = item.path.name if top(item) == "train" else top(item)
        item.add_marker(pytest.mark.xdist_group(group))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; there is none here"))
