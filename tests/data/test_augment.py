import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as vision

from cifar_deploy.data.augment import (
    GREY,
    alternating,
    apply,
    augment,
    draw,
    mix,
    mixes,
    ways_to_mix,
)
from cifar_deploy.recipe import Augment

MEAN = (0.4914, 0.4822, 0.4465)
OFF = Augment(flip=False, translate=0)


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


def test_the_seed_decides_and_the_input_stays() -> None:
    images = noise(100)
    before = images.clone()
    options = Augment(True, 4, "reflect", 8, 0.2, 0.2, 0.2)
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


# --- parts, alternation and mixing --------------------------------------------------------------


def test_a_part_is_changed_as_it_would_be_among_all() -> None:
    images = noise(40)
    options = Augment(cutout=9, brightness=0.4, contrast=0.3, saturation=0.2)
    torch.manual_seed(3)
    draws = draw(40, 32, 32, options, images.device)
    whole = apply(images, draws, options, MEAN)
    part = torch.tensor([7, 3, 39, 0])
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
