"""PyTorch, ONNX Runtime and OpenVINO behind the protocol, on one small model."""

import contextlib
import io
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from processes import python

from cifar_deploy import architectures
from cifar_deploy.architectures import weights
from cifar_deploy.data import cifar10
from cifar_deploy.data.dataset import Images
from cifar_deploy.device import pick
from cifar_deploy.disk import sha256_of, write_json
from cifar_deploy.errors import UserError
from cifar_deploy.export.onnx_file import PRECISIONS, export_onnx
from cifar_deploy.export.quantise import Calibration
from cifar_deploy.runtimes.load import (
    ONNX,
    ONNXRUNTIME,
    OPENVINO,
    check_file,
    open_file,
    open_model,
    open_runtime,
)
from cifar_deploy.runtimes.onnx_interface import Pixels
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime, preload
from cifar_deploy.runtimes.openvino import OpenVino
from cifar_deploy.runtimes.protocol import BATCH, Runtime
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.store import ModelFolder, manifest_path

CPU = torch.device("cpu")
CALIBRATION = Calibration(
    np.random.default_rng(6).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8), {}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """An untrained simple_cnn, saved and exported."""
    made = ModelFolder(tmp_path_factory.mktemp("models") / "simple_cnn")
    torch.manual_seed(3)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    facts = weights.header("simple_cnn", "cifar", cifar10.CLASSES, mean, std)
    weights.save(made.weights, architectures.build("simple_cnn").state_dict(), facts)
    card = {"network": "simple_cnn", "weights": {"sha256": sha256_of(made.weights)}}
    write_json(made.card, card)
    for precision in PRECISIONS:
        export_onnx(made, precision, CALIBRATION)
    return made


@pytest.fixture(scope="module")
def images() -> Images:
    generator = np.random.default_rng(5)
    return generator.integers(0, 256, (BATCH + 3, 32, 32, 3), dtype=np.uint8)


def test_pytorch_is_the_network_on_normalised_pixels(folder: ModelFolder, images: Images) -> None:
    trained = weights.load(folder)
    logits = PyTorch(trained, CPU).logits(images)
    pixels = images.astype(np.float64) / 255
    normal = (pixels - trained.mean) / trained.std
    with torch.no_grad():
        network = trained.network.double()
        expected = network(torch.from_numpy(normal).permute(0, 3, 1, 2)).numpy()
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.fixture(params=list(ONNX))
def by(request: pytest.FixtureRequest) -> str:
    """What runs ONNX files."""
    pytest.importorskip(request.param)
    return str(request.param)


def test_onnx_files_agree_and_say_what_ran(folder: ModelFolder, images: Images, by: str) -> None:
    reference = PyTorch(weights.load(folder), CPU).logits(images)
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 2e-2), ("int8", 2e-2)):
        runtime = open_runtime(folder.onnx(precision), CPU, onnx=by)
        said = {ONNXRUNTIME: "CPUExecutionProvider", OPENVINO: "CPU"}
        assert runtime.provider == said[by]
        assert runtime.runtime.lower().replace(" ", "").startswith(by)
        assert runtime.addition == ""
        assert runtime.precision == precision
        assert runtime.device == "cpu"
        logits = runtime.logits(images)
        assert logits.shape == (BATCH + 3, 10)
        np.testing.assert_allclose(logits, reference, atol=tolerance)


def test_a_bound_call_runs_the_same_inference(folder: ModelFolder, images: Images, by: str) -> None:
    opened: list[Runtime] = [
        PyTorch(weights.load(folder), CPU),
        open_runtime(folder.onnx("fp32"), CPU, onnx=by),
    ]
    for runtime in opened:
        bound, other = runtime.bind(images[:4]), runtime.bind(images[:4])
        assert (bound.given.dtype, bound.given.shape) == (torch.uint8, (4, 32, 32, 3))
        np.testing.assert_allclose(bound.run(), runtime.logits(images[:4]), atol=1e-5)
        # What is written into one's input changes its next run, and no other's.
        bound.given.copy_(torch.from_numpy(images[4:8]))
        np.testing.assert_allclose(bound.run(), runtime.logits(images[4:8]), atol=1e-5)
        np.testing.assert_allclose(other.run(), runtime.logits(images[:4]), atol=1e-5)
        assert bound.run().dtype == torch.float32


