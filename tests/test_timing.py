"""What is timed and how often, not how fast it is."""

import math
import time
from dataclasses import astuple

import numpy as np
import pytest
import torch
from sleepers import Sleeper, blank

from cifar_deploy import architectures, timing
from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.runtimes.protocol import Bound
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.timing import (
    BUFFERS,
    FEWEST_CALLS,
    STREAMS,
    Call,
    Lane,
    Pool,
    Times,
    Timing,
    collect,
    steady,
    stream,
    summarise,
    time_batch,
    warm_up,
)

CPU = torch.device("cpu")


@pytest.fixture
def network() -> Trained:
    torch.manual_seed(0)
    built = architectures.build("simple_cnn").eval()
    classes = tuple("abcdefghij")
    return Trained("simple_cnn", built, classes, [0.5] * 3, [0.25] * 3, {})


def assert_sound(one: Times | None) -> None:
    assert one
    assert 0 < one.min <= one.p50 <= one.p90 <= one.p99 < math.inf


def test_a_real_network_on_a_cpu(network: Trained, small_data: Dataset) -> None:
    runtime = PyTorch(network, CPU)
    found = time_batch(runtime, Pool(small_data.test.images, CPU), 8, 0.02)
    assert found.calls >= FEWEST_CALLS
    assert_sound(found.latency)
    # No copies: one time, and it is the host's.
    assert found.latency == found.compute == found.end_to_end
    assert (found.h2d, found.d2h, found.enqueue) == (None, None, None)
    assert found.images_per_second == pytest.approx(8000 / found.end_to_end.p50)


def test_a_sleep_is_timed_in_milliseconds() -> None:
    found = time_batch(Sleeper(lambda _: 0.01), Pool(blank(4), CPU), 4, 0.05)
    assert 10 <= found.latency.min < 20
    assert found.images_per_second == pytest.approx(4000 / found.latency.p50)


def test_every_call_has_other_images_and_buffers_take_turns(small_data: Dataset) -> None:
    runtime = Sleeper(lambda _: 0.0)
    lane = Lane(runtime, Pool(small_data.test.images, CPU), 2)
    assert runtime.bound == [2] * BUFFERS
    for _ in range(40):
        lane.call()
    assert len(set(runtime.seen)) == 40
    assert runtime.used == [1, 2] * 20


def test_the_first_call_has_what_is_made_for_it_once_and_nothing_later() -> None:
    class Making(Sleeper):
        """Its second buffers take longer."""

        def bind(self, images: Images) -> Bound:
            time.sleep(0.1 if not self.bound else 1.0)
            return super().bind(images)

    runtime = Making(lambda _: 0.2 if runtime.calls == 1 else 1.0)
    lane = Lane(runtime, Pool(blank(2), CPU), 2)
    assert 300 <= lane.first() < 1000
    assert runtime.calls == 1


def test_the_pool_is_larger_than_a_cache_and_comes_round(small_data: Dataset) -> None:
    few = small_data.test.images[:100]
    pool = Pool(few, CPU)
    assert pool.images.nbytes >= timing.LEAST_POOL
    assert len(np.unique(pool.images.numpy().reshape(len(pool.images), -1), axis=0)) == len(
        pool.images
    )
    first = pool.take(60).clone()
    taken = 60
    while taken + 60 <= len(pool.images):
        pool.take(60)
        taken += 60
    assert torch.equal(pool.take(60), first)
    assert Pool(blank(1), CPU).take(1).shape == (1, 32, 32, 3)


def test_the_pool_holds_the_largest_batch() -> None:
    pool = Pool(blank(100), CPU)
    large = len(pool.images) + 1
    with pytest.raises(AssertionError):  # never fewer images than are counted
        pool.take(large)
    assert Pool(blank(100), CPU, large).take(large).shape == (large, 32, 32, 3)


