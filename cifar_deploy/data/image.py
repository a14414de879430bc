"""One image file, of any size and format that Pillow reads, as the networks take it."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cifar_deploy.data.dataset import SIZE, Images
from cifar_deploy.errors import UserError, disk_errors


def read_image(path: Path) -> Images:
    """The image in `path`, turned as its EXIF orientation says: uint8 [32, 32, 3], RGB.

    Of an animation it is the first frame. Raises UserError where the file is missing, is no image,
    is cut short, or is so large that Pillow takes it for a decompression bomb.
    """
    # Read first: below, an OSError then speaks of the image and not of the disk.
    with disk_errors(path, "read"):
        file = path.open("rb")
    try:
        # Pillow refuses what is twice its limit; below it only warns, as of odd palettes.
        with file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                return to_array(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image in a format that Pillow reads") from None
    except Exception as error:  # on foreign bytes decoders raise whatever they stumble over
        raise UserError(f"{path} cannot be read as an image: {error}") from error


def to_array(image: Image.Image) -> Images:
    """`image` in RGB, resized to 32x32 (bilinear, antialiased) where it has another size.

    Returns uint8 [32, 32, 3]. 16-bit grey is scaled to 8 bits; transparency is dropped.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow would clip it to white
        image = Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
    small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.array(small, np.uint8)
