"""What is timed and how often, not how fast it is."""

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cifar_deploy import architectures
from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.runtimes.protocol import Bound, Logits
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.validate import latency
from cifar_deploy.validate.latency import FEWEST_CALLS, Timing, measure


@pytest.fixture
def network() -> Trained:
    torch.manual_seed(0)
    built = architectures.build("simple_cnn").eval()
    classes = tuple("abcdefghij")
    return Trained("simple_cnn", built, classes, [0.5] * 3, [0.25] * 3, {})


class Sleeper:
    """A runtime that takes as long as it is told to."""

    runtime, provider, device, precision = "sleeper", "CPU", "cpu", "fp32"

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds = seconds
        self.bound: list[int] = []
        self.calls = 0

    def logits(self, images: Images) -> Logits:
        self.bind(images).run()
        return np.zeros((len(images), 10), np.float32)

    def bind(self, images: Images) -> Bound:
        self.bound.append(len(images))
        answer = torch.zeros(len(images), 10)

        def call() -> torch.Tensor:
            self.calls += 1
            time.sleep(self.seconds(len(images)))
            return answer

        return Bound(torch.from_numpy(images), call)


def images(count: int) -> Images:
    return np.zeros((count, 32, 32, 3), np.uint8)


def assert_sound(timing: Timing) -> None:
    assert timing.calls >= FEWEST_CALLS
    assert 0 < timing.p50 <= timing.p90 <= timing.p99 < math.inf
    assert 0 < timing.with_copies_p50 <= timing.with_copies_p99 < math.inf
    assert timing.images_per_second == pytest.approx(1000 * timing.batch / timing.p50)


def test_a_real_network(network: Trained, small_data: Dataset) -> None:
    runtime = PyTorch(network, torch.device("cpu"))
    speed = measure(runtime, small_data.test.images[:40], 0.02)
    batches = [timing.batch for timing in speed.sweep]
    assert batches in ([1, 8], [1, 8, 32])  # 40 images: never a batch of 128
    for timing in speed.sweep:
        assert_sound(timing)
        # A CPU has no copies: the same calls are counted.
        assert (timing.with_copies_p50, timing.with_copies_p99) == (timing.p50, timing.p99)
    assert speed.single is speed.sweep[0]
    assert speed.best in speed.sweep


def test_the_sweep_goes_on_while_larger_batches_bring_more() -> None:
    runtime = Sleeper(lambda _: 0.002)
    speed = measure(runtime, images(600), 0.01)
    assert [timing.batch for timing in speed.sweep] == [1, *latency.BATCHES]
    assert runtime.bound == [1, *latency.BATCHES]
    assert speed.best.batch == latency.BATCHES[-1]


def test_the_sweep_ends_where_a_larger_batch_brings_nothing() -> None:
    runtime = Sleeper(lambda batch: 0.0005 * batch**2)
    speed = measure(runtime, images(600), 0.01)
    assert [timing.batch for timing in speed.sweep] == [1, 8]
    assert speed.best.batch == 1


def test_a_batch_that_there_are_no_images_for_is_not_tried() -> None:
    runtime = Sleeper(lambda _: 0.001)
    assert [t.batch for t in measure(runtime, images(1), 0.0).sweep] == [1]
    assert [t.batch for t in measure(runtime, images(8), 0.0).sweep] == [1, 8]


def test_few_seconds_still_give_enough_calls() -> None:
    speed = measure(Sleeper(lambda _: 0.001), images(1), 0.0)
    assert speed.single.calls == FEWEST_CALLS


def test_a_slow_call_is_not_warmed_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "WARM_UP_SECONDS", 0.05)
    runtime = Sleeper(lambda _: 0.1)
    measure(runtime, images(1), 0.0)
    assert runtime.calls == 1 + FEWEST_CALLS


def test_warming_up_ends_although_times_never_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "WARM_UP_SECONDS", 0.2)
    runtime = Sleeper(lambda _: 0.001 * 1.1**runtime.calls)
    start = time.perf_counter()
    measure(runtime, images(1), 0.0)
    assert time.perf_counter() - start < 3


def test_calls_before_times_are_steady_do_not_count() -> None:
    # Milliseconds of calls: two slow windows, then steady ones.
    window = latency.WINDOW
    times = iter([100.0] * window + [10.0] * window + [1.0] * 1_000)
    assert latency._collect(lambda: next(times), 0.0) == [1.0] * FEWEST_CALLS


@pytest.mark.gpu
def test_cuda_events_time_the_computation(network: Trained, small_data: Dataset) -> None:
    runtime = PyTorch(network, torch.device("cuda", 0))
    speed = measure(runtime, small_data.test.images[:64], 0.05)
    assert [timing.batch for timing in speed.sweep][:2] == [1, 8]
    for timing in speed.sweep:
        assert_sound(timing)
        # Measured apart, with the copies to the device and back.
        assert timing.with_copies_p50 != timing.p50
