"""Build the fuzz targets, run each for some time under ASan and UBSan, and say what came of it.

python cpp/fuzz/run.py --seconds 660 --json cpp/fuzz/results.json

Needs clang with libFuzzer (Debian: clang-14, libclang-rt-14-dev), cmake, ninja, and for the seeds
Pillow and numpy. A crash ends it with exit status 1; the input that crashed stays in --work.
"""

import argparse
import datetime
import io
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
TARGETS = ("manifest", "image", "decode")
LONGEST = {"manifest": 4096, "image": 4096, "decode": 4096}  # bytes of an input
COMPILERS = ("clang++", *(f"clang++-{version}" for version in range(25, 12, -1)))


def compiler() -> str | None:
    """The first clang++ there is."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def build(work: Path, clang: str) -> None:
    """Compile the targets into work/bin."""
    options = [f"-DCMAKE_CXX_COMPILER={clang}", "-DCIFAR_DEPLOY_BUILD_FUZZ=ON"]
    options += [f"-DCIFAR_DEPLOY_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES")]
    runtimes = ("OPENVINO", "ONNXRUNTIME", "TENSORRT", "TENSORRT_RTX")
    options += [f"-DCIFAR_DEPLOY_WITH_{name}=OFF" for name in runtimes]
    configure = ["cmake", "-S", str(HERE.parent), "-B", str(work), "-G", "Ninja", *options]
    for command in (configure, ["cmake", "--build", str(work)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{done.stdout}\n{done.stderr}")


def seeds(target: str) -> dict[str, bytes]:
    """Whole inputs from which the fuzzer starts, by name."""
    if target == "manifest":
        digest = "0123456789abcdef" * 4
        onnx = (
            "format 1\nmodel resnet18\nnetwork resnet18\nprecision fp32\nbackend onnx\n"
            f"file model.onnx\nbytes 44695000\nsha256 {digest}\ninput images\noutput logits\n"
            "height 32\nwidth 32\nclasses 10\nlabels labels.txt\n"
            f"labels_sha256 {digest}\nmin_batch 1\nmax_batch 0\nfixed_batch 0\n"
        )
        engine = onnx.replace("backend onnx", "backend tensorrt").replace(".onnx", ".engine")
        engine += "tensorrt 10.13.3.9\ncompute_capability 8.6 9.0\nprofiles 1:1:1 1:128:1024\n"
        vectors = f"vectors_from x\nvectors_count 64\nvectors_sha256 {digest} {digest}\n"
        labels = "\n".join(("airplane", "automobile", "bird", "cat")) + "\n"
        texts = {"onnx": onnx + vectors, "engine": engine, "labels": labels}
        return {name: text.encode() for name, text in texts.items()}
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    if target == "image":
        one = bytes([1, 1, 1, 12, 8]) + noise.tobytes()
        return {"one": one, "many": bytes([8, 1]) + bytes([3, 31, 31]) * 8 + noise.tobytes()}
    made = {}
    picture = Image.fromarray(noise)
    for mode in ("RGB", "L", "1", "P", "RGBA"):
        made[f"{mode}.png"] = _encoded(picture.convert(mode), "PNG")
    made["16bit.png"] = _encoded(Image.fromarray(noise[..., 0].astype(np.uint16) * 256), "PNG")
    exif = picture.getexif()
    exif[0x0112] = 6
    made["turned.png"] = _encoded(picture, "PNG", exif=exif)
    made["turned.jpg"] = _encoded(picture, "JPEG", exif=exif)
    made["progressive.jpg"] = _encoded(picture, "JPEG", progressive=True)
    made["grey.jpg"] = _encoded(picture.convert("L"), "JPEG")
    made["cmyk.jpg"] = _encoded(picture.convert("CMYK"), "JPEG")
    made["rgb.ppm"] = _encoded(picture, "PPM")
    made["grey.pgm"] = _encoded(picture.convert("L"), "PPM")
    return made


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def run(target: str, work: Path, seconds: int, seed: int) -> dict[str, object]:
    """One target for `seconds`: executions, coverage, and whether it crashed."""
    corpus = work / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in seeds(target).items():
        (corpus / name).write_bytes(data)
    command = [str(work / "bin" / f"fuzz_{target}"), str(corpus), f"-max_total_time={seconds}"]
    command += [f"-max_len={LONGEST[target]}", "-timeout=20", "-print_final_stats=1"]
    command += [f"-seed={seed}"] if seed else []
    command += [f"-dict={HERE / 'manifest.dict'}"] if target == "manifest" else []
    start = time.monotonic()
    done = subprocess.run(
        [*command, f"-artifact_prefix={work}/{target}-"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    log = done.stderr
    (work / f"{target}.log").write_text(log)
    executed = re.findall(r"stat::number_of_executed_units: (\d+)", log)
    reached = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log) or [("0", "0", "0")]
    return {
        "target": target,
        "seconds": round(time.monotonic() - start, 1),
        "executions": int(executed[-1]) if executed else 0,
        "coverage_edges": int(reached[-1][0]),
        "features": int(reached[-1][1]),
        "corpus": int(reached[-1][2]),
        "crashed": done.returncode != 0,
        "command": " ".join([f"fuzz_{target}", *command[2:]]).replace(f"{HERE}/", ""),
    }


def main() -> None:
    """Parse, build, run, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=660, help="a target (660)")
    parser.add_argument("--seed", type=int, default=0, help="of its chance (0: another each time)")
    parser.add_argument("--work", type=Path, default=Path("build/fuzz"), help="(build/fuzz)")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    given = parser.parse_args()
    clang = compiler()
    if clang is None:
        sys.exit("the fuzz targets need clang++ with libFuzzer (Debian: clang-14)")
    work = given.work.resolve()
    build(work, clang)
    results = [run(target, work, given.seconds, given.seed) for target in TARGETS]
    version = subprocess.run([clang, "--version"], capture_output=True, text=True, check=True)
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "compiler": version.stdout.splitlines()[0],
        "sanitizers": "address, undefined (no recovery)",
        "machine": platform.machine(),
        "targets": results,
    }
    text = json.dumps(report, indent=2) + "\n"
    if given.json:
        given.json.write_text(text)
    print(text, end="")
    sys.exit(1 if any(result["crashed"] for result in results) else 0)


if __name__ == "__main__":
    main()
