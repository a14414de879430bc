"""One image file, of any size and format that Pillow reads, as the networks take it."""

import contextlib
import math
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from cifar_deploy.data.dataset import SIZE, Images
from cifar_deploy.errors import UserError, disk_errors

PROGRAM = "EPS"
# What undoes an EXIF orientation (CIPA DC-008, 4.6.5.1.6).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path) -> Images:
    """The image in `path`, turned as its EXIF orientation says: uint8 [32, 32, 3], RGB.

    Of an animation it is the first frame. Raises UserError where the file is missing, is no image,
    is cut short, or is so large that Pillow takes it for a decompression bomb.
    """
    # Read first: below, an OSError then speaks of the image and not of the disk.
    try:
        with disk_errors(path, "read"):
            file = path.open("rb")
    except ValueError as error:  # a null byte, or no character
        raise UserError(f"{str(path)!r} is no file's name ({error})") from error
    with file, _decoding(str(path)), Image.open(file) as image:
        return to_array(_turned(image))


def may_be_image(path: Path) -> bool:
    """Whether the file's name has a suffix of a format that Pillow reads, or none."""
    suffix = path.suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    return not suffix or (kind in Image.OPEN and kind != PROGRAM)


def from_pillow(image: Image.Image, name: str) -> Images:
    """What `read_image` would give for the file that `image` was opened from; `name` for errors.

    Pillow decodes a file when its pixels are first asked for, which may be here.
    """
    with _decoding(name):
        return to_array(_turned(image))


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn what Pillow makes of bytes that are no image into a UserError."""
    try:
        with without_warnings():
            yield
    except UnidentifiedImageError:
        raise UserError(f"{name} is not an image in a format that Pillow reads") from None
    except MemoryError as error:
        raise UserError(f"{name}: memory is short; make it smaller, or free some") from error
    except Exception as error:  # on foreign bytes decoders raise whatever they stumble over
        raise UserError(f"{name} cannot be read as an image: {error}") from error


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Keep Pillow's to itself, which refuses what is twice its limit and below only warns.

    So it does of odd palettes. What is to be warned of is the whole process's affair: for several
    threads the main thread does this, and in others it does nothing.
    """
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield


def _turned(image: Image.Image) -> Image.Image:
    """`image` as its EXIF orientation says, where that can be read.

    A whole picture may have damaged EXIF, which `ImageOps.exif_transpose` raises for.
    """
    if image.format == PROGRAM:  # which Pillow has Ghostscript run, whatever the file is called
        raise UserError("it is PostScript, a program that draws a picture; save it as PNG")
    image.load()  # what is wrong with the pixels is told
    turn = None
    with contextlib.suppress(Exception):
        turn = TURNS.get(image.getexif()[ExifTags.Base.Orientation])
    return image if turn is None else image.transpose(turn)


def to_array(image: Image.Image) -> Images:
    """`image` in RGB, resized to 32x32 (bilinear, antialiased) where it has another size.

    Returns uint8 [32, 32, 3]. 16-bit grey is scaled to 8 bits; transparency is dropped. Raises
    UserError for floats, and for millions of rows.
    """
    if image.mode == "F":
        raise UserError("its pixels are floats, whose white is not known; save it with 8 bits")
    if image.mode.startswith("I"):  # Pillow would clip it to white
        values = np.asarray(image, np.int64)
        deep = image.mode != "I" or values.max(initial=0) > 255
        image = Image.fromarray((values >> 8 if deep else values).clip(0, 255).astype(np.uint8))
    # What Pillow takes for no image, a bomb, this would be when it is wider and as tall as before.
    if SIZE * image.height > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        raise UserError(f"{image.width} x {image.height} pixels are too tall; cut it in pieces")
    # In this order, rows first, as the C++ library does: Pillow from 13 on would begin with the
    # columns of tall images.
    image = image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    narrow = image.resize((SIZE, image.height), Image.Resampling.BILINEAR)
    return np.array(narrow.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.uint8)
