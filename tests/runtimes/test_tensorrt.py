"""The TensorRT runtime on a GPU: against ONNX Runtime's answers on a CPU."""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpus import supported

from cifar_deploy import architectures
from cifar_deploy.architectures import weights
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.disk import sha256_of, write_json
from cifar_deploy.engines import cache, flavour
from cifar_deploy.engines.options import Options, Profile
from cifar_deploy.errors import UserError
from cifar_deploy.export.engine import export_engine
from cifar_deploy.export.onnx_file import export_onnx
from cifar_deploy.export.quantise import Calibration
from cifar_deploy.runtimes.load import check_file, open_file, open_runtime
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime
from cifar_deploy.runtimes.tensorrt import (
    TensorRT,
    _aside,
    _Lane,
    _Own,
    _preparing,
    _Threads,
    shares,
)
from cifar_deploy.store import ModelFolder, manifest_path

CPU = torch.device("cpu")
CLASSES = [f"class {i}" for i in range(10)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A network with random weights and its fp32 ONNX file."""
    folder = ModelFolder(tmp_path_factory.mktemp("models") / "simple_cnn")
    folder.path.mkdir()
    torch.manual_seed(3)
    facts = weights.header("simple_cnn", "cifar", CLASSES, [0.5] * 3, [0.25] * 3)
    stored = weights.stored(architectures.build("simple_cnn"), "fp32")
    weights.save(folder.weights, stored, facts)
    card = {
        "network": "simple_cnn",
        "test_accuracy": 0.1,
        "weights": {"file": folder.weights.name, "sha256": sha256_of(folder.weights)},
    }
    write_json(folder.card, card)
    export_onnx(folder, "fp32")
    return folder


# The same answers as of `profile_of` in cpp/tests/unit.cpp.
@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        ([(1, 128, 1024)], [(1, 1024, 0)]),
        (
            [(8, 8, 16), (1, 64, 64), (100, 100, 100)],
            [(1, 7, 1), (8, 16, 0), (17, 64, 1), (100, 100, 2)],
        ),
        ([(1, 1, 32), (1, 32, 64), (1, 33, 64)], [(1, 16, 0), (17, 32, 1), (33, 64, 2)]),
        ([(1, 2, 9), (1, 4, 9)], [(1, 3, 0), (4, 9, 1)]),
    ],
)
def test_a_batch_is_run_by_the_profile_that_is_tuned_nearest_to_it(
    profiles: list[tuple[int, int, int]], expected: list[tuple[int, int, int]]
) -> None:
    found = shares(profiles)
    assert [(sizes[0], sizes[-1], index) for sizes, index in found] == expected
    for batch in range(1, 1100):  # each by itself
        taking = [i for i, (low, _, high) in enumerate(profiles) if low <= batch <= high]
        nearest = sorted(taking, key=lambda i: abs(profiles[i][1] - batch))[:1]
        assert [index for sizes, index in found if batch in sizes] == nearest


def names() -> list[str]:
    found = []
    for name in flavour.NAMES:
        try:
            flavour.load(name)
        except UserError:
            continue
        found.append(name)
    return found


@pytest.fixture(scope="module", params=names())
def engine(request: pytest.FixtureRequest, trained: ModelFolder) -> Path:
    """An engine of each flavour that can be built here, for batches of 4 to 64."""
    try:
        chosen, _ = flavour.choose(request.param, torch.cuda.is_available())
    except UserError as error:
        pytest.skip(str(error))
    with supported():
        return export_engine(trained, "fp32", chosen, Options(profiles=(Profile(4, 16, 64),)))


@pytest.fixture(scope="module")
def images(small_data: Dataset) -> Images:
    return small_data.test.images[:200]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


# --- without a GPU ------------------------------------------------------------------------------


def test_an_engine_is_checked_without_running_it(engine: Path, trained: ModelFolder) -> None:
    check_file(engine, weights.load(trained).card["weights"]["sha256"])
    with pytest.raises(UserError, match="was exported from other weights"):
        check_file(engine, "0" * 64)
    copied = engine.with_name("copied.engine")
    copied.write_bytes(engine.read_bytes())
    with pytest.raises(UserError, match="has no manifest"):
        check_file(copied)
    check_file(copied, trust=True)
    copied.unlink()


def test_without_a_gpu_it_says_so(engine: Path) -> None:
    for opening in (TensorRT, open_runtime, open_file):
        with pytest.raises(UserError, match="runs on a CUDA GPU; none is here"):
            opening(engine, CPU)


def own() -> _Own:
    """A thread's things without a GPU."""
    lane = _Lane(None, torch.zeros(1), torch.zeros(1), torch.zeros(1), None, None, print)
    return _Own(None, {1: lane})  # type: ignore[arg-type]


def in_thread(work: Callable[[], Any]) -> Any:
    """The answer of `work` in a thread that has ended; its number is the next one's."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_an_ended_threads_lanes_are_freed_only_when_told() -> None:
    threads = _Threads(own)
    mine = threads.mine()
    assert threads.mine() is mine
    ended = [in_thread(lambda: weakref.ref(threads.mine().lanes[1])) for _ in range(3)]
    # Not at its end, when another thread may be capturing; nor are they the next thread's.
    assert len({id(lane()) for lane in ended} - {id(None)}) == 3
    with _preparing:
        threads.let_go()
    assert [lane() for lane in ended] == [None] * 3
    assert threads.mine() is mine
    assert [kept for _, kept in threads._kept] == [mine]


def test_torch_can_end_a_capture_that_failed() -> None:
    # It is torch's own, and private.
    assert callable(torch._C._cuda_endAllocateToPool)


# --- on a GPU -----------------------------------------------------------------------------------


@pytest.fixture
def runtime(engine: Path) -> TensorRT:
    """The engine, loaded; skipped where the library does not support this GPU."""
    with supported():
        return TensorRT(engine, torch.device("cuda", 0))


@pytest.fixture(scope="module")
def expected(trained: ModelFolder, images: Images) -> Any:
    return OnnxRuntime(trained.onnx("fp32"), CPU).logits(images)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 3, 4, 16, 64, 65, 200])
def test_logits_are_those_of_the_onnx_file(
    count: int, runtime: TensorRT, images: Images, expected: Any
) -> None:
    # Below the profile's smallest batch it is filled up, above its largest it is split.
    answer = runtime.logits(images[:count])
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, expected[:count], atol=1e-3)


@pytest.mark.gpu
@pytest.mark.usefixtures("runtime")  # skips where this GPU is not supported
def test_an_int8_engine_answers_as_its_graph(
    engine: Path, trained: ModelFolder, small_data: Dataset, images: Images
) -> None:
    chosen = flavour.load(engine.name.split(".")[-2])
    calibration = Calibration.of(small_data, 64)
    path = export_engine(trained, "int8", chosen, Options(), calibration=calibration)
    runtime = TensorRT(path, torch.device("cuda", 0))
    graph = trained.onnx("int8", engine=True)
    expected, whole = (
        OnnxRuntime(file, CPU).logits(images) for file in (graph, trained.onnx("fp32"))
    )
    answer = runtime.logits(images)
    assert runtime.precision == "int8"
    # Roundings fall to another side here and there.
    assert np.abs(answer - expected).max() < 0.05 * np.ptp(expected)
    assert np.abs(answer - whole).max() > 0


@pytest.mark.gpu
def test_a_second_batch_of_the_same_size_is_not_the_first(
    runtime: TensorRT, images: Images, expected: Any
) -> None:
    for start in (0, 64, 128):
        answer = runtime.logits(images[start : start + 64])
        np.testing.assert_allclose(answer, expected[start : start + 64], atol=1e-3)


@pytest.mark.gpu
def test_bound_buffers_take_new_images(runtime: TensorRT, images: Images, expected: Any) -> None:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        bound = runtime.bind(images[:16])
        first = bound.run().cpu().numpy()
        bound.given.copy_(torch.from_numpy(images[16:32]))
        second = bound.run().cpu().numpy()
    np.testing.assert_allclose(first, expected[:16], atol=1e-3)
    np.testing.assert_allclose(second, expected[16:32], atol=1e-3)


@pytest.mark.gpu
def test_tensorrt_replays_a_graph(runtime: TensorRT, engine: Path, images: Images) -> None:
    lane: Any = runtime.bind(images[:16]).run
    # That of TensorRT for RTX is the library's affair.
    assert (lane.__self__.graph is not None) == (flavour.RTX not in engine.name)


@pytest.mark.gpu
def test_a_capture_that_fails_is_told_and_leaves_torch_whole(
    runtime: TensorRT, images: Images, expected: Any
) -> None:
    class Uncapturable:
        def execute_async_v3(self, _: int) -> bool:
            torch.cuda.synchronize()  # which is forbidden meanwhile
            return True

    runtime._opened.flavour.log.clear()
    before = torch.cuda.current_stream()
    for _ in range(2):
        with pytest.raises(UserError, match=r"cannot capture it: .*captur"):
            runtime._capture(Uncapturable(), _aside(torch.device("cuda", 0)))
        assert torch.cuda.current_stream() == before
        torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    given = torch.ones(4, device="cuda")
    with torch.cuda.graph(graph):
        doubled = given * 2
    graph.replay()
    assert doubled.tolist() == [2.0] * 4
    np.testing.assert_allclose(runtime.logits(images[:16]), expected[:16], atol=1e-3)


@pytest.mark.gpu
def test_a_capture_that_was_broken_is_made_again(runtime: TensorRT, images: Images) -> None:
    lane: Any = runtime.bind(images[:16]).run
    context, tried = lane.__self__.context, []

    class Disturbed:
        def execute_async_v3(self, stream: int) -> bool:
            tried.append(stream)
            if len(tried) == 1:
                torch.cuda.synchronize()  # as another thread may, which breaks it in any mode
            return bool(context.execute_async_v3(stream))

    graph = runtime._capture(Disturbed(), _aside(torch.device("cuda", 0)))
    assert len(tried) == 2
    expected = lane().cpu()
    graph.replay()
    assert torch.equal(lane.__self__.result.cpu(), expected)


@pytest.mark.gpu
def test_a_small_batch_takes_little_memory(runtime: TensorRT, images: Images) -> None:
    lanes: list[Any] = [runtime.bind(images[:batch]).run for batch in (4, 64)]
    small, large = (len(lane.__self__.memory) for lane in lanes)
    assert 0 < small < large


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3, 65])
def test_a_batch_outside_the_profile_is_refused(
    batch: int, runtime: TensorRT, images: Images
) -> None:
    with pytest.raises(UserError, match=f"a batch of {batch} is outside its profile .4 to 64"):
        runtime.bind(images[:batch])


@pytest.mark.gpu
def test_threads_do_not_disturb_each_other(
    runtime: TensorRT, images: Images, expected: Any
) -> None:
    answers: dict[int, Any] = {}

    def work(number: int) -> None:
        for _ in range(20):
            answers[number] = runtime.logits(images[number * 40 : number * 40 + 40])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(5))
    for number, answer in answers.items():
        rows = expected[number * 40 : number * 40 + 40]
        np.testing.assert_allclose(answer, rows, atol=1e-3)


@pytest.mark.gpu
def test_compiled_kernels_are_kept(
    engine: Path, runtime: TensorRT, images: Images, expected: Any
) -> None:
    if flavour.RTX not in engine.name:
        pytest.skip("TensorRT compiles nothing at the first run")
    runtime.logits(images[:16])
    (kept,) = cache.folder().glob("kernels-*.cache")
    again = TensorRT(engine, torch.device("cuda", 0))
    assert again._kernels is not None
    assert again._kernels._saved == kept.stat().st_size  # taken, and not compiled anew
    np.testing.assert_allclose(again.logits(images[:16]), expected[:16], atol=1e-3)
    kept.write_bytes(b"changed")  # which is noticed, and made anew
    third = TensorRT(engine, torch.device("cuda", 0))
    np.testing.assert_allclose(third.logits(images[:16]), expected[:16], atol=1e-3)


@pytest.mark.gpu
def test_classes_are_the_manifests(engine: Path, runtime: TensorRT) -> None:
    _, classes = open_file(engine, torch.device("cuda", 0))
    assert list(classes) == CLASSES
    assert runtime.precision == "fp32"


@pytest.mark.gpu
def test_a_trusted_engine_needs_no_manifest(
    engine: Path, runtime: TensorRT, images: Images, expected: Any, tmp_path: Path
) -> None:
    copied = tmp_path / engine.name
    copied.write_bytes(engine.read_bytes())
    assert not manifest_path(copied).exists()
    trusted = TensorRT(copied, torch.device("cuda", 0), trust=True)
    np.testing.assert_allclose(trusted.logits(images[:16]), expected[:16], atol=1e-3)


@pytest.mark.gpu
def test_a_stripped_engine_gets_its_weights_back(
    engine: Path, runtime: TensorRT, trained: ModelFolder, images: Images, expected: Any
) -> None:
    name = engine.name.split(".")[-2]
    whole = engine.read_bytes(), manifest_path(engine).read_bytes()
    options = Options(profiles=(Profile(4, 16, 64),), strip_weights=True)
    try:
        path = export_engine(trained, "fp32", flavour.load(name), options)
        answer = TensorRT(path, torch.device("cuda", 0)).logits(images[:16])
        np.testing.assert_allclose(answer, expected[:16], atol=1e-3)
    finally:
        engine.write_bytes(whole[0])
        manifest_path(engine).write_bytes(whole[1])


@pytest.mark.gpu
def test_memory_that_does_not_suffice_is_told(engine: Path, runtime: TensorRT) -> None:
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(max(free - (64 << 20), 1), dtype=torch.uint8, device="cuda")
    images = np.zeros((64, 32, 32, 3), np.uint8)
    try:
        with pytest.raises(UserError, match=r"memory does not hold a batch of 64: .* MiB are free"):
            [runtime.bind(images) for _ in range(2000)]
    finally:
        del taken
        torch.cuda.empty_cache()
