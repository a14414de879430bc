"""Which batches are tried; how they are timed is tested with the timing itself."""

import pytest
import torch
from sleepers import Sleeper, blank

from cifar_deploy import architectures
from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.protocol import Bound, Runtime
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.timing import BATCHES, BUFFERS
from cifar_deploy.validate.latency import Speed, measure


def timed(runtime: Runtime, images: Images, seconds: float) -> Speed:
    speed, _ = measure(runtime, images, seconds)
    assert speed
    return speed


@pytest.fixture
def network() -> Trained:
    torch.manual_seed(0)
    built = architectures.build("simple_cnn").eval()
    return Trained("simple_cnn", built, tuple("abcdefghij"), [0.5] * 3, [0.25] * 3, {})


def test_a_real_network(network: Trained, small_data: Dataset) -> None:
    speed = timed(PyTorch(network, torch.device("cpu")), small_data.test.images[:40], 0.02)
    batches = [timing.batch for timing in speed.sweep]
    assert batches in ([1, 8], [1, 8, 32])  # 40 images: never a batch of 128
    assert speed.smallest is speed.sweep[0]
    assert speed.best in speed.sweep


def test_the_sweep_goes_on_while_larger_batches_bring_more() -> None:
    runtime = Sleeper(lambda _: 0.02)  # long beside what a busy machine adds
    speed = timed(runtime, blank(1024), 0.1)
    assert [timing.batch for timing in speed.sweep] == list(BATCHES)
    assert runtime.bound == [batch for batch in BATCHES for _ in range(BUFFERS)]
    assert speed.best.batch == BATCHES[-1]


def test_the_sweep_ends_where_a_larger_batch_brings_nothing() -> None:
    speed = timed(Sleeper(lambda batch: 0.0005 * batch**2), blank(600), 0.01)
    assert [timing.batch for timing in speed.sweep] == [1, 8]
    assert speed.best.batch == 1


def test_a_batch_that_there_are_no_images_for_is_not_tried() -> None:
    runtime = Sleeper(lambda _: 0.001)
    assert [t.batch for t in timed(runtime, blank(1), 0.0).sweep] == [1]
    assert [t.batch for t in timed(runtime, blank(8), 0.0).sweep] == [1, 8]


def test_only_batches_that_the_runtime_takes_are_tried() -> None:
    runtime = Sleeper(lambda _: 0.001)
    runtime.batches = [range(4, 65)]
    assert [t.batch for t in timed(runtime, blank(64), 0.0).sweep] == [8, 32]
    runtime.batches = [range(24, 25)]
    speed = timed(runtime, blank(64), 0.0)
    assert (speed.smallest.batch, speed.best.batch, len(speed.sweep)) == (24, 24, 1)
    assert measure(runtime, blank(23), 0.0) == (None, "")


def test_the_sweep_ends_where_the_memory_is_full() -> None:
    class Small(Sleeper):
        error: Exception

        def bind(self, images: Images) -> Bound:
            if len(images) > 8:
                raise self.error
            return super().bind(images)

    runtime = Small(lambda _: 0.001)
    full = torch.OutOfMemoryError("CUDA out of memory")
    told = UserError("the GPU's memory does not hold a batch of 32")
    told.__cause__ = full
    for runtime.error in (
        full,
        told,
        torch.AcceleratorError("CUDA error: out of memory\nCompile with"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        UserError("ONNX Runtime cannot run a batch of 32: Failed to allocate memory"),
    ):
        assert [t.batch for t in timed(runtime, blank(64), 0.0).sweep] == [1, 8]
    # Whatever the reason, it is told.
    _, why = measure(runtime, blank(64), 0.0)
    assert why == f"batches from 32 on were not timed: {runtime.error}"
    runtime.error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"):
        measure(runtime, blank(64), 0.0)
    runtime.error = torch.AcceleratorError("CUDA error: unspecified launch failure\nmore")
    with pytest.raises(UserError, match=r"^sleeper: the GPU failed .*unspecified launch failure"):
        measure(runtime, blank(64), 0.0)
    runtime.error = UserError("the GPU failed during a run")
    runtime.error.__cause__ = torch.AcceleratorError("CUDA error")
    with pytest.raises(UserError, match="failed during"):
        measure(runtime, blank(64), 0.0)


def test_without_memory_for_the_first_batch_there_is_no_speed() -> None:
    class Full(Sleeper):
        def bind(self, images: Images) -> Bound:
            raise torch.OutOfMemoryError("CUDA out of memory")

    speed, why = measure(Full(lambda _: 0.0), blank(8), 0.0)
    assert speed is None
    assert why.startswith("batches from 1 on were not timed: ")


@pytest.mark.gpu
def test_on_cuda_the_copies_count(network: Trained, small_data: Dataset) -> None:
    speed = timed(PyTorch(network, torch.device("cuda", 0)), small_data.test.images[:64], 0.05)
    # None is left out where a larger one brings less.
    assert [timing.batch for timing in speed.sweep] == [1, 8, 32]
    for timing in speed.sweep:
        assert timing.latency.p50 > timing.compute.p50
