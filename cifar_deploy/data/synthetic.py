"""The generated data set: ten shapes, for a machine that has neither data nor network.

Position, size, angle, colours and background vary, and the shape may be lighter or darker than
what is behind it, so that no single pixel tells anything and a linear model fails.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar_deploy.data.dataset import SIZE, Dataset, Images, Labels, Split

VERIFIED = "generated"
CHUNK = 500  # images drawn at a time: bounds the memory

# Only + - * / and square roots, which IEEE 754 rounds the same everywhere, and raw draws of PCG64,
# which numpy keeps: the same seed gives the same bytes on every machine.
Floats = npt.NDArray[Any]  # float32
Distance = Callable[[Floats, Floats, Floats], Floats]


def generate(seed: int = 0, train: int = 20_000, test: int = 10_000) -> Dataset:
    """Ten classes of shapes in `train` and `test` images, uint8 [n, 32, 32, 3], from `seed`.

    Classes are balanced and in random order; training and test images come from separate streams.
    Left-right flips and small translations leave the class as it is.
    """
    return Dataset(
        name="synthetic",
        origin=f"generated from seed {seed}",
        classes=tuple(SHAPES),
        train=_split(np.random.PCG64([seed, 0]), train),
        test=_split(np.random.PCG64([seed, 1]), test),
        verified=VERIFIED,
    )


def _split(stream: np.random.PCG64, count: int) -> Split:
    order = np.argsort(stream.random_raw(count), kind="stable")
    labels = order.astype(np.int64) % len(SHAPES)
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for start in range(0, count, CHUNK):
        images[start : start + CHUNK] = _draw(stream, labels[start : start + CHUNK])
    return Split(images, labels)


def _draw(stream: np.random.PCG64, labels: Labels) -> Images:
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Floats:
        """Uniform random numbers [n, *shape] from the upper 24 bits of raw draws."""
        size = (n, *shape)
        unit = (stream.random_raw(size) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
        return np.float32(low) + np.float32(high - low) * unit

    # The grid of each image in its shape's own coordinates: moved, then turned by up to 13 degrees.
    radius = uniform(8, 12, 1, 1)
    room = SIZE / 2 - radius * np.float32(0.8)
    grid = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    across = grid[None, None, :] - room * uniform(-1, 1, 1, 1)
    down = grid[None, :, None] - room * uniform(-1, 1, 1, 1)
    half = uniform(-0.115, 0.115, 1, 1)  # the tangent of half the angle
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    x, y = cosine * across - sine * down, cosine * down + sine * across

    cover = np.empty((n, SIZE, SIZE), np.float32)
    for label, distance in enumerate(SHAPES.values()):
        mine = labels == label
        # A pixel is covered by its share within the edge.
        cover[mine] = np.clip(np.float32(0.5) - distance(x[mine], y[mine], radius[mine]), 0, 1)

    # The shape is lighter or darker by at least 50 levels; tints keep the mean of the channels.
    middle, sign = uniform(80, 175, 1), np.sign(uniform(-1, 1, 1))
    contrast = sign * uniform(25, 60, 1)
    ink = middle + contrast + _grey_free(uniform(-35, 35, 3))
    paper = middle - contrast + _grey_free(uniform(-35, 35, 3))

    light = _smooth(uniform(-30, 30, 3, 3))
    pixels = (paper[:, None, None] + light[..., None]) + cover[..., None] * (ink - paper)[
        :, None, None
    ]
    # Noise: the sum of two bytes, so of triangular density, from -24 to 24 levels.
    raw = stream.random_raw((n, SIZE * SIZE * 3 * 2 // 8)).astype("<u8").view(np.uint8)
    noise = raw.reshape(n, SIZE, SIZE, 3, 2).astype(np.float32)
    pixels += (noise[..., 0] + noise[..., 1] - 255) * np.float32(24 / 255)
    rounded: Images = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return rounded


def _grey_free(tint: Floats) -> Floats:
    return tint - (tint[:, :1] + tint[:, 1:2] + tint[:, 2:]) / 3


def _smooth(knots: Floats) -> Floats:
    """Knots [n, 3, 3] drawn out over the image, [n, 32, 32], bilinearly."""
    at = np.arange(SIZE, dtype=np.float32) / np.float32(SIZE - 1) * 2
    weights = [np.clip(1 - abs(at - knot), 0, 1) for knot in range(3)]
    rows = sum(knots[:, :, k, None] * weights[k] for k in range(3))
    return np.asarray(sum(rows[:, k, None, :] * weights[k][:, None] for k in range(3)))


# --- the shapes: signed distances from the edge in pixels, negative inside -----------------------
# x and y are [n, 32, 32], the radius r is [n, 1, 1]; y points down. After Inigo Quilez,
# "2D distance functions", https://iquilezles.org/articles/distfunctions2d/


def _length(x: Floats, y: Floats) -> Floats:
    length: Floats = np.sqrt(x * x + y * y)
    return length


def _both(a: Floats, b: Floats) -> Floats:
    """What two shapes have in common."""
    common: Floats = np.maximum(a, b)
    return common


def _either(a: Floats, b: Floats) -> Floats:
    """Two shapes together."""
    union: Floats = np.minimum(a, b)
    return union


def _box(x: Floats, y: Floats, width: Floats, height: Floats) -> Floats:
    return _both(abs(x) - width, abs(y) - height)


def _folded(x: Floats, period: Floats) -> Floats:
    """`x` folded into one period around 0."""
    folded: Floats = x - period * np.rint(x / period)
    return folded


def _disc(x: Floats, y: Floats, r: Floats) -> Floats:
    return _length(x, y) - r * np.float32(0.9)


def _ring(x: Floats, y: Floats, r: Floats) -> Floats:
    return abs(_length(x, y) - r * np.float32(0.75)) - r * np.float32(0.2)


def _square(x: Floats, y: Floats, r: Floats) -> Floats:
    side = r * np.float32(0.8)
    return _box(x, y, side, side)


def _triangle(x: Floats, y: Floats, r: Floats) -> Floats:
    slope = np.float32(0.8660254)
    return _both(abs(x) * slope - y * np.float32(0.5), y) - r * np.float32(0.55)


def _cross(x: Floats, y: Floats, r: Floats) -> Floats:
    arm = r * np.float32(0.3)
    return _either(_box(x, y, r, arm), _box(x, y, arm, r))


def _star(x: Floats, y: Floats, r: Floats) -> Floats:
    """Five points: the plane is folded along its axes of symmetry onto half a point."""
    a, b = np.float32(0.80901699), np.float32(0.58778525)
    x, y = abs(x), -y
    over = 2 * np.maximum(a * x - b * y, 0)
    x, y = x - over * a, y + over * b
    over = 2 * np.maximum(-a * x - b * y, 0)
    x, y = abs(x + over * a), y + over * b - r * np.float32(1.05)
    inner = np.float32(0.45)
    ex, ey = inner * b, inner * a - np.float32(1)  # numpy 1 would go on in float64
    along = np.clip((x * ex + y * ey) / (ex * ex + ey * ey), 0, r)
    side: Floats = np.sign(y * ex - x * ey)
    return _length(x - ex * along, y - ey * along) * side


def _horizontal(x: Floats, y: Floats, r: Floats) -> Floats:
    bars = abs(_folded(y, r * np.float32(0.56))) - r * np.float32(0.14)
    return _both(bars, _box(x, y, r, r * np.float32(0.8)))


def _vertical(x: Floats, y: Floats, r: Floats) -> Floats:
    return _horizontal(y, x, r)


def _checkerboard(x: Floats, y: Floats, r: Floats) -> Floats:
    period = r
    u = abs(_folded(x - period / 4, period)) - period / 4
    v = abs(_folded(y - period / 4, period)) - period / 4
    edge = np.minimum(abs(u), abs(v))
    reach = r - np.float32(0.5)  # the next cells' edges would show
    return _both(np.where(u * v > 0, -edge, edge), _box(x, y, reach, reach))


def _dots(x: Floats, y: Floats, r: Floats) -> Floats:
    period = r * np.float32(0.7)
    dots = _length(_folded(x, period), _folded(y, period)) - r * np.float32(0.21)
    reach = r * np.float32(1.05)
    return _both(dots, _box(x, y, reach, reach))


SHAPES: dict[str, Distance] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "horizontal": _horizontal,  # stripes
    "vertical": _vertical,
    "checkerboard": _checkerboard,
    "dots": _dots,
}
