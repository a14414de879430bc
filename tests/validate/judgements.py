"""Judgements made of chosen answers, for what is drawn of them."""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cifar_deploy.data.dataset import Dataset
from cifar_deploy.timing import Times, Timing
from cifar_deploy.validate.judgement import Judged, Judgement, Unusable
from cifar_deploy.validate.latency import Speed
from cifar_deploy.validate.noninferiority import compare

Answers = npt.NDArray[np.int64]  # a class for each test image
MakeJudgement = Callable[..., Judgement]


def judgement_of(
    data: Dataset,
    files: dict[str, Answers],
    *,
    model: str = "simple_cnn",
    classes: tuple[str, ...] | None = None,
    unusable: dict[str, str] | None = None,
    timed: bool = True,
) -> Judgement:
    """`files` give these answers, and the reference the right ones; the margin is 1 point."""
    classes = classes or data.classes
    labels = data.test.labels

    def row(file: str | None, answers: Answers, milliseconds: float) -> Judged:
        is_reference = file is None
        right = answers == labels
        return Judged(
            file=file or "PyTorch (reference)",
            runtime="PyTorch 2.15.0" if is_reference else "ONNX Runtime 1.31.1",
            provider="CPU" if is_reference else "CPUExecutionProvider",
            device="cpu",
            precision="fp32",
            bytes=250_000,
            logits=np.eye(len(classes), dtype=np.float32)[answers],
            predictions=answers,
            accuracy=float(right.mean()),
            comparison=None if is_reference else compare(np.ones_like(right), right, 0.01),
            agreement=float(right.mean()),
            largest_difference=float(not right.all()),
            speed=_speed(milliseconds) if timed else None,
        )

    rows = [row(None, labels, 0.5)]
    rows += [row(name, answers, 0.2 + i) for i, (name, answers) in enumerate(files.items())]
    return Judgement(
        model=model,
        classes=classes,
        split=data.test,
        rows=tuple(rows),
        unusable=tuple(Unusable(name, why) for name, why in (unusable or {}).items()),
        facts={
            "data": {
                "name": "synthetic",
                "verified": "generated",
                "sha256": data.sha256,
                "same_as_training": True,
                "test_set_of_training": True,
                "images": len(data.test),
                "whole_test_set": True,
            },
            "weights_sha256": "0" * 64,
            "device": "Some CPU, 2 threads",
            "threads": 2,
            "versions": {"python": "3.12.1", "torch": "2.15.0", "onnxruntime-gpu": "1.31.1"},
            "remarks": [],
        },
    )


def mistaken(judgement: Judgement, logits: npt.NDArray[np.float32]) -> Judgement:
    """`judgement` by a reference that gives these `logits`."""
    first, *files = judgement.rows
    first = dataclasses.replace(first, logits=logits, predictions=logits.argmax(1))
    return dataclasses.replace(judgement, rows=(first, *files))


def mistakes(labels: Answers, count: int) -> npt.NDArray[np.float32]:
    """Logits, right but for `count` images, of which each is the next class, more or less surely.

    One of these classes is ruled out.
    """
    logits = 5 * np.eye(10, dtype=np.float32)[labels]
    wrong = np.random.default_rng(3).permutation(len(labels))[:count]
    logits[wrong] = 0
    logits[wrong, (labels[wrong] + 1) % 10] = np.linspace(1, 8, count)
    logits[wrong[-2], labels[wrong[-2]]] = -np.inf
    return logits


def _speed(milliseconds: float) -> Speed:
    def timing(batch: int) -> Timing:
        p50 = milliseconds * batch**0.8
        spent = Times(0.9 * p50, p50, 1.1 * p50, 1.2 * p50)
        return Timing(batch, 100, spent, spent, None, None, None, spent, 1000 * batch / p50)

    sweep = tuple(timing(batch) for batch in (1, 8, 32))
    return Speed(sweep[0], sweep[-1], sweep)
