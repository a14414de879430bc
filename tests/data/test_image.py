import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from cifar_deploy.data.image import from_pillow, may_be_image, read_image, to_array
from cifar_deploy.errors import UserError


def pattern(height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def test_32x32_images_come_as_they_are(tmp_path: Path) -> None:
    pixels = pattern()
    for suffix in ("png", "bmp", "tiff", "ppm", "webp"):
        path = tmp_path / f"image.{suffix}"
        Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
        assert np.array_equal(read_image(path), pixels), suffix


def test_other_sizes_are_resized_with_antialiasing(tmp_path: Path) -> None:
    board = np.zeros((320, 640, 3), np.uint8)
    board[:, ::2] = 255  # columns of one pixel: without antialiasing black or white is left
    board[:, :, 0] = 200
    Image.fromarray(board).save(tmp_path / "board.png")
    small = read_image(tmp_path / "board.png")
    assert small.shape == (32, 32, 3)
    assert small.dtype == np.uint8
    assert np.all(small[..., 0] == 200)
    assert abs(small[..., 1:].astype(int) - 127.5).max() < 10
    assert to_array(Image.fromarray(pattern(7, 5))).shape == (32, 32, 3)


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    pixels = pattern()
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(pixels, -1))
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        for kind in ("png", "tiff"):
            image.save(tmp_path / f"turned.{kind}", exif=exif)
            with Image.open(tmp_path / f"turned.{kind}") as turned:
                wanted = np.array(ImageOps.exif_transpose(turned))
            assert np.array_equal(read_image(tmp_path / f"turned.{kind}"), wanted)


def test_a_picture_is_whole_where_only_its_exif_is_damaged(tmp_path: Path) -> None:
    pixels = pattern()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "damaged.png", exif=b"Exif\0\0garbage of a camera")
    with pytest.raises(SyntaxError), Image.open(tmp_path / "damaged.png") as damaged:
        ImageOps.exif_transpose(damaged)
    assert np.array_equal(read_image(tmp_path / "damaged.png"), pixels)
    # Orientation 6 (a short), and a resolution in words, which Pillow cannot write again.
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHI4s", 0x011A, 2, 4, b"abc")
    odd = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    image.save(tmp_path / "odd.png", exif=odd)
    with pytest.raises(TypeError), Image.open(tmp_path / "odd.png") as turned:
        ImageOps.exif_transpose(turned)
    assert np.array_equal(read_image(tmp_path / "odd.png"), np.rot90(pixels, -1))


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    three = np.repeat((grey // 4).astype(np.uint8)[..., None], 3, 2)
    Image.fromarray((grey // 4).astype(np.uint8)).save(tmp_path / "8bit.png")
    Image.fromarray(grey * 64).save(tmp_path / "16bit.png")
    assert np.array_equal(read_image(tmp_path / "8bit.png"), three)
    assert np.array_equal(read_image(tmp_path / "16bit.png"), three)
    # 32 bits, with 8 in them or 16; a float may be anything.
    Image.fromarray((grey // 4).astype(np.int32)).save(tmp_path / "8in32.tif")
    Image.fromarray(grey.astype(np.int32) * 64).save(tmp_path / "16in32.tif")
    assert np.array_equal(read_image(tmp_path / "8in32.tif"), three)
    assert np.array_equal(read_image(tmp_path / "16in32.tif"), three)
    Image.fromarray(grey.astype(np.float32) / 1024).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match="its pixels are floats"):
        read_image(tmp_path / "float.tif")
    pixels = pattern()
    alpha = np.concatenate([pixels, np.full((32, 32, 1), 77, np.uint8)], 2)
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(tmp_path / "alpha.png"), pixels)
    palette = Image.fromarray(three).quantize(4)
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 100, 200, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_image(tmp_path / "palette.png")
    assert np.array_equal(found, np.array(palette.convert("RGB")))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n"


def test_postscript_is_run_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghostscript = tmp_path / "bin/gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    (tmp_path / "cat.png").write_bytes(POSTSCRIPT)
    with pytest.raises(UserError, match=r"cat\.png cannot be read as an image: it is PostScript"):
        read_image(tmp_path / "cat.png")
    with Image.open(tmp_path / "cat.png") as image, pytest.raises(UserError, match="PostScript"):
        from_pillow(image, "it")
    assert not (tmp_path / "asked").exists()
    assert not may_be_image(tmp_path / "cat.eps")


def test_what_is_no_image(tmp_path: Path) -> None:
    Image.fromarray(pattern(300, 300)).save(tmp_path / "whole.jpg")
    Image.fromarray(pattern(300, 300)).save(tmp_path / "whole.png")
    for name, raw, said in (
        ("text.jpg", b"not an image", "is not an image"),
        ("empty.png", b"", "is not an image"),
        ("cut.jpg", (tmp_path / "whole.jpg").read_bytes()[:9000], "truncated"),
        ("cut.png", (tmp_path / "whole.png").read_bytes()[:9000], "truncated"),
        ("bomb.png", png_header(60_000, 60_000), "decompression bomb"),
        ("program.png", POSTSCRIPT, "is PostScript, a program"),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(UserError, match=rf"{name} .*{said}"):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.png: No such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="Is a directory"):
        read_image(tmp_path)


def test_what_is_too_tall_is_told_before_it_is_made_wider(tmp_path: Path) -> None:
    tall = tmp_path / "tall.png"
    Image.new("L", (1, 6_000_000)).save(tall)
    with pytest.raises(UserError, match=r"tall\.png .* 1 x 6000000 pixels are too tall"):
        read_image(tall)
    Image.new("L", (6_000_000, 1)).save(tall)
    assert read_image(tall).shape == (32, 32, 3)
