"""Is a file as accurate as its reference? A paired non-inferiority test over the same images.

Each image on which exactly one of the two is right counts; images on which both are right or both
are wrong tell nothing. The bound on the difference of the two accuracies is Tango's score interval
for paired proportions (Tango 1998, Statistics in Medicine 17:891-908), which holds about as well
with few or no such images, where the plain normal interval shrinks to nothing. It is an
approximation: of files that lose just the margin, some 3 to 7 % pass, and as many fail.
"""

import bisect
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Z95 = 1.6448536269514722  # one-sided 95 %

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
MOST_IMAGES = 10**9


@dataclass(frozen=True)
class Comparison:
    """A verdict and what it rests on. Accuracies and bounds are shares; the margin too."""

    images: int
    reference_accuracy: float
    accuracy: float
    lost: int  # images that the reference gets right and the file wrong
    gained: int  # the other way round
    upper: float  # one-sided 95 % upper bound of the accuracy lost
    margin: float
    verdict: str
    # Where INCONCLUSIVE: how many would tell, at just these rates. Of new images every second such
    # number would, as often as chance makes the rates more or less clear; of no loss, all.
    images_needed: int | None

    @property
    def difference(self) -> float:
        """Accuracy of the file less that of the reference, as a share."""
        return self.accuracy - self.reference_accuracy


def score_bound(lost: float, gained: float, images: float, z: float = Z95) -> float:
    """Upper bound, as a share, of the accuracy lost; with -z the lower bound.

    `lost` and `gained` are counts of discordant images among `images`.
    """
    observed = (lost - gained) / images
    low, high = (observed, 1.0) if z > 0 else (-1.0, observed)
    for _ in range(80):  # bisection: the statistic falls as the assumed loss rises
        middle = (low + high) / 2
        if _score(lost, gained, images, middle) > -z:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _score(lost: float, gained: float, images: float, loss: float) -> float:
    """Tango's statistic for the hypothesis that the accuracy lost is `loss`."""
    a = 2 * images
    b = -lost - gained + (2 * images - lost + gained) * loss
    c = -gained * loss * (1 - loss)
    rate = max((math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a), 0.0)
    variance = images * (2 * rate + loss * (1 - loss))
    numerator = lost - gained - images * loss
    if variance <= 0:
        return 0.0 if numerator == 0 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def compare(
    reference_right: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_], margin: float
) -> Comparison:
    """Judge a file by which images, bool [n], it and its reference get right.

    PASS: the upper bound of the accuracy lost is at most `margin` (a share). FAIL: the lower bound
    is above it. INCONCLUSIVE: too few images to tell.
    """
    images = len(right)
    lost = int((reference_right & ~right).sum())
    gained = int((~reference_right & right).sum())
    upper = score_bound(lost, gained, images)
    if upper <= margin:
        verdict = PASS
    elif score_bound(lost, gained, images, -Z95) > margin:
        verdict = FAIL
    else:
        verdict = INCONCLUSIVE
    return Comparison(
        images=images,
        reference_accuracy=float(reference_right.mean()),
        accuracy=float(right.mean()),
        lost=lost,
        gained=gained,
        upper=upper,
        margin=margin,
        verdict=verdict,
        images_needed=(
            _needed(lost / images, gained / images, margin) if verdict == INCONCLUSIVE else None
        ),
    )


@dataclass(frozen=True)
class ClassLoss:
    """What is lost of the images of one class, which has the number `label`."""

    label: int
    images: int
    lost: int
    gained: int


def worst_class(
    reference_right: npt.NDArray[np.bool_],
    right: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64],
    classes: int,
    margin: float,
) -> ClassLoss | None:
    """The class that loses the largest share of its images; None where none loses over `margin`.

    A class does where its lower bound is above it, at 95 % for all `classes` together (Bonferroni).
    `labels`, int [n], are the images' classes; the rest as in `compare`.
    """
    z = NormalDist().inv_cdf(1 - 0.05 / classes)
    images, lost, gained = (
        np.bincount(labels[chosen], minlength=classes).tolist()
        for chosen in (slice(None), reference_right & ~right, ~reference_right & right)
    )
    losing = [
        ClassLoss(*of_class)
        for of_class in zip(range(classes), images, lost, gained, strict=True)
        if of_class[1] and score_bound(of_class[2], of_class[3], of_class[1], -z) > margin
    ]
    return max(losing, key=lambda one: (one.lost - one.gained) / one.images, default=None)


def _needed(lost: float, gained: float, margin: float) -> int | None:
    """The smallest number of images that would tell at these rates; None where none would."""

    def tells(images: int) -> bool:
        if lost - gained < margin:
            return score_bound(lost * images, gained * images, images) <= margin
        return score_bound(lost * images, gained * images, images, -Z95) > margin

    if not tells(MOST_IMAGES):
        return None
    return 1 + bisect.bisect_left(range(1, MOST_IMAGES), True, key=tells)
