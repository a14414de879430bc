"""What the C++ library answers, beside Python."""

import hashlib
import io
import itertools
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from building import CPP, WARNINGS, Packed, need, pixels_of, run
from PIL import Image, PngImagePlugin

from cifar_deploy.data import folder
from cifar_deploy.data.dataset import Dataset, Split
from cifar_deploy.data.image import read_image, to_array
from cifar_deploy.data.records import write_records
from cifar_deploy.export.onnx_file import PRECISIONS
from cifar_deploy.runtimes.protocol import Logits

WINDOWS = "x86_64-w64-mingw32-g++-posix"
# TBB would load a library in a way that ASan forbids.
LENIENT = {"ASAN_OPTIONS": "detect_leaks=0", "TBB_ENABLE_SANITIZERS": "1"}


def test_the_library_is_clean_under_asan_and_ubsan(
    sanitized: Path, packed: Callable[[str], Packed], tmp_path: Path
) -> None:
    # The tests of the headers, leaks looked for; then a package, where the runtime may leak.
    assert run(sanitized, tmp_path).stderr == b""
    whole = run(sanitized, tmp_path, packed("fp32").folder, **LENIENT)
    assert whole.stderr == b""


@pytest.fixture(scope="module")
def exact(packed: Callable[[str], Packed], real_data: Dataset) -> Logits:
    """What the fp32 file says of the last 1,000 real images, in Python."""
    return packed("fp32").logits(real_data.test.images[-1000:])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cpp_and_python_agree_on_1000_real_images(
    precision: str,
    built: Path,
    packed: Callable[[str], Packed],
    exact: Logits,
    real_data: Dataset,
) -> None:
    package = packed(precision)
    images = real_data.test.images[-1000:]
    command = (built / "probe", "logits", package.folder, "auto", 64)
    raw = run(*command, given=images.tobytes()).stdout
    found = np.frombuffer(raw, np.float32).reshape(1000, 10)
    wanted = exact if precision == "fp32" else package.logits(images)
    assert np.array_equal(found.argmax(1), wanted.argmax(1))
    accuracy = float((found.argmax(1) == real_data.test.labels[-1000:]).mean())
    assert accuracy > 0.9  # else two wrong answers could be the same
    assert np.abs(found - wanted).max() < (1e-3 if precision == "fp32" else 0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_self_test_passes(precision: str, built: Path, packed: Callable[[str], Packed]) -> None:
    done = run(built / "classify", packed(precision).folder, "--self-test")
    within = b"0." if precision == "int8" else b"0.0"
    assert done.stdout.startswith(b"PASS: 64 images, logits within " + within)
    assert b"ONNX Runtime" in done.stdout  # the vectors' runtime
    assert b"OpenVINO" in done.stdout  # the one that ran


def test_int8_agrees_on_1000_real_images(
    built: Path, packed: Callable[[str], Packed], exact: Logits, real_data: Dataset
) -> None:
    package = packed("int8")
    images = real_data.test.images[-1000:]
    command = (built / "probe", "logits", package.folder, "auto", 64)
    raw = run(*command, given=images.tobytes()).stdout
    found = np.frombuffer(raw, np.float32).reshape(1000, 10)
    wanted = package.logits(images)
    assert (found.argmax(1) == real_data.test.labels[-1000:]).mean() > 0.9
    # OpenVINO and ONNX Runtime round at different places, and so are one another's peers.
    assert 0 < np.abs(found - wanted).max() < 0.5
    assert np.abs(found - exact).mean() < 1.5 * np.abs(wanted - exact).mean()


def test_self_test_names_the_image_that_differs(built: Path, copied: Path) -> None:
    logits = np.fromfile(copied / "vectors" / "logits.f32", "<f4")
    logits[37 * 10 + 4] += 0.01
    old = hashlib.sha256((copied / "vectors" / "logits.f32").read_bytes()).hexdigest()
    logits.tofile(copied / "vectors" / "logits.f32")
    done = run(built / "classify", copied, "--self-test", status=2)
    assert b"logits.f32 is not the file that manifest.txt speaks of" in done.stderr
    manifest = copied / "manifest.txt"
    new = hashlib.sha256((copied / "vectors" / "logits.f32").read_bytes()).hexdigest()
    manifest.write_text(manifest.read_text().replace(old, new))
    done = run(built / "classify", copied, "--self-test", status=1)
    assert done.stdout.startswith(b"FAIL: image 37 differs: the logit of deer is")


def test_sha256_is_pythons(built: Path) -> None:
    random = np.random.default_rng(1)
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, 100_000):
        data = random.bytes(size)
        found = run(built / "probe", "sha256", given=data).stdout.decode().strip()
        assert found == hashlib.sha256(data).hexdigest(), size