def test_quantiles_are_of_the_parts_and_of_their_sum() -> None:
    calls = [Call(1.0, float(i), 0.5, 0.2, 2.0 + i) for i in range(1, 102)]
    found = summarise(4, calls, on_cuda=True)
    assert found.compute == Times(1, 51, 91, 100)
    assert found.latency == Times(2.5, 52.5, 92.5, 101.5)
    assert found.h2d == Times(1, 1, 1, 1)
    assert found.d2h == Times(0.5, 0.5, 0.5, 0.5)
    assert found.enqueue == Times(0.2, 0.2, 0.2, 0.2)
    assert found.images_per_second == pytest.approx(4000 / 53)


def test_few_seconds_still_give_enough_calls() -> None:
    assert len(collect(lambda: Call(0, 1, 0, 0, 1), 0.0)) == FEWEST_CALLS


def test_a_slow_call_is_not_warmed_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.05)
    runtime = Sleeper(lambda _: 0.1)
    time_batch(runtime, Pool(blank(1), CPU), 1, 0.0)
    assert runtime.calls == 1 + FEWEST_CALLS


def test_warming_up_ends_although_times_never_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.2)
    runtime = Sleeper(lambda _: 0.001 * 1.1**runtime.calls)
    start = time.perf_counter()
    warm_up(Lane(runtime, Pool(blank(1), CPU), 1))
    assert time.perf_counter() - start < 3


def test_warming_up_ends_when_times_are_steady() -> None:
    window = timing.WINDOW
    values = [100.0] * window + [10.0] * window + [1.0] * 1_000
    left = iter(values)
    steady(lambda: next(left))
    # Two slow windows, and two of the same median.
    assert len(list(left)) == len(values) - 4 * window


def test_slow_calls_are_steady_in_shorter_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 2.0)
    runtime = Sleeper(lambda _: 0.3)  # two windows of eight would take twice the time
    assert warm_up(Lane(runtime, Pool(blank(1), CPU), 1))
    rising = Sleeper(lambda _: 0.05 * 1.3**rising.calls)
    assert not warm_up(Lane(rising, Pool(blank(1), CPU), 1))


def test_clocks_have_their_time_to_rise() -> None:
    start = time.perf_counter()
    steady(lambda: 1.0, least=0.1)
    assert 0.1 <= time.perf_counter() - start < 1


@pytest.mark.gpu
def test_on_cuda_events_time_the_parts(network: Trained, small_data: Dataset) -> None:
    device = torch.device("cuda", 0)
    runtime = PyTorch(network, device)
    pool = Pool(small_data.test.images, device)
    assert pool.images.is_pinned()
    assert pool.images.nbytes > torch.cuda.get_device_properties(device).L2_cache_size
    lane = Lane(runtime, pool, 64)
    assert 0 < lane.first() < math.inf
    warm_up(lane)
    calls = collect(lane.call, 0.1)
    for call in calls:
        assert min(call) > 0
        # The host waits for what the GPU does.
        assert call.h2d + call.compute + call.d2h <= call.host * 1.05 + 0.05
        assert call.enqueue <= call.host
    found: Timing = summarise(64, calls, lane.on_cuda)
    for part in (found.latency, found.compute, found.h2d, found.d2h, found.enqueue):
        assert_sound(part)
    assert found.latency.p50 > found.compute.p50
    assert astuple(found.latency) != astuple(found.end_to_end)


@pytest.mark.gpu
def test_streams_are_others_whoever_asked_for_some_between() -> None:
    first = [stream("cuda:0", number) for number in range(3)]
    for _ in range(STREAMS - 5):
        torch.cuda.Stream()  # type: ignore[no-untyped-call]
    streams = [stream("cuda:0", number) for number in range(STREAMS)]
    assert streams[:3] == first
    assert len({one.cuda_stream for one in streams}) == STREAMS


@pytest.mark.gpu
def test_on_cuda_the_copied_images_are_those_computed(
    network: Trained, small_data: Dataset
) -> None:
    runtime = PyTorch(network, torch.device("cuda", 0))
    pool = Pool(small_data.test.images, torch.device("cuda", 0))
    lane = Lane(runtime, pool, 16)
    for start in (0, 16, 32):
        lane.call()
        expected = runtime.logits(pool.images[start : start + 16].numpy())
        np.testing.assert_allclose(lane._answer.numpy(), expected, atol=1e-4)
