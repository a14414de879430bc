"""In which batches a set of images goes through a runtime."""

import numpy as np
import pytest

from cifar_deploy.data.dataset import Images
from cifar_deploy.runtimes.protocol import (
    ANY,
    BATCH,
    Logits,
    in_batches,
    takes,
    unversioned,
    words,
)


@pytest.mark.parametrize(
    ("batches", "count", "sizes"),
    [
        (ANY, 3, [3]),
        (ANY, BATCH + 1, [BATCH, 1]),
        ([range(1, 5)], 10, [4, 4, 2]),
        ([range(4, 65)], 1, [4]),
        ([range(4, 65)], 66, [64, 4]),
        ([range(24, 25)], 50, [24, 24, 24]),
        ([range(1024, 1025)], 1500, [1024, 1024]),
        # 1, and from 8 to 64: what falls between is filled up to 8.
        ([range(1, 2), range(8, 65)], 1, [1]),
        ([range(1, 2), range(8, 65)], 66, [64, 8]),
    ],
)
def test_only_batches_that_are_taken(batches: list[range], count: int, sizes: list[int]) -> None:
    run: list[int] = []

    def answer(images: Images) -> Logits:
        assert any(len(images) in taken for taken in batches)
        run.append(len(images))
        return images[:, 0, 0, :2].astype(np.float32)

    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(
        in_batches(answer, images, batches), images[:, 0, 0, :2].astype(np.float32)
    )
    assert run == sizes


def test_a_batch_of_any_profile_is_taken() -> None:
    batches = [range(1, 9), range(64, 65)]
    assert [takes(batches, batch) for batch in (1, 8, 9, 64)] == [True, True, False, True]
    assert words(batches) == "1 to 8, 64"
    assert unversioned("TensorRT for RTX 1.7.1.116") == "TensorRT for RTX"