SIZES = [(1, 1), (2, 5), (31, 33), (32, 7), (7, 32), (32, 32), (33, 32), (64, 64), (100, 75)]
SIZES += [(640, 480), (480, 640), (1920, 9), (3, 2000), (1023, 769)]


def resizes_as_python(width: int, height: int, *probe: object) -> None:
    random = np.random.default_rng(width * height)
    noise = random.integers(0, 256, (height, width, 3), np.uint8)
    board = np.zeros((height, width, 3), np.uint8)
    board[::2, ::3] = 255  # overshoot and rounding show at the ends of the range
    for image in (noise, board):
        raw = run(*probe, "resize", width, height, given=image.tobytes()).stdout
        wanted = to_array(Image.fromarray(image))
        assert np.array_equal(pixels_of(raw)[0], wanted)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_resizing_is_pythons(width: int, height: int, built: Path) -> None:
    resizes_as_python(width, height, built / "probe")


@pytest.mark.skipif(
    shutil.which(WINDOWS) is None or shutil.which("wine") is None,
    reason="needs MinGW and Wine (Debian: g++-mingw-w64-x86-64-posix wine64)",
)
def test_windows_does_the_same(packed: Callable[[str], Packed], tmp_path: Path) -> None:
    told = {"WINEPREFIX": str(tmp_path / "wine"), "WINEDEBUG": "-all", "LC_ALL": "C.UTF-8"}
    command = [WINDOWS, "-std=c++17", "-O1", "-static", *WARNINGS, f"-I{CPP / 'include'}"]
    for source in (CPP / "tests" / "unit.cpp", CPP / "examples" / "classify.cpp"):
        run(*command, source, "-o", tmp_path / f"{source.stem}.exe")
    run("wine", "unit.exe", ".", cwd=tmp_path, **told)
    # Letters of no code page in its words, its paths and what it says.
    shutil.copytree(packed("fp32").folder, tmp_path / "猫" / "ж")
    for place, said in (("猫/ж", "model.onnx needs"), ("猫", "猫 has no manifest.txt")):
        done = run("wine", "classify.exe", place, "--self-test", cwd=tmp_path, status=2, **told)
        assert done.stderr.decode().startswith(f"classify: {said}")
    (tmp_path / "猫" / "ж" / "labels.txt").write_text("cats\n")
    done = run("wine", "classify.exe", "猫/ж", "--self-test", cwd=tmp_path, status=2, **told)
    assert "classify: 猫/ж" in done.stderr.decode().replace("\\", "/")


def test_arm_does_the_same(tmp_path: Path) -> None:
    # There char is unsigned, and a product and a sum may be one operation with one rounding.
    need("aarch64-linux-gnu-g++", "qemu-aarch64")
    tests, emulated = CPP / "tests", ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
    for name, *more in (("unit",), ("probe", tests / "counting_new.cpp", "-ldl")):
        command = ["aarch64-linux-gnu-g++", "-std=c++17", "-O2", "-pthread", *WARNINGS]
        source, program = tests / f"{name}.cpp", tmp_path / name
        run(*command, f"-I{CPP / 'include'}", f"-I{tests}", source, *more, "-o", program)
    run(*emulated, tmp_path / "unit", tmp_path)
    for width, height in SIZES:
        resizes_as_python(width, height, *emulated, tmp_path / "probe")


def test_classify_batch_allocates_nothing(built: Path, packed: Callable[[str], Packed]) -> None:
    # Of the calling thread, in 2 rounds of three batch sizes after a first round. The runtime takes
    # memory inside its own inference, as it would without us; so each allocation is counted for the
    # library whose code asked for it, and none may be asked for by ours.
    done = run(built / "probe", "allocations", packed("fp32").folder, "openvino")
    counted = json.loads(done.stdout)
    assert counted["making_one"]["program"] > 5  # both are seen where they happen
    assert counted["batches"]["others"] > 10
    for what in ("fake", "fake_resized"):  # without a runtime there is nothing at all
        assert counted[what] == {"program": 0, "others": 0}
    for what in ("batches", "batches_resized"):
        assert counted[what]["program"] == 0, what


