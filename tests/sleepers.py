"""A runtime whose speed the test chooses."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from cifar_deploy.data.dataset import Images
from cifar_deploy.runtimes.protocol import ANY, Bound, Logits, Runtime


class Sleeper:
    """It takes as long as it is told to for a batch, and remembers what it was given."""

    runtime, provider, device, precision = "sleeper", "CPU", "cpu", "fp32"
    batches: Sequence[range] = ANY
    addition = ""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds = seconds
        self.bound: list[int] = []
        self.calls = 0
        self.seen: list[bytes] = []
        self.used: list[int] = []  # the buffer of each call, numbered as they were bound

    def logits(self, images: Images) -> Logits:
        self.bind(images).run()
        return np.zeros((len(images), 10), np.float32)

    def streams(self, count: int) -> Sequence[Runtime]:
        return [self] * count

    def bind(self, images: Images) -> Bound:
        self.bound.append(len(images))
        number = len(self.bound)
        given = torch.from_numpy(images.copy())
        answer = torch.zeros(len(images), 10)

        def call() -> torch.Tensor:
            self.calls += 1
            self.used.append(number)
            self.seen.append(given[0].numpy().tobytes())
            time.sleep(self.seconds(len(images)))
            return answer

        return Bound(given, call)


def blank(count: int) -> Images:
    return np.zeros((count, 32, 32, 3), np.uint8)
