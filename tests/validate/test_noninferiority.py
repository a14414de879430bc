"""Tango's bound against published values and an independent evaluation, and the verdicts."""

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from cifar_deploy.errors import points
from cifar_deploy.validate.noninferiority import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    Z95,
    Comparison,
    compare,
    score_bound,
    worst_class,
)

Right = npt.NDArray[np.bool_]
Z975 = 1.959963984540054  # two-sided 95 %

COUNTS = [
    (0, 0, 10_000),
    (1, 0, 10_000),
    (0, 1, 10_000),
    (9, 0, 10_000),
    (5, 5, 10_000),
    (40, 3, 10_000),
    (3, 40, 10_000),
    (2_000, 900, 10_000),
    (7, 1, 21),
    (0, 12, 12),
]


def answers(images: int, lost: int, gained: int) -> tuple[Right, Right]:
    """Who is right: the reference and the file, on all images but those lost and gained."""
    reference, file = np.ones(images, bool), np.ones(images, bool)
    file[:lost] = False
    reference[lost : lost + gained] = False
    return reference, file


def judged(images: int, lost: int, gained: int, margin: float) -> Comparison:
    return compare(*answers(images, lost, gained), margin)


def statistic(lost: int, gained: int, images: int, loss: float) -> float:
    """Tango's statistic by its definition: the score at the maximum of the likelihood under
    P(lost) - P(gained) = loss. The maximum is where the derivative by P(gained), which falls,
    crosses zero; no closed form is used.
    """

    def derivative(gain: float) -> float:
        same = images - lost - gained
        value = -2 * same / (1 - 2 * gain - loss)
        value += lost / (gain + loss) if lost else 0
        return value + (gained / gain if gained else 0)

    low, high = max(0.0, -loss), (1 - loss) / 2
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if derivative(middle) > 0 else (low, middle)
    gain = (low + high) / 2
    return (lost - gained - images * loss) / math.sqrt(images * (2 * gain + loss - loss**2))


@pytest.mark.parametrize("images", [1, 50, 1_000, 10_000, 10**8])
def test_without_discordant_images_the_bound_is_known(images: int) -> None:
    assert score_bound(0, 0, images) == pytest.approx(Z95**2 / (images + Z95**2), rel=1e-12)


@pytest.mark.parametrize(
    ("lost", "gained", "images", "z", "lower", "upper"),
    [
        # Fagerland, Lydersen & Laake, Statistical Analysis of Contingency Tables, ch. 8 (Cavo et
        # al. 2012), as their R package contingencytables asserts it
        (16, 6, 161, Z975, 0.0054, 0.1240),
        # PropCIs::scoreci.mp(25, 28, 618, conf.level = 0.9) in R
        (28, 25, 618, Z95, -0.0148, 0.0247),
        # PropCIs::scoreci.mp(20, 60, 1000, conf.level = 0.95) in R
        (60, 20, 1_000, Z975, 0.0231, 0.0584),
    ],
)
def test_published_intervals(
    lost: int, gained: int, images: int, z: float, lower: float, upper: float
) -> None:
    assert score_bound(lost, gained, images, z) == pytest.approx(upper, abs=5.1e-5)
    assert score_bound(lost, gained, images, -z) == pytest.approx(lower, abs=5.1e-5)


@pytest.mark.parametrize(("lost", "gained", "images"), COUNTS)
@pytest.mark.parametrize("z", [Z95, Z975, 0.5])
def test_the_bound_is_the_root_of_the_statistic(
    lost: int, gained: int, images: int, z: float
) -> None:
    upper = score_bound(lost, gained, images, z)
    assert statistic(lost, gained, images, upper) == pytest.approx(-z, abs=1e-6)
    if gained < images:  # else the lower bound is -1, where the statistic has no root
        lower = score_bound(lost, gained, images, -z)
        assert statistic(lost, gained, images, lower) == pytest.approx(z, abs=1e-6)
        assert lower < (lost - gained) / images < upper


@pytest.mark.parametrize(("lost", "gained", "images"), COUNTS)
def test_swapping_lost_and_gained_mirrors_the_bounds(lost: int, gained: int, images: int) -> None:
    upper = score_bound(lost, gained, images)
    assert score_bound(gained, lost, images, -Z95) == pytest.approx(-upper, abs=1e-12)


@pytest.mark.parametrize("gained", [0, 1, 30])
def test_every_image_lost_raises_the_bound(gained: int) -> None:
    bounds = [score_bound(lost, gained, 1_000) for lost in range(60)]
    assert (np.diff(bounds) > 1e-6).all()