def test_classifiers_that_are_gone_leave_signals_alone(
    built: Path, packed: Callable[[str], Packed]
) -> None:
    # OpenVINO's Cores would leave the thread a stack for signals that is freed.
    assert run(built / "probe", "signal", packed("fp32").folder, "openvino").stdout == b"alive\n"


# --- classify -----------------------------------------------------------------------------------


def logits_of(said: bytes) -> list[list[float]]:
    return [
        [float(word) for word in line.split()[1:]]
        for line in said.decode().splitlines()
        if line.startswith("  logits:")
    ]


def tiff_of(order: str, version: int, kind: int, turn: int) -> bytes:
    """EXIF whose only entry is an orientation of a type, by its number in TIFF."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", version, 8, 1)
    value = struct.pack(f"{order}I" if kind == 4 else f"{order}Hxx", turn)
    return b"Exif\0\0" + head + struct.pack(f"{order}HHI", 0x0112, kind, 1) + value + bytes(4)


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG with 16 bits a colour, which Pillow reads and does not write."""
    deep = (pixels.astype(np.uint16) * 257 - 1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_pnm_of_fewer_levels_is_pillows(built: Path, tmp_path: Path) -> None:
    values = bytes(range(256))
    wanted = []
    for most in range(1, 256):
        for kind in (5, 6):
            file = tmp_path / f"{most}.{kind}"
            head = f"P{kind} 16 16 {most}\n".encode()
            file.write_bytes(head + values * (1 if kind == 5 else 3))
            with Image.open(file) as image:
                wanted.append((file, image.convert("RGB").tobytes()))
    raw = run(built / "probe", "decode", *(file for file, _ in wanted)).stdout
    assert len(raw) == len(wanted) * 768
    for i, (file, rgb) in enumerate(wanted):
        assert raw[i * 768 : (i + 1) * 768] == rgb, file.name


def test_classify_reads_images_as_predict_does(
    built: Path, packed: Callable[[str], Packed], real_data: Dataset, tmp_path: Path
) -> None:
    package = packed("fp32")
    picture = Image.fromarray(real_data.test.images[3]).resize((90, 61), Image.Resampling.BICUBIC)
    made: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "rgb.png": (picture, {}),
        "grey.png": (picture.convert("L"), {}),
        "bit.png": (picture.convert("1"), {}),
        "palette.png": (picture.quantize(16), {}),
        "alpha.png": (picture.convert("RGBA"), {}),
        "rgb.ppm": (picture, {}),
        "grey.pgm": (picture.convert("L"), {}),
        "rgb.jpg": (picture, {"quality": 95, "subsampling": 0}),
        "progressive.jpg": (picture, {"progressive": True, "subsampling": 0}),
        "grey.jpg": (picture.convert("L"), {}),
    }
    for turn in range(1, 9):
        exif = picture.getexif()
        exif[0x0112] = turn
        made[f"turned{turn}.png"] = (picture, {"exif": exif})
        made[f"turned{turn}.jpg"] = (picture, {"exif": exif, "subsampling": 0})
    for kind, order, version in itertools.product(range(1, 6), "<>", (42, 0)):
        raw = tiff_of(order, version, kind, 6)  # SHORT is 3, LONG is 4
        made[f"type{kind}{'<>'.index(order)}{version}.png"] = (picture, {"exif": raw})
    for name, (image, options) in made.items():
        image.save(tmp_path / name, **options)  # type: ignore[arg-type]
    raw = (tmp_path / "rgb.jpg").read_bytes()
    (tmp_path / "extra.jpg").write_bytes(raw[:-2] + bytes(40) + raw[-2:])  # Pillow does not mind
    made["extra.jpg"] = (picture, {})
    raw = (tmp_path / "turned6.png").read_bytes()
    for missing in (2, 12):  # of IEND, or all of it
        (tmp_path / f"end{missing}.png").write_bytes(raw[:-missing])
        made[f"end{missing}.png"] = (picture, {})
    # EXIF behind the pixels, as exiftool puts it, and behind another block of JPEG's APP1.
    at = raw.index(b"eXIf") - 4
    exif = raw[at : at + 12 + int.from_bytes(raw[at : at + 4])]
    (tmp_path / "late.png").write_bytes(raw.replace(exif, b"")[:-12] + exif + raw[-12:])
    jpg = (tmp_path / "turned6.jpg").read_bytes()
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + b" " * 40
    xmp = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2) + xmp
    (tmp_path / "xmp.jpg").write_bytes(jpg[:2] + xmp + jpg[2:])
    # EXIF as ImageMagick wrote it before PNG had a chunk for it.
    profile = tiff_of(">", 42, 3, 6)
    lines = "\n".join(re.findall(".{1,72}", profile.hex()))
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(profile):8}\n{lines}\n", zip=True)
    picture.save(tmp_path / "profile.png", pnginfo=text)
    # A comment, blanks of other kinds, and 16 bits a colour.
    pixels = picture.tobytes()
    (tmp_path / "comment.ppm").write_bytes(b"P6\n# by hand\n90 61\n# levels\n255\n" + pixels)
    (tmp_path / "tabs.ppm").write_bytes(b"P6\t90\t61\r255 " + pixels)
    (tmp_path / "deep.png").write_bytes(deep_png(np.asarray(picture)))
    more = ("late.png", "xmp.jpg", "profile.png", "comment.ppm", "tabs.ppm", "deep.png")
    made |= dict.fromkeys(more, (picture, {}))
    files = [tmp_path / name for name in made]
    done = run(built / "classify", package.folder, "--logits", "--top", 10, *files)
    wanted = package.logits(np.stack([read_image(file) for file in files]))
    # Decoders of different age may differ by a level here and there.
    off = np.abs(np.array(logits_of(done.stdout)) - wanted).max(1)
    assert off.max() < 0.25, dict(zip(made, off.round(4), strict=True))
    exact = [i for i, name in enumerate(made) if not name.endswith("jpg")]
    assert off[exact].max() < 1e-3, dict(zip(made, off.round(4), strict=True))
    first = done.stdout.decode().splitlines()[0]
    assert first.startswith(f"{files[0]}: ")
    shares = [float(word) for word in first.replace("%", "").split() if word[0].isdigit()]
    assert sum(shares) == pytest.approx(100, abs=0.6)