def test_classes_come_from_the_file(folder: ModelFolder, tmp_path: Path) -> None:
    assert open_file(folder.onnx("fp32"), CPU)[1] == cifar10.CLASSES
    assert open_model(folder, CPU)[1] == cifar10.CLASSES
    model = onnx.load(folder.onnx("fp32"))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "nameless.onnx")
    assert open_file(tmp_path / "nameless.onnx", CPU)[1] == tuple("0123456789")
    with pytest.raises(UserError, match="no exported format"):
        open_file(folder.weights, CPU)


def test_a_file_is_read_once_to_be_opened(
    folder: ModelFolder, images: Images, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one takes a while to be parsed and checked."""
    check, checked = onnx.checker.check_model, []

    def seen(model: onnx.ModelProto) -> None:
        checked.append(model)
        check(model)

    monkeypatch.setattr(onnx.checker, "check_model", seen)
    runtime, _ = open_file(folder.onnx("fp32"), CPU, onnx=by)
    expected = runtime.logits(images)
    for one in runtime.streams(2):
        np.testing.assert_allclose(one.logits(images), expected, atol=1e-5)
    assert len(checked) == 1


def test_check_file_wants_the_weights_it_was_exported_from(
    folder: ModelFolder, tmp_path: Path
) -> None:
    file = folder.onnx("fp32")
    check_file(file, sha256_of(folder.weights))
    with pytest.raises(UserError, match="exported from other weights"):
        check_file(file, "0" * 64)
    copy = tmp_path / file.name
    shutil.copy(file, copy)
    with pytest.raises(UserError, match="exported from other weights"):
        check_file(copy, "0" * 64)  # without a manifest the file itself says so
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, copy)
    check_file(copy, "0" * 64)  # there is nothing to hold it to
    shutil.copy(file, copy)
    shutil.copy(manifest_path(file), manifest_path(copy))
    copy.write_bytes(copy.read_bytes() + b"\0")
    with pytest.raises(UserError, match="does not match its manifest"):
        check_file(copy)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_takes_any_number_of_images_and_refuses_another_batch(
    batch: int, folder: ModelFolder, images: Images, tmp_path: Path, by: str
) -> None:
    expected = OnnxRuntime(folder.onnx("fp32"), CPU).logits(images[:5])
    model = onnx.load(folder.onnx("fp32"))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, tmp_path / "fixed.onnx")
    runtime = open_runtime(tmp_path / "fixed.onnx", CPU, onnx=by)
    for count in (1, 2, 5):
        np.testing.assert_allclose(runtime.logits(images[:count]), expected[:count], atol=1e-5)
    with pytest.raises(UserError, match="cannot run a batch of 2"):
        runtime.bind(images[:2]).run()


def test_a_gpu_that_is_not_there_is_refused_and_not_replaced() -> None:
    with pytest.raises(UserError, match="use --device cpu"):
        pick(f"cuda:{torch.cuda.device_count()}")


GPU = torch.device("cuda", 0)


def open_pytorch(folder: ModelFolder) -> Runtime:
    return PyTorch(weights.load(folder), GPU)


def open_onnx_runtime(folder: ModelFolder) -> Runtime:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is built without CUDA")
    return OnnxRuntime(folder.onnx("fp32"), GPU)


ON_CUDA = pytest.mark.parametrize("opened", [open_pytorch, open_onnx_runtime])


@pytest.mark.gpu
@ON_CUDA
def test_cuda_runs_on_cuda(
    folder: ModelFolder, images: Images, opened: Callable[[ModelFolder], Runtime]
) -> None:
    reference = PyTorch(weights.load(folder), CPU).logits(images)
    runtime = opened(folder)
    assert runtime.provider in ("CUDA", "CUDAExecutionProvider")
    np.testing.assert_allclose(runtime.logits(images), reference, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", [False, True])
def test_all_of_an_int8_graph_runs_on_cuda(
    folder: ModelFolder, images: Images, engine: bool
) -> None:
    """Which has no layers of 8 bits: the roundings are the graph's, and fp32 is between them."""
    path = export_onnx(folder, "int8", CALIBRATION, engine=engine)
    reference = OnnxRuntime(path, CPU).logits(images)
    answer = OnnxRuntime(path, GPU).logits(images)
    # Roundings fall to another side here and there.
    assert np.abs(answer - reference).max() < 0.05 * np.ptp(reference)


@pytest.mark.gpu
@ON_CUDA
def test_bound_calls_stand_beside_each_other_on_streams_of_their_own(
    folder: ModelFolder, images: Images, opened: Callable[[ModelFolder], Runtime]
) -> None:
    reference = PyTorch(weights.load(folder), CPU).logits(images)
    runtime = opened(folder)
    streams = [torch.cuda.Stream(GPU), torch.cuda.Stream(GPU)]
    bound = []
    for stream, part in zip(streams, (images[:8], images[8:16]), strict=True):
        with torch.cuda.stream(stream):
            bound.append(runtime.bind(part))
    answers = []
    for _ in range(3):
        answers = []
        for stream, one in zip(streams, bound, strict=True):
            with torch.cuda.stream(stream):
                answers.append(one.run())
    torch.cuda.synchronize()
    found = torch.cat(answers).cpu().numpy()
    np.testing.assert_allclose(found, reference[:16], atol=1e-3)
    # And on the default stream, with the input written just before.
    alone = runtime.bind(images[:8])
    alone.given.copy_(torch.from_numpy(images[16:24]), non_blocking=True)
    np.testing.assert_allclose(alone.run().cpu().numpy(), reference[16:24], atol=1e-3)


@pytest.mark.parametrize("name", list(ONNX))
def test_without_the_library_it_is_said(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    package = {ONNXRUNTIME: "onnxruntime-gpu", OPENVINO: r"'cifar-deploy\[openvino\]'"}[name]
    with pytest.raises(UserError, match=f"pip install {package}"):
        open_runtime(folder.onnx("fp32"), CPU, onnx=name)


def test_a_signal_after_openvino_is_handled(folder: ModelFolder) -> None:
    """A stack for signals that was freed would end the process (it did, with a Core a model)."""
    pytest.importorskip("openvino")
    code = (
        "import os, signal, sys, torch; from pathlib import Path\n"
        "from cifar_deploy.runtimes.openvino import OpenVino\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
        "one, two = (OpenVino(Path(p), torch.device('cpu')) for p in sys.argv[1:])\n"
        "del one; del two\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = python("-c", code, folder.onnx("fp32"), folder.onnx("fp16"))
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_openvino_is_for_cpus(folder: ModelFolder) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(UserError, match="OpenVINO does not run on cuda; use --device cpu"):
        OpenVino(folder.onnx("fp32"), torch.device("cuda", 0))


def test_a_foreign_file_gets_its_pixels(
    folder: ModelFolder, images: Images, tmp_path: Path, by: str
) -> None:
    trained = weights.load(folder)
    path = tmp_path / "foreign.onnx"
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, example = trained.network, torch.zeros(1, 3, 32, 32)
        torch.onnx.export(network, (example,), path, verbose=False, external_data=False)
    pixels = Pixels(trained.mean, trained.std)
    runtime = open_runtime(path, CPU, pixels=pixels, onnx=by)
    wanted = PyTorch(trained, CPU).logits(images[:5])
    np.testing.assert_allclose(runtime.logits(images[:5]), wanted, atol=1e-4)
    np.testing.assert_allclose(runtime.bind(images[2:3]).run(), wanted[2:3], atol=1e-4)
    assert runtime.addition.startswith("takes float32 [1, 3, 32, 32] and gives float32: here mean ")
    with pytest.raises(UserError, match="only validate, layers, profile, and bench"):
        open_runtime(path, CPU, onnx=by)


def test_what_onnx_runtime_prints_does_not_disturb_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> None:
        print("Failed to load libcublas.so.12")

    monkeypatch.setattr(onnxruntime, "preload_dlls", failing)
    preload()
    assert capsys.readouterr() == ("", "Failed to load libcublas.so.12\n")
