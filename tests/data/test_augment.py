import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as vision
from torchvision.transforms import InterpolationMode

from cifar_deploy.data import augment as change
from cifar_deploy.data import policy
from cifar_deploy.data.augment import (
    alternating,
    apply,
    augment,
    draw,
    mix,
    mixes,
    ways_to_mix,
)
from cifar_deploy.data.colour import GREY
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.recipe import Augment

MEAN = (0.4914, 0.4822, 0.4465)
OFF = Augment(flip=False, translate=0)
TRIVIAL = Augment(flip=False, translate=0, policy="trivial")
ALL = Augment(
    *(True, 4, "zero", 8, 0.2, 0.2, 0.2),
    **{"vertical_flip": True, "rotate": 30.0, "scale": 0.3, "policy": "trivial"},
)


def noise(n: int, low: int = 0, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(low, high, (n, 32, 32, 3), generator=generator, dtype=torch.uint8)


def moved(image: torch.Tensor, reach: int, border: str) -> dict[bytes, tuple[bool, int, int]]:
    """Every flip and offset of an image [32, 32, 3], by torch's own padding and cropping."""
    variants = {}
    planes = image.permute(2, 0, 1)[None].float()
    mode = "reflect" if border == "reflect" else "constant"
    for flip in (False, True):
        padded = F.pad(planes.flip(-1) if flip else planes, [reach] * 4, mode=mode)
        for dy in range(2 * reach + 1):
            for dx in range(2 * reach + 1):
                crop = padded[0, :, dy : dy + 32, dx : dx + 32].permute(1, 2, 0).to(torch.uint8)
                variants[crop.numpy().tobytes()] = (flip, dy - reach, dx - reach)
    return variants


@pytest.mark.parametrize("border", ["reflect", "zero"])
def test_flip_and_translation_are_torchs_pad_and_crop(border: str) -> None:
    torch.manual_seed(0)
    image = noise(1)[0]
    variants = moved(image, 2, border)
    assert len(variants) == 2 * 5 * 5
    options = Augment(flip=True, translate=2, border=border)
    found = augment(image.expand(2_000, -1, -1, -1), options, MEAN)
    assert found.dtype == torch.uint8
    counts = dict.fromkeys(variants.values(), 0)
    for each in found.numpy():
        counts[variants[each.tobytes()]] += 1  # a KeyError: none of torch's
    # 50 variants, 40 of each expected: all occur, none is preferred.
    assert min(counts.values()) > 15
    assert max(counts.values()) < 75


@pytest.mark.parametrize("border", ["reflect", "zero"])
def test_the_furthest_translation(border: str) -> None:
    torch.manual_seed(0)
    image = noise(1)[0]
    variants = moved(image, 16, border)
    options = Augment(flip=True, translate=16, border=border)
    found = augment(image.expand(400, -1, -1, -1), options, MEAN)
    # A KeyError: none of torch's. (Mirrored by 15 or 16 pixels, some are the same.)
    offsets = [variants[each.tobytes()] for each in found.numpy()]
    if border == "zero":
        assert {-16, 16} <= {dy for _, dy, _ in offsets}
        assert {-16, 16} <= {dx for _, _, dx in offsets}


def test_flip_alone_and_every_image_by_itself() -> None:
    torch.manual_seed(0)
    images = noise(400)
    found = augment(images, Augment(flip=True, translate=0), MEAN)
    flipped = (found == images.flip(2)).flatten(1).all(1)
    same = (found == images).flatten(1).all(1)
    assert bool((flipped ^ same).all())
    assert 150 < int(flipped.sum()) < 250


@pytest.mark.parametrize("side", [1, 8, 29, 32])
def test_cutout_paints_a_whole_square_in_the_mean_colour(side: int) -> None:
    torch.manual_seed(0)
    images = torch.zeros(800, 32, 32, 3, dtype=torch.uint8)
    found = augment(images, Augment(flip=False, translate=0, cutout=side), MEAN)
    painted = (found != 0).any(-1)
    assert found[painted].unique(dim=0).tolist() == [[125, 123, 114]]
    rows, columns = painted.any(2), painted.any(1)
    assert bool((painted.flatten(1).sum(1) == side * side).all())
    assert bool((rows.sum(1) == side).all())
    assert bool((columns.sum(1) == side).all())
    # Every place along both edges is taken.
    for taken in (rows, columns):
        starts = taken.int().argmax(1)
        assert sorted(starts.unique().tolist()) == list(range(33 - side))
        assert bool((taken.int().cumsum(1).amax(1) == side).all())


def test_cutout_leaves_the_rest() -> None:
    images = noise(50)
    found = augment(images, Augment(flip=False, translate=0, cutout=8), MEAN)
    same = (found == images).all(-1)
    assert bool((same.flatten(1).sum(1) >= 32 * 32 - 64).all())


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitter_is_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    # Of middling values, so that nothing is clipped and the factor can be read off the result.
    images = noise(300, 80, 140) + torch.arange(300, dtype=torch.uint8)[:, None, None, None] // 10
    options = Augment(flip=False, translate=0, **{name: 0.4})
    found = augment(images, options, MEAN)
    x, y = images.double(), found.double()
    grey = (x * torch.tensor(GREY, dtype=torch.float64)).sum(-1, keepdim=True)
    base = {
        "brightness": torch.zeros(1),
        "contrast": grey.mean((1, 2), keepdim=True),
        "saturation": grey,
    }[name]
    factors = ((y - base) * (x - base)).sum((1, 2, 3)) / (x - base).square().sum((1, 2, 3))
    assert 0.595 < factors.min() < 0.62
    assert 1.38 < factors.max() < 1.405
    assert abs(factors.mean() - 1) < 0.05
    adjust = getattr(vision, f"adjust_{name}")
    for image, mine, factor in zip(images[:60], found, factors.tolist(), strict=False):
        theirs = adjust(image.permute(2, 0, 1), factor).permute(1, 2, 0)
        assert (theirs.int() - mine.int()).abs().max() <= 2


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitter_saturates_and_does_not_wrap(name: str) -> None:
    # Two colours, near white and near black, of which each change pushes some values over the edge.
    torch.manual_seed(0)
    images = torch.empty(200, 32, 32, 3, dtype=torch.uint8)
    images[:, :16] = torch.tensor([252, 90, 250], dtype=torch.uint8)
    images[:, 16:] = torch.tensor([3, 1, 100], dtype=torch.uint8)
    found = augment(images, Augment(flip=False, translate=0, **{name: 1.0}), MEAN)
    assert found.dtype == torch.uint8
    assert found.max() == 255
    # The order of two channels never turns round, as it does where a value wraps.
    assert bool((found[:, :16, :, 0] >= found[:, :16, :, 1]).all())
    assert bool((found[:, 16:, :, 2] >= found[:, 16:, :, 0]).all())


def test_off_means_identical() -> None:
    images = noise(20)
    assert torch.equal(augment(images, OFF, MEAN), images)


@pytest.mark.parametrize(
    "options", [Augment(True, 4, "reflect", 8, 0.2, 0.2, 0.2), Augment(rotate=9), TRIVIAL, ALL]
)
def test_the_seed_decides_and_the_input_stays(options: Augment) -> None:
    images = noise(100)
    before = images.clone()
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(augment(images, options, MEAN))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(images, before)


@pytest.mark.gpu
def test_on_cuda() -> None:
    torch.manual_seed(0)
    image = noise(1)[0]
    variants = moved(image, 2, "reflect")
    batch = image.cuda().expand(500, -1, -1, -1)
    found = augment(batch, Augment(translate=2), MEAN)
    assert found.device.type == "cuda"
    assert {variants[each.tobytes()] for each in np.asarray(found.cpu())} == set(variants.values())
    assert augment(batch, Augment(True, 4, "zero", 8, 0.2, 0.2, 0.2), MEAN).shape == batch.shape


@pytest.mark.gpu
@pytest.mark.parametrize("border", ["reflect", "zero"])
def test_cuda_resamples_and_recolours_as_a_cpu(border: str) -> None:
    images = noise(600, 20, 220)
    options = dataclasses.replace(ALL, border=border)
    draws = draw(600, 32, 32, options, images.device)
    there = {name: values.cuda() for name, values in draws.items()}
    found = apply(images.cuda(), there, options, MEAN).cpu()
    # A value that is rounded the other way is moved on by what follows, solarising too.
    far = (found.int() - apply(images, draws, options, MEAN).int()).abs() > 8
    assert far.float().mean() < 1e-3


# --- what moves by parts of a pixel --------------------------------------------------------------


@pytest.mark.parametrize("border", ["reflect", "zero"])
def test_a_vertical_flip_is_part_of_the_gather(border: str) -> None:
    torch.manual_seed(0)
    image = noise(1)[0]
    variants = {
        key: (upright, *how)
        for upright in (True, False)
        for key, how in moved(image if upright else image.flip(0), 1, border).items()
    }
    assert len(variants) == 2 * 2 * 3 * 3
    options = Augment(translate=1, border=border, vertical_flip=True)
    found = augment(image.expand(1_000, -1, -1, -1), options, MEAN)
    counts = dict.fromkeys(variants.values(), 0)
    for each in found.numpy():
        counts[variants[each.tobytes()]] += 1  # a KeyError: none of torch's
    # 36 variants, 28 of each expected.
    assert min(counts.values()) > 8
    assert max(counts.values()) < 60


def theirs(
    image: torch.Tensor,
    *,
    angle: float = 0,
    zoom: float = 1,
    move: tuple[int, int] = (0, 0),
    shear: tuple[float, float] = (0, 0),
    border: str = "zero",
) -> torch.Tensor:
    """torchvision's affine change of an image [32, 32, 3]; mirrored at the borders by padding."""
    planes = image.permute(2, 0, 1)
    reach = 31 if border == "reflect" else 0  # the most that torch can pad so
    planes = F.pad(planes[None].float(), [reach] * 4, mode="reflect")[0].to(torch.uint8)
    changed = vision.affine(
        planes, -angle, list(move), zoom, list(shear), InterpolationMode.BILINEAR
    )
    return vision.center_crop(changed, [32, 32]).permute(1, 2, 0)


# Of torchvision's values: places differ by rounding in float32, some 1e-5 of a pixel, which turns
# over a value that lies halfway between two.
HALFWAY = 1


@pytest.mark.parametrize("border", ["reflect", "zero"])
@pytest.mark.parametrize(("rotate", "scale"), [(180, 0), (0, 0.5), (40, 0.3)])
def test_rotation_and_scale_are_torchvisions(rotate: float, scale: float, border: str) -> None:
    torch.manual_seed(0)
    images = noise(150)
    options = dataclasses.replace(OFF, rotate=rotate, scale=scale, border=border)
    draws = draw(150, 32, 32, options, images.device)
    found = apply(images, draws, options, MEAN)
    assert found.dtype == torch.uint8
    cos, sin = draws["warp"][:, 0].double(), draws["warp"][:, 3].double()
    angles, zooms = torch.atan2(sin, cos).rad2deg(), 1 / torch.hypot(sin, cos)
    for values, middle, reach in ((angles, 0, rotate), (zooms, 1, scale)):
        offset = (values - middle) / (reach or 1)
        assert offset.abs().max() < (1 if reach else 1e-6)
        if reach:
            # Evenly: a tenth at either end, and the mean in the middle.
            assert 5 < int((offset > 0.8).sum()) < 28
            assert 5 < int((offset < -0.8).sum()) < 28
            assert abs(float(offset.mean())) < 0.15
    for image, mine, angle, zoom in zip(images, found, angles, zooms, strict=True):
        other = theirs(image, angle=float(angle), zoom=float(zoom), border=border)
        assert (other.int() - mine.int()).abs().max() <= HALFWAY


def test_what_is_resampled_at_once_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(50)
    torch.manual_seed(1)
    whole = augment(images, ALL, MEAN)
    monkeypatch.setattr(change, "WARPED_IMAGES", 7)
    torch.manual_seed(1)
    assert torch.equal(augment(images, ALL, MEAN), whole)


def test_what_came_later_leaves_earlier_draws_as_they_were() -> None:
    device = torch.device("cpu")
    torch.manual_seed(4)
    flip = torch.rand(30, 1) < 0.5
    down, right = (torch.randint(-4, 5, (30, 1)) for _ in range(2))
    jitter = [1 + 0.2 * (2 * torch.rand(30, 1, 1, 1) - 1) for _ in range(3)]
    top, left = (torch.randint(0, 25, (30, 1)) for _ in range(2))
    state = torch.get_rng_state()
    old = dict(
        zip(
            ("flip", "down", "right", "brightness", "contrast", "saturation", "top", "left"),
            (flip, down, right, *jitter, top, left),
            strict=True,
        )
    )
    torch.manual_seed(4)
    found = draw(30, 32, 32, Augment(True, 4, "zero", 8, 0.2, 0.2, 0.2), device)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.keys() == old.keys()
    torch.manual_seed(4)
    more = draw(30, 32, 32, ALL, device)
    assert more.keys() - old.keys() == {"vertical_flip", "warp", "op", "strength"}
    for name, values in old.items():
        assert torch.equal(found[name], values)
        assert torch.equal(more[name], values)


# --- the policy ---------------------------------------------------------------------------------


def test_every_op_is_as_frequent_and_every_strength_of_it() -> None:
    torch.manual_seed(0)
    op, strength = policy.draw(14 * 31 * 40, torch.device("cpu"))
    for index, (name, (first, last)) in enumerate(policy.OPS.items()):
        mine = strength[op == index]
        assert 1_050 < len(mine) < 1_430  # 1,240 expected, give or take 34
        levels, counts = mine.abs().unique(return_counts=True)
        assert {float(levels[0]), float(levels[-1])} == {first, np.float32(last)}
        assert len(levels) == (1 if first == last else 7 if name == "posterize" else 31)
        if len(levels) == 31:
            assert counts.min() > 15
            assert counts.max() < 75
        if first == 0 != last:
            assert 0.4 < float((mine < 0).float().mean()) < 0.6
        else:
            assert mine.min() >= 0


@pytest.mark.parametrize("border", ["reflect", "zero"])
def test_the_policys_changes_are_torchvisions(small_data: Dataset, border: str) -> None:
    torch.manual_seed(2)
    n = 700
    images = torch.from_numpy(small_data.train.images)[torch.arange(n) % len(small_data.train)]
    images = images.clone()
    # Some of few values, of one, and of the whole range.
    images[::5] = images[::5] // 8 + 90
    images[::35] = 77
    images[1::5] = noise(140)
    options = dataclasses.replace(TRIVIAL, border=border)
    draws = draw(n, 32, 32, options, images.device)
    found = apply(images, draws, options, MEAN)

    def other(name: str, image: torch.Tensor, strength: float) -> torch.Tensor:
        planes = image.permute(2, 0, 1)
        degrees = math.degrees(math.atan(strength))
        match name:
            case "identity":
                return image
            case "shear_x":
                return theirs(image, shear=(degrees, 0), border=border)
            case "shear_y":
                return theirs(image, shear=(0, degrees), border=border)
            case "translate_x":
                return theirs(image, move=(round(strength), 0), border=border)
            case "translate_y":
                return theirs(image, move=(0, round(strength)), border=border)
            case "rotate":
                return theirs(image, angle=strength, border=border)
            case "posterize":
                planes = vision.posterize(planes, round(strength))
            case "solarize":  # torchvision takes no 256, which inverts nothing
                planes = vision.solarize(planes, strength) if strength <= 255 else planes
            case "autocontrast" | "equalize":
                planes = getattr(vision, name)(planes)
            case _:
                adjust = {"color": "saturation"}.get(name, name)
                planes = getattr(vision, f"adjust_{adjust}")(planes, 1 + strength)
        return planes.permute(1, 2, 0)

    # torchvision cuts off after the point where this rounds, in contrast and colour of the grey as
    # well. In autocontrast both cut off, but its quotient in float32 may fall below a whole number.
    allowed = dict.fromkeys(("shear_x", "shear_y", "rotate"), HALFWAY)
    allowed |= {"brightness": 1, "sharpness": 1, "autocontrast": 1, "contrast": 2, "color": 2}
    changed = set()
    for image, mine, op, strength in zip(
        images, found, draws["op"].tolist(), draws["strength"].tolist(), strict=True
    ):
        name = policy.NAMES[op]
        # 32 pixels, once mirrored, are one more than torch pads by.
        if abs(strength) > 31 and border == "reflect" and name.startswith("translate"):
            continue
        expected = other(name, image, strength)
        assert (expected.int() - mine.int()).abs().max() <= allowed.get(name, 0), (name, strength)
        if not torch.equal(mine, image):
            changed.add(name)
    assert changed == set(policy.NAMES) - {"identity"}


def test_rotation_scale_and_policy_are_one_resampling() -> None:
    device = torch.device("cpu")
    options = dataclasses.replace(TRIVIAL, rotate=40, scale=0.4)
    torch.manual_seed(6)
    both = draw(300, 32, 32, options, device)
    torch.manual_seed(6)
    alone = draw(300, 32, 32, TRIVIAL, device)
    angles = torch.deg2rad(40 * (2 * torch.rand(300) - 1))
    zooms = 1 + 0.4 * (2 * torch.rand(300) - 1)
    assert torch.equal(both["op"], alone["op"])
    moving = (alone["warp"] != torch.tensor([1.0, 0, 0, 0, 1, 0])).any(1)
    ops = {policy.NAMES[op] for op in alone["op"][moving].tolist()}
    assert ops == {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"}
    turn = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), 1)
    expected = (turn.view(-1, 2, 2) / zooms[:, None, None]) @ alone["warp"].view(-1, 2, 3)
    torch.testing.assert_close(both["warp"].view(-1, 2, 3), expected, rtol=1e-5, atol=1e-5)