def test_what_is_no_image_is_told(
    built: Path, packed: Callable[[str], Packed], tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    png = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    jpg = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(noise).convert("CMYK").save(buffer, "JPEG")
    cmyk = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", progressive=True)
    bomb = bytearray(buffer.getvalue())
    start = bomb.index(b"\xff\xc2")  # of the frame, whose height and width follow
    bomb[start + 5 : start + 9] = (65_500).to_bytes(2) * 2
    for name, raw, said in (
        ("bomb.jpg", bytes(bomb), "it is too large: 65500 x 65500"),
        ("empty.png", b"", "it is no PNG, JPEG, binary PPM or PGM (P6, P5)"),
        ("text.jpg", b"not an image", "it is no PNG, JPEG, binary PPM or PGM (P6, P5)"),
        ("text.ppm", b"P3 1 1 255 1 2 3", "it is no PNG, JPEG, binary PPM or PGM (P6, P5)"),
        ("cmyk.jpg", cmyk, "it is not in RGB; convert it to PNG"),
        ("cut.png", png[:9000], "truncated"),
        ("cut.jpg", jpg[:9000], "Premature end of JPEG file"),
        ("bad.png", png[:60] + bytes(40) + png[100:], "cannot be read as an image"),
        ("cut.ppm", b"P6 9 9 255\n" + bytes(242), "truncated"),
        ("huge.ppm", b"P6 99999 99999 255\n", "truncated, or its header"),
        ("deep.ppm", b"P6 1 1 65535\n" + bytes(6), "8 bits"),
        ("end.ppm", b"P6 1 1 255", "truncated"),
    ):
        (tmp_path / name).write_bytes(raw)
        done = run(built / "classify", packed("fp32").folder, tmp_path / name, status=2)
        text = done.stderr.decode()
        assert text.startswith(f"classify: {tmp_path / name} cannot be read as an image: ")
        assert said in text
        assert text.count("\n") == 1
    done = run(built / "classify", packed("fp32").folder, tmp_path / "nowhere.png", status=2)
    assert done.stderr.decode().endswith("nowhere.png: no such file\n")


@pytest.fixture
def judged(copied: Path, real_data: Dataset, tmp_path: Path) -> tuple[Path, Dataset]:
    """A package that tells of 150 real images, in a folder of classes, which it is judged by."""
    place = tmp_path / "images"
    for name, split in (("train", real_data.train.first(100)), ("test", real_data.test.first(150))):
        for i, (pixels, label) in enumerate(zip(split.images, split.labels, strict=True)):
            if i == 0:  # one that has to be resized
                pixels = np.asarray(Image.fromarray(pixels).resize((40, 50)))
            file = place / name / real_data.classes[label] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return copied, folder.read(place)


def tell(package: Path, **said: object) -> None:
    """Write what the file was judged on into the manifest."""
    manifest = package / "manifest.txt"
    lines = [line for line in manifest.read_text().splitlines() if not line.startswith("test_")]
    lines += [f"test_{key} {value}" for key, value in said.items()]
    manifest.write_text("\n".join([*lines, ""]))


def test_the_accuracy_on_a_test_set_is_what_it_was(
    built: Path, packed: Callable[[str], Packed], judged: tuple[Path, Dataset], tmp_path: Path
) -> None:
    package, dataset = judged
    test, images = dataset.test, tmp_path / "images" / "test"
    for name in (".hidden", "Thumbs.db", "desktop.ini"):
        (images / "cat" / name).touch()
    (images / ".git").mkdir()
    (images / "README.txt").touch()  # beside the folders of classes
    right = int((packed("fp32").logits(test.images).argmax(1) == test.labels).sum())
    assert 135 < right < 150
    said = {"right": right, "margin": 0, "from": "ONNX Runtime", "sha256": test.set_sha256}

    def evaluate(where: Path, status: int = 0) -> str:
        done = run(built / "classify", package, "--evaluate", where, status=status)
        assert done.stderr == b""
        return done.stdout.decode()

    accuracy = f"150 images, {right / 1.5:.2f} % right ({right}); "
    assert evaluate(images, status=3).startswith(accuracy + "the package does not say what")
    tell(package, count=150, **said)
    text = evaluate(images)
    assert text.startswith(f"PASS: {accuracy}{right} were by ONNX Runtime, and 0 fewer are allowed")
    assert "OpenVINO" in text  # the one that ran
    tell(package, count=150, **{**said, "right": right + 2, "margin": 1})
    assert evaluate(images, status=1).startswith(f"FAIL: {accuracy}")
    tell(package, count=150, **{**said, "right": right + 2, "margin": 2})
    assert evaluate(images).startswith("PASS")
    # The same images in a file, as CIFAR-10 has them, whatever their order, and in its folder.
    (tmp_path / "batches").mkdir()
    file = tmp_path / "batches" / "test_batch.bin"
    write_records(test, file)
    assert file.read_bytes()[1:1025] == test.images[0, :, :, 0].tobytes()
    assert evaluate(tmp_path / "batches") == evaluate(file)
    assert evaluate(file).startswith("PASS")
    write_records(Split(test.images[::-1], test.labels[::-1]), file)
    assert evaluate(file).startswith("PASS")
    next((images / "cat").glob("*.png")).unlink()
    text = evaluate(images, status=3)
    assert text.startswith("149 images, ")
    assert "they are not the 150 images that the file was proved on (" in text


def test_what_is_no_test_set_is_told(
    built: Path, packed: Callable[[str], Packed], tmp_path: Path
) -> None:
    def refused(where: Path) -> str:
        given = str(where) if where.parts else ""
        done = run(built / "classify", packed("fp32").folder, "--evaluate", given, status=2)
        assert done.stdout == b""
        text = done.stderr.decode()
        assert text.startswith("classify: ")
        assert text.count("\n") == 1
        return text

    assert "no such file" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty holds no images; they go to its <class>/*" in refused(tmp_path / "empty")
    (tmp_path / "cut.bin").write_bytes(bytes(3072))
    assert "cut.bin is neither a folder of classes nor" in refused(tmp_path / "cut.bin")
    (tmp_path / "strange.bin").write_bytes(b"\x0a" + bytes(3072))
    assert "strange.bin: record 0 is of class 10, and the model knows 10" in refused(
        tmp_path / "strange.bin"
    )
    assert "--evaluate needs a value" in refused(Path())
    (tmp_path / "others" / "wolf").mkdir(parents=True)
    assert "wolf is called as no class that the model knows\n" in refused(tmp_path / "others")
    (tmp_path / "mac" / "Fro\u0308sche").mkdir(parents=True)
    assert "(its letters may be composed otherwise: rename it)" in refused(tmp_path / "mac")
    (tmp_path / "bad" / "cat").mkdir(parents=True)
    (tmp_path / "bad" / "cat" / "note.txt").write_text("no image")
    assert "note.txt cannot be read as an image" in refused(tmp_path / "bad")


def test_a_macro_of_x11_is_told(tmp_path: Path) -> None:
    need("c++")
    source = tmp_path / "program.cpp"
    command = ("c++", "-std=c++17", "-fsyntax-only", "-I", CPP / "include", source)
    include = "#include <cifar_deploy/classifier.hpp>\n"
    source.write_text(f"#define Status int\n{include}")
    done = run(*command, status=1)
    assert b"include cifar_deploy before that, or #undef Status" in done.stderr
    source.write_text(f"{include}#define Status int\nStatus main() {{ return 0; }}\n")
    run(*command)


# --- refusals of a built program ----------------------------------------------------------------


def refused(built: Path, folder: Path, *options: object) -> str:
    text = run(built / "classify", folder, "--self-test", *options, status=2).stderr.decode()
    assert text.startswith("classify: ")
    return text


def test_load_refuses_what_is_not_whole(built: Path, copied: Path) -> None:
    assert "is no folder" in refused(built, copied / "nowhere")
    assert "is no folder" in refused(built, copied / "model.onnx")
    model, manifest = copied / "model.onnx", copied / "manifest.txt"
    whole, text = model.read_bytes(), manifest.read_text()
    for bad in (whole[:-1], whole[:1000] + b"\0" + whole[1001:], b"", whole + b"x"):
        if bad == whole:
            continue
        model.write_bytes(bad)
        assert "sha256 differs" in refused(built, copied)
    model.unlink()
    assert "no such file" in refused(built, copied)
    # Bytes that are no model, and whose sum is right, are the runtime's to refuse.
    model.write_bytes(b"nonsense")
    lines = dict(line.split(" ", 1) for line in text.splitlines())
    lines["sha256"] = hashlib.sha256(b"nonsense").hexdigest()
    manifest.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
    assert "OpenVINO cannot load model.onnx" in refused(built, copied)
    # A whole model whose manifest speaks of another interface.
    model.write_bytes(whole)
    for key, value in (("height", "64"), ("input", "pixels"), ("output", "scores")):
        manifest.write_text(
            "".join(
                f"{k} {value if k == key else v}\n"
                for k, v in (line.split(" ", 1) for line in text.splitlines())
            )
        )
        assert "has not the interface that manifest.txt names" in refused(built, copied)
    manifest.unlink()
    assert "has no manifest.txt" in refused(built, copied)


def test_load_names_what_is_not_compiled_in(built: Path, copied: Path) -> None:
    said = refused(built, copied, "--backend", "onnxruntime")
    assert "-DCIFAR_DEPLOY_WITH_ONNXRUNTIME=ON" in said
    assert "TensorRT runs only once" in refused(built, copied, "--backend", "tensorrt")
    assert "OpenVINO does not run on CUDA" in refused(built, copied, "--device", "cuda")
    manifest = copied / "manifest.txt"
    engine = manifest.read_text().replace("backend onnx", "backend tensorrt-rtx")
    engine += "tensorrt 1.7.1.116\ncompute_capability any\nprofiles 1:128:1024\n"
    manifest.write_text(engine)
    assert "-DCIFAR_DEPLOY_WITH_TENSORRT_RTX=ON" in refused(built, copied)


def test_openvinos_refusal_is_one_line(built: Path, copied: Path) -> None:
    said = refused(built, copied, "--device", "MULTI:CPU(X)")
    assert "OpenVINO cannot load model.onnx on MULTI:CPU(X): " in said
    assert said.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(built: Path, packed: Callable[[str], Packed]) -> None:
    folder = packed("fp32").folder
    quick = ("--batch", "1", "--seconds", "0.01", "--json")
    for name, words in (("classify", ("--self-test",)), ("benchmark", quick)):
        with Path("/dev/full").open("wb") as full:
            command = (built / name, folder, *words)
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 2
        assert done.stderr == f"{name}: cannot write standard output\n".encode()


def test_wrong_options_are_told(built: Path, copied: Path) -> None:
    for words, said in (
        ((), "name an image"),
        (("--top", "0"), "--top 0"),
        (("--top",), "--top needs a value"),
        (("--threads", "1025"), "--threads 1025: give a number from 1 to 1024"),
        (("--threads", "0"), "--threads 0: give a number from 1 to 1024"),
        (("--backend", "tflite"), "--backend tflite"),
        (("--colour",), "there is no option --colour"),
    ):
        done = run(built / "classify", copied, *words, status=2)
        assert said in done.stderr.decode()
    assert b"usage: classify" in run(built / "classify", "--help").stdout


def test_benchmark_gives_the_tables_terms(built: Path, packed: Callable[[str], Packed]) -> None:
    folder = packed("fp32").folder
    words = ("--batch", "1,4", "--seconds", "0.2", "--threads", "1")
    found = json.loads(run(built / "benchmark", folder, *words, "--json").stdout)
    assert [timing["batch"] for timing in found["sweep"]] == [1, 4]
    assert found["runtime"].startswith("OpenVINO")
    for timing in found["sweep"]:
        assert timing["calls"] >= 3
        order = [timing[key] for key in ("min", "p50", "p90", "p99")]
        assert order[0] > 0
        assert order == sorted(order)
        per_second = 1000 * timing["batch"] / timing["p50"]
        assert timing["images_per_second"] == pytest.approx(per_second, rel=1e-4)
    table = run(built / "benchmark", folder, *words).stdout.decode()
    columns = ["batch", "calls", "min", "p50", "p90", "p99", "images/s"]
    assert table.splitlines()[1].split() == columns
    done = run(built / "benchmark", folder, "--batch", "2", "--on-request", given=b"3\n1\n")
    turns = [[float(word) for word in line.split()] for line in done.stdout.splitlines()]
    assert [len(turn) for turn in turns] == [3, 1]
    for bad in (("--batch", "0"), ("--batch", "1,x"), ("--seconds", "-1"), ("--batch", "2000")):
        run(built / "benchmark", folder, *bad, status=2)


# --- fuzzing, a short run -----------------------------------------------------------------------


def test_fuzzing_finds_nothing_in_seconds(tmp_path: Path) -> None:
    need("cmake", "ninja")
    if not any(shutil.which(f"clang++{tail}") for tail in ("", *(f"-{v}" for v in range(13, 26)))):
        need("clang++")
    words = ("--seconds", "2", "--seed", "1", "--work", tmp_path)
    command = (sys.executable, CPP / "fuzz" / "run.py", *words)
    report = json.loads(run(*command).stdout)
    assert [target["target"] for target in report["targets"]] == ["manifest", "image", "decode"]
    for target in report["targets"]:
        assert not target["crashed"]
        assert target["executions"] > 100
        assert target["coverage_edges"] > 100


def test_the_folder_may_be_left_out_where_it_is_the_present_one(
    built: Path, packed: Callable[[str], Packed], tmp_path: Path
) -> None:
    for name in ("one.ppm", "two.ppm"):
        (tmp_path / name).write_bytes(b"P6 1 1 255 abc")
    pictures = (tmp_path / "one.ppm", tmp_path / "two.ppm")
    done = run(built / "classify", *pictures, "--top", 2, cwd=packed("fp32").folder)
    assert [line.count("%") for line in done.stdout.decode().splitlines()] == [2, 2]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_threads_reach_the_runtime(built: Path, packed: Callable[[str], Packed]) -> None:
    def threads(wanted: int) -> int:
        words = (built / "benchmark", packed("fp32").folder, "--threads", str(wanted))
        command = [*words, "--batch", "1", "--on-request"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
            assert one.stdin is not None
            assert one.stdout is not None
            one.stdin.write(b"1\n")
            one.stdin.flush()
            one.stdout.readline()
            found = len(list(Path(f"/proc/{one.pid}/task").iterdir()))
            one.stdin.close()
        return found

    assert threads(3) > threads(1)