@pytest.mark.parametrize(
    ("lost", "gained"), [(0.0010, 0.0), (0.0015, 0.0005), (0.0030, 0.0020), (0.0110, 0.0100)]
)
def test_coverage(lost: float, gained: float) -> None:
    # The true loss is the margin: PASS and FAIL are both wrong, each in at most 5 % of the sets.
    images, margin, sets = 10_000, 0.001, 2_000
    random = np.random.default_rng(7)
    drawn = random.multinomial(images, [lost, gained, 1 - lost - gained], sets)
    verdicts: Counter[str] = Counter()
    for (one, other), times in Counter((int(a), int(b)) for a, b, _ in drawn).items():
        upper, lower = (score_bound(one, other, images, z) for z in (Z95, -Z95))
        verdicts[PASS] += times * (upper <= margin)
        verdicts[FAIL] += times * (lower > margin)
    simulated = 3 * math.sqrt(0.05 * 0.95 / sets)
    assert verdicts[PASS] / sets <= 0.05 + simulated
    assert verdicts[FAIL] / sets <= 0.05 + simulated
    # A test that never passes would cover too; this one is no more timid than it must be.
    assert verdicts[PASS] / sets >= 0.01


def test_what_a_comparison_says() -> None:
    comparison = judged(1_000, 7, 3, 0.05)
    assert (comparison.images, comparison.lost, comparison.gained) == (1_000, 7, 3)
    assert comparison.reference_accuracy == pytest.approx(0.997)
    assert comparison.accuracy == pytest.approx(0.993)
    assert comparison.difference == pytest.approx(-0.004)
    assert comparison.upper == score_bound(7, 3, 1_000)
    assert comparison.verdict == PASS
    assert comparison.images_needed is None


def test_images_that_both_get_wrong_change_nothing() -> None:
    reference, file = answers(1_000, 7, 3)
    reference[500:] = file[500:] = False
    assert compare(reference, file, 0.05).upper == score_bound(7, 3, 1_000)


def test_identical_answers_pass_where_there_are_enough() -> None:
    assert judged(10_000, 0, 0, 0.0005).verdict == PASS
    few = judged(1_000, 0, 0, 0.0005)
    assert few.verdict == INCONCLUSIVE
    assert few.images_needed
    assert judged(few.images_needed, 0, 0, 0.0005).verdict == PASS
    assert judged(few.images_needed - 1, 0, 0, 0.0005).verdict == INCONCLUSIVE


def test_a_clear_loss_fails() -> None:
    failed = judged(10_000, 100, 10, 0.001)
    assert failed.verdict == FAIL
    assert failed.images_needed is None


def test_a_clear_gain_passes() -> None:
    assert judged(1_000, 0, 100, 0.0005).verdict == PASS


def test_images_needed_to_fail() -> None:
    few = judged(1_000, 3, 0, 0.001)
    assert few.verdict == INCONCLUSIVE
    assert few.images_needed
    times = few.images_needed // 1_000  # whole thousands keep the rate of 3 lost
    assert judged(1_000 * times, 3 * times, 0, 0.001).verdict == INCONCLUSIVE
    assert judged(1_000 * (times + 1), 3 * (times + 1), 0, 0.001).verdict == FAIL


def test_no_number_of_images_tells_a_loss_that_is_the_margin() -> None:
    even = judged(1_000, 1, 0, 0.001)
    assert even.verdict == INCONCLUSIVE
    assert even.images_needed is None


def test_the_worst_class_loses_the_largest_share_and_too_much_for_one_of_many() -> None:
    def worst(*classes: tuple[int, int, int]) -> int | None:
        """Of so many images, lost and gained ones in each class."""
        both = [answers(*each) for each in classes]
        reference, file = (np.concatenate(rights) for rights in zip(*both, strict=True))
        labels = np.repeat(np.arange(len(classes)), [images for images, _, _ in classes])
        found = worst_class(reference, file, labels, len(classes), 0.01)
        if found:
            assert (found.images, found.lost, found.gained) == classes[found.label]
        return found.label if found else None

    assert score_bound(5, 0, 100, -Z95) > 0.01  # of one class it would be too much
    assert worst(*[(100, 0, 0)] * 9, (100, 5, 0)) is None
    assert worst(*[(100, 0, 0)] * 9, (100, 7, 0)) is None  # of five of them it would be
    assert worst(*[(100, 0, 0)] * 9, (100, 9, 0)) == 9
    assert worst((400, 60, 0), (100, 40, 0), (100, 70, 50), (0, 0, 0)) == 1


def test_a_margin_of_nothing_is_never_passed_by_equals() -> None:
    equal = judged(10_000, 0, 0, 0.0)
    assert equal.verdict == INCONCLUSIVE
    assert equal.images_needed is None


def test_images_needed_where_what_is_lost_is_regained() -> None:
    few = judged(1_000, 20, 19, 0.005)  # 2 points lost, and 0.1 in all
    assert few.verdict == INCONCLUSIVE
    assert few.images_needed
    times = few.images_needed // 1_000
    assert judged(1_000 * times, 20 * times, 19 * times, 0.005).verdict == INCONCLUSIVE
    times += 1
    assert judged(1_000 * times, 20 * times, 19 * times, 0.005).verdict == PASS


def test_a_bound_in_points_is_rounded_up() -> None:
    assert points(0.0010007, 3) == "0.101"
    assert points(0.001, 3) == "0.100"  # as it is
    assert points(0.002001, 2) == "0.21"
    assert points(-0.00049, 2) == "-0.04"
    fp16 = judged(10_000, 14, 13, 0.001)
    assert (fp16.verdict, points(fp16.upper, 3)) == (INCONCLUSIVE, "0.101")