def test_the_policy_comes_before_cutout_and_after_the_shift() -> None:
    torch.manual_seed(0)
    images = noise(300)
    options = Augment(cutout=16, policy="trivial", border="zero")
    draws = draw(300, 32, 32, options, images.device)
    found = apply(images, draws, options, MEAN)
    colour = torch.tensor([round(255 * m) for m in MEAN], dtype=torch.uint8)
    assert bool(((found == colour).all(-1).flatten(1).sum(1) >= 256).all())
    steps = images
    for names in (("flip", "down", "right"), ("op", "strength", "warp"), ("top", "left")):
        steps = apply(steps, {name: draws[name] for name in names}, options, MEAN)
    assert torch.equal(steps, found)
    before = images.clone()
    policy.recolour(images, draws["op"], draws["strength"])
    assert torch.equal(images, before)


# --- parts, alternation and mixing --------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [Augment(cutout=9, brightness=0.4, contrast=0.3, saturation=0.2), TRIVIAL, ALL]
)
def test_a_part_is_changed_as_it_would_be_among_all(options: Augment) -> None:
    images = noise(40)
    torch.manual_seed(3)
    draws = draw(40, 32, 32, options, images.device)
    whole = apply(images, draws, options, MEAN)
    for part in (torch.tensor([7, 3, 39, 0]), *torch.arange(40).split(1)):
        drawn = {name: values[part] for name, values in draws.items()}
        assert torch.equal(apply(images[part], drawn, options, MEAN), whole[part])
    torch.manual_seed(3)
    assert torch.equal(augment(images, options, MEAN), whole)


