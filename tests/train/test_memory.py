"""Memory: the batch that fits."""

import pytest

from cifar_deploy.train.memory import largest


@pytest.mark.parametrize("room", [1, 2, 3, 7, 100, 333, 511, 512, 1000, 1023])
@pytest.mark.parametrize("failed", [1024, 100_000])
def test_the_largest_batch_is_found(room: int, failed: int) -> None:
    asked = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= room

    found = largest(fits, failed)
    assert room * 15 / 16 - 8 < found <= room
    assert found >= 1
    assert max(asked) < failed
    assert len(asked) < 30


def test_no_batch_may_fit() -> None:
    assert largest(lambda size: False, 100) == 0
