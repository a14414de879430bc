import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from sleepers import Sleeper, blank

from cifar_deploy.architectures import weights
from cifar_deploy.benchmark.flight import flight, slots
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime
from cifar_deploy.runtimes.openvino import OpenVino
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.store import ModelFolder
from cifar_deploy.timing import Pool

CPU = torch.device("cpu")


def test_batches_in_flight_overlap() -> None:
    all_four = threading.Barrier(4, timeout=30)  # nobody passes before four are in flight

    def meet(_: int) -> float:
        all_four.wait()
        return 0.0

    runtime = Sleeper(meet)
    made = flight(runtime, Pool(blank(8), CPU), 4, 4)
    calls = runtime.calls
    assert made.fly(0.0).images == 16
    assert runtime.calls == calls + 4


def test_every_batch_in_flight_has_buffers_and_a_thread_of_its_own(small_data: Dataset) -> None:
    threads: set[int] = set()
    all_three = threading.Barrier(3)

    def meet(_: int) -> float:
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            all_three.wait(60)  # else two that are quick could do the third one's work
        return 0.005

    runtime = Sleeper(meet)
    made = flight(runtime, Pool(small_data.test.images, CPU), 2, 3)
    assert runtime.bound == [2, 2, 2]
    threads.clear()
    calls = runtime.calls
    flown = made.fly(0.05)
    assert len(threads) == 3
    assert flown.images == 2 * (runtime.calls - calls)
    assert flown.seconds >= 0.05


def test_batches_in_flight_share_the_threads(measured: ModelFolder, small_data: Dataset) -> None:
    pool, before = Pool(small_data.test.images, CPU), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        runtime = OnnxRuntime(measured.onnx("fp32"), CPU)
        shared = [one._session().get_session_options() for one in runtime.streams(2)]
        assert [options.intra_op_num_threads for options in shared] == [2, 2]
        assert flight(runtime, pool, 4, 2).fly(0.0).images == 8
        assert runtime.streams(2) is runtime.streams(2)  # loaded once
        seen: set[int] = set()
        flight(Sleeper(lambda _: float(seen.add(torch.get_num_threads()) or 0)), pool, 4, 2)
        assert seen == {2}  # torch's own
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_what_is_compiled_is_compiled_for_the_threads_in_flight(
    measured: ModelFolder, small_data: Dataset, compiled_graphs: Callable[[], int]
) -> None:
    runtime = PyTorch(weights.load(measured), CPU, compiled=True)
    made = flight(runtime, Pool(small_data.test.images, CPU), 2, 2)
    assert made.fly(0.0).images == 4
    assert compiled_graphs() == 1


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO")
def test_openvino_has_a_stream_a_batch(measured: ModelFolder, small_data: Dataset) -> None:
    images = small_data.test.images
    runtime = OpenVino(measured.onnx("fp32"), CPU)
    assert runtime.streams(1) == [runtime]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one, other = runtime.streams(2)
    finally:
        torch.set_num_threads(before)
    assert one is other
    assert one._compiled.get_property("NUM_STREAMS") == 2
    np.testing.assert_allclose(one.logits(images[:4]), runtime.logits(images[:4]), atol=1e-4)
    assert flight(runtime, Pool(images, CPU), 4, 2).fly(0.0).images == 8


def test_no_time_still_sends_each_once() -> None:
    runtime = Sleeper(lambda _: 0.001)
    flown = flight(runtime, Pool(blank(8), CPU), 8, 2).fly(0.0)
    assert flown.images == 16
    assert flown.seconds >= 0.001  # those that it took, not those that were asked for


def test_every_call_in_flight_is_timed_but_the_first_of_each() -> None:
    began: set[int] = set()

    def seconds(_: int) -> float:
        first = threading.get_ident() not in began
        began.add(threading.get_ident())
        return 1.0 if first else 0.01

    made = flight(Sleeper(seconds), Pool(blank(8), CPU), 4, 2)
    began.clear()
    flown = made.fly(1.2)
    assert len(flown.milliseconds) == flown.images // 4 - 2
    assert min(flown.milliseconds) >= 10
    # Each batch's calls follow one another: their times cannot be more than those of the flight.
    assert sum(flown.milliseconds) / 1000 <= 2 * flown.seconds - 2 * 1.0
    began.clear()
    assert min(made.fly(0.0).milliseconds) >= 1000  # there are no others


def test_on_a_gpu_no_more_is_in_flight_than_there_are_streams() -> None:
    class OnGpu:
        device = "cuda:0"

    runtime: Any = OnGpu()
    said = r"^33 batches in flight: .* torch has 32; ask for fewer$"
    with pytest.raises(UserError, match=said):
        slots(runtime, np.zeros((1, 32, 32, 3), np.uint8), 33)


def test_an_error_in_flight_comes_out() -> None:
    def fail(_: int) -> float:
        if runtime.calls > 4:
            raise RuntimeError("broken")
        return 0.0

    runtime = Sleeper(fail)
    made = flight(runtime, Pool(blank(4), CPU), 1, 2)
    with pytest.raises(RuntimeError, match="broken"):
        made.fly(30.0)


def test_a_slot_answers_what_it_was_sent(measured: ModelFolder, small_data: Dataset) -> None:
    runtime = OnnxRuntime(measured.onnx("fp32"), CPU)
    images = small_data.test.images
    places = slots(runtime, images[:8], 2)
    for start in (0, 8, 16):
        places[start % 2].send(torch.from_numpy(images[start : start + 8]))
        places[start % 2].wait()
        np.testing.assert_allclose(
            places[start % 2].answer, runtime.logits(images[start : start + 8]), atol=1e-5
        )


@pytest.mark.gpu
@pytest.mark.parametrize("one_stream", [False, True])
def test_slots_on_streams_do_not_mix(
    measured: ModelFolder, small_data: Dataset, one_stream: bool
) -> None:
    runtime = PyTorch(weights.load(measured), torch.device("cuda", 0))
    images = small_data.test.images
    pinned = torch.from_numpy(images).pin_memory()
    expected = runtime.logits(images[:96])
    places = slots(runtime, images[:16], 3, one_stream)
    for _ in range(20):
        for i, place in enumerate(places):
            place.send(pinned[16 * i : 16 * i + 16])
    for i, place in enumerate(places):
        place.wait()
        np.testing.assert_allclose(place.answer.numpy(), expected[16 * i : 16 * i + 16], atol=1e-4)
        assert place.took() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("one_stream", [False, True])
def test_a_flight_on_cuda_waits_for_the_last_batch(
    measured: ModelFolder, small_data: Dataset, one_stream: bool
) -> None:
    device = torch.device("cuda", 0)
    runtime = PyTorch(weights.load(measured), device)
    made = flight(runtime, Pool(small_data.test.images, device), 64, 4, one_stream)
    start = time.perf_counter()
    flown = made.fly(0.2)
    spent = time.perf_counter() - start
    assert 0.2 <= flown.seconds <= spent
    assert flown.images % 64 == 0
    assert flown.images >= 4 * 64
    assert len(flown.milliseconds) == flown.images // 64 - 4
    assert min(flown.milliseconds) > 0
    # A slot's calls follow one another; the clocks of the host and of the GPU are two.
    assert sum(flown.milliseconds) / 1000 <= 1.05 * 4 * flown.seconds