def test_alternating_flips_turn_every_image_round_each_epoch() -> None:
    first = torch.tensor([True, False, False, True])
    epochs = [alternating(first, epoch) for epoch in range(4)]
    assert torch.equal(epochs[0], first)
    for before, after in itertools.pairwise(epochs):
        assert torch.equal(after, ~before)


def test_mixup_is_a_blend_with_the_batch_in_reverse() -> None:
    images = noise(6)
    before = images.clone()
    mixed, share = mix(images, Augment(mixup=0.8), seed=5)
    assert share is not None
    assert share.shape == ()
    assert 0 < float(share) < 1
    wanted = float(share) * images.double() + (1 - float(share)) * images.flip(0).double()
    torch.testing.assert_close(mixed.double(), wanted, rtol=1e-5, atol=1e-3)
    assert torch.equal(images, before)


def test_cutmix_pastes_a_box_whose_share_is_told() -> None:
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    images[1] = 255
    seen = []
    for seed in range(60):
        mixed, share = mix(images, Augment(cutmix=1.0), seed)
        assert share is not None
        assert mixed.dtype == torch.uint8
        pasted = mixed[0, ..., 0] == 255
        assert torch.equal(mixed[1, ..., 0] == 0, pasted)
        assert float(share) == pytest.approx(1 - pasted.float().mean().item(), abs=1e-6)
        if pasted.any():
            rows, columns = pasted.any(1).nonzero(), pasted.any(0).nonzero()
            height, width = (int(index.max() - index.min() + 1) for index in (rows, columns))
            assert int(pasted.sum()) == height * width
        seen.append(float(share))
    assert not images[0].any()
    assert min(seen) < 0.2 < 0.8 < max(seen)  # Beta(1, 1) is uniform


def test_alpha_says_how_evenly_two_images_are_mixed() -> None:
    def shares(options: Augment) -> list[float]:
        found = [mix(noise(2), options, seed)[1] for seed in range(100)]
        return [float(share) for share in found if share is not None]

    for few, many in (
        (Augment(mixup=0.1), Augment(mixup=50.0)),
        (Augment(cutmix=0.1), Augment(cutmix=50.0)),
    ):
        uneven, even = shares(few), shares(many)
        assert sum(min(share, 1 - share) < 0.1 for share in uneven) > 60
        assert all(0.25 < share < 0.75 for share in even)


def test_cutmix_pastes_anywhere() -> None:
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    images[1] = 255
    places = [
        (mix(images, Augment(cutmix=50.0), seed)[0][0, ..., 0] != 0).nonzero() for seed in range(60)
    ]
    for edge in (0, 1):
        assert len({int(place[:, edge].min()) for place in places}) > 7
        assert {int(place[:, edge].max()) for place in places} >= {24, 31}


def test_a_batch_gets_one_way_of_mixing() -> None:
    both = Augment(mixup=0.2, cutmix=1.0)
    found = [mixes(both, seed) for seed in range(200)]
    assert 60 < found.count("mixup") < 140
    assert set(found) == {"mixup", "cutmix"}
    assert mixes(Augment(cutmix=1.0), 3) == "cutmix"
    seldom = [mixes(Augment(mixup=0.2, cutmix=1.0, mix_rate=0.25), seed) for seed in range(200)]
    assert 120 < seldom.count("") < 180
    assert set(seldom) == {"", "mixup", "cutmix"}
    assert mixes(Augment(cutmix=1.0, mix_rate=0.0), 3) == ""
    assert ways_to_mix(both) == {"mixup", "cutmix"}
    assert ways_to_mix(Augment(cutmix=1.0, mix_rate=0.25)) == {"", "cutmix"}
    assert ways_to_mix(Augment(cutmix=1.0, mix_rate=0.0)) == ways_to_mix(Augment()) == {""}
    images = noise(4)
    same, share = mix(images, Augment(), 3)
    assert same is images
    assert share is None
    # Among mixed batches, one that is not has a share as well: all make the same graph.
    seldom_mixed = Augment(cutmix=1.0, mix_rate=0.25)
    seed = next(seed for seed in range(200) if not mixes(seldom_mixed, seed))
    same, share = mix(images, seldom_mixed, seed)
    assert same is images
    assert share is not None
    assert float(share) == 1
