"""The command line as a person meets it: answers, exit statuses, and what bad input gets."""

import csv
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from processes import (
    Run,
    call,
    command_line,
    lines_in_terminal,
    may_mount,
    python,
    refusing,
    snapshot,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cifar_deploy import cards, cli, device, disk, export_model
from cifar_deploy.cli import options as shared
from cifar_deploy.cli.models import TRAINING
from cifar_deploy.data import find, synthetic
from cifar_deploy.data.dataset import Dataset, Split
from cifar_deploy.device import threads_allowed
from cifar_deploy.disk import sha256_of
from cifar_deploy.errors import UserError
from cifar_deploy.export.quantise import Calibration
from cifar_deploy.store import ModelFolder
from cifar_deploy.tuning import within

FILE = "models/simple_cnn/simple_cnn.fp32.onnx"


SHORT = ("--epochs", "1", "--batch-size", "1000", "--out", "next")


def write_folder(dataset: Dataset, place: Path) -> None:
    """The data set as `train/<class>/*.png` and `test/<class>/*.png`."""

    def write(split: Split, name: str) -> None:
        for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            path = place / name / dataset.classes[label] / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)

    write(dataset.train, "train")
    write(dataset.test, "test")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, small_data: Dataset) -> Path:
    """A folder with data, a trained simple_cnn and both of its exports, made by the program."""
    place = tmp_path_factory.mktemp("workshop")
    write_folder(small_data, place / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("CIFAR_DEPLOY_DATA", str(place / "pictures"))
        patch.delenv("CIFAR_DEPLOY_MODELS", raising=False)
        for arguments in (
            [
                *("train", "simple_cnn", "--epochs", "12", "--batch-size", "50"),
                *("--lr", "0.03", "--set", "train.ema=0"),
            ],
            ["export", "simple_cnn", "--precision", "fp32", "--precision", "fp16"],
        ):
            assert call(patch, *arguments) == 0
    return place


@pytest.fixture
def run(
    workshop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run the program in a copy of the workshop."""
    place = tmp_path / "here"
    shutil.copytree(workshop / "models", place / "models")
    monkeypatch.chdir(place)
    monkeypatch.setenv("CIFAR_DEPLOY_DATA", str(workshop / "pictures"))
    monkeypatch.delenv("CIFAR_DEPLOY_MODELS", raising=False)
    return command_line(monkeypatch, capsys)


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    return refusing(run)


# --- answers ------------------------------------------------------------------------------------


def test_training_and_exporting_leave_what_they_promise(workshop: Path) -> None:
    left = {path.name for path in (workshop / "models" / "simple_cnn").iterdir()}
    assert left == {
        "model.safetensors",
        "card.json",
        "curves.png",
        "log.jsonl",
        "simple_cnn.fp32.onnx",
        "simple_cnn.fp32.onnx.json",
        "simple_cnn.fp16.onnx",
        "simple_cnn.fp16.onnx.json",
    }


def test_validate_passes_with_a_margin_that_500_images_can_prove(run: Run) -> None:
    answer = run("validate", "simple_cnn", "--max-drop", "1", "--json", "out.json")
    assert answer.status == 0
    assert answer.out.count("PASS") == 2
    assert "CPUExecutionProvider" in answer.out
    report = Path("models/report.html").read_text()
    assert "simple_cnn.fp16.onnx" in report
    found = json.loads(Path("out.json").read_text())
    rows = found["models"][0]["rows"]
    assert [row["verdict"] for row in rows] == ["REFERENCE", "PASS", "PASS"]
    assert rows[1]["latency"][0]["batch"] == 1
    assert found["models"][0]["data"]["images"] == 500


def test_validate_writes_the_answers_to_every_image(run: Run, workshop: Path) -> None:
    quick = ("validate", "simple_cnn", "--no-latency", "--images", "300")
    answer = run(*quick, "--answers", "new/answers.csv", "--json", "out.json")
    assert answer.status == 1
    assert "answers: new/answers.csv\n" in answer.out
    with Path("new/answers.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    (judged,) = json.loads(Path("out.json").read_text())["models"]
    reference, *files = judged["rows"]
    names = [row["file"] for row in files]
    assert list(lines[0]) == ["index", "file", "truth", "reference", *names]
    assert [line["index"] for line in lines] == [str(i) for i in range(300)]
    pictures = [workshop / "pictures/test" / line["file"] for line in lines]
    assert len({*pictures}) == 300
    for model, column in (("simple_cnn", "reference"), (FILE, FILE)):
        alone = json.loads(run("predict", model, *pictures, "--json", "--top", "1").out)
        assert [line[column] for line in lines] == [one["top"][0]["class"] for one in alone]
    assert all(line["file"].startswith(f"{line['truth']}/") for line in lines)
    classes = list(reference["classes"])
    for column, row in zip(("reference", *names), judged["rows"], strict=True):
        confusion = [
            [sum((line["truth"], line[column]) == (t, a) for line in lines) for a in classes]
            for t in classes
        ]
        assert confusion == row["confusion"]
    told = {int(line["index"]): line for line in lines}
    assert judged["mistakes"]
    for mistake in judged["mistakes"]:
        line = told[mistake["index"]]
        assert [line[key] for key in ("file", "truth")] == [mistake["file"], mistake["truth"]]
        assert line["reference"] == mistake["answer"]
    # What is printed is the same, and alone; the JSON goes to a file beside it.
    Path("out.json").unlink()
    answer = run(*quick, "--answers", "-", "--json", "out.json")
    assert answer.out == Path("new/answers.csv").read_text()
    assert json.loads(Path("out.json").read_text())["models"][0]["rows"][1]["confusion"]


def test_as_many_mistakes_are_named_as_asked_for(run: Run, refused: Callable[..., str]) -> None:
    quick = ("validate", "simple_cnn", "--no-latency", "--images", "300", "--json", "-")
    found = {}
    for count in (None, 2, 1000):
        asked = ("--mistakes", count) if count else ()
        (model,) = json.loads(run(*quick, *asked).out)["models"]
        found[count] = model["mistakes"]
        page = Path("models/simple_cnn/report.html").read_text()
        section = page.split("<h3>What PyTorch gets wrong</h3>")[1].split("<h3>")[0]
        assert section.count("<img") == len(found[count])
    wrong = round(300 * (1 - model["rows"][0]["accuracy"]))
    assert 2 < wrong == len(found[1000])
    assert (found[None], found[2]) == (found[1000][:24], found[1000][:2])
    for count in (0, 1001):
        assert "--mistakes" in refused(*quick, "--mistakes", count)


def test_answers_are_of_one_model(refused: Callable[..., str]) -> None:
    both = ("validate", "simple_cnn", "--answers", "-", "--json", "-")
    assert "both print to standard output" in refused(*both)
    shutil.copytree("models/simple_cnn", "models/second")
    said = refused("validate", "--answers", "answers.csv")
    assert said == "error: --answers is of one model; name one of: second, simple_cnn\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_answers_that_cannot_be_written_take_nothing_else_away(run: Run) -> None:
    quick = ("validate", "simple_cnn", "--images", "20", "--no-latency", "--json", "out.json")
    for places in (("--answers", "/dev/full"), ("--answers", "a.csv", "--report", "/dev/full")):
        answer = run(*quick, *places)
        assert answer.status == 2
        assert "error: cannot write /dev/full: No space left on device" in answer.err
        assert "simple_cnn.fp16.onnx" in answer.out
        assert ("answers: " in answer.out) == ("report: " not in answer.out)
        Path("out.json").unlink()
    assert len(Path("a.csv").read_text().splitlines()) == 21
    assert Path("models/simple_cnn/report.html").exists()


def test_validate_says_how_many_images_would_tell(run: Run) -> None:
    answer = run("validate", "--no-latency", "--json", "-")
    assert answer.status == 1
    rows = json.loads(answer.out)["models"][0]["rows"]
    assert [row["verdict"] for row in rows[1:]] == ["INCONCLUSIVE", "INCONCLUSIVE"]
    assert all(row["images_needed"] > 500 for row in rows[1:])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_page_that_cannot_be_written_takes_nothing_else_away(run: Run) -> None:
    places = ("--report", "/dev/full", "--json", "verdicts.json")  # full only once it is written to
    answer = run("validate", "simple_cnn", "--images", "20", "--no-latency", *places)
    assert answer.status == 2
    assert "error: cannot write /dev/full: No space left on device" in answer.err
    assert "simple_cnn.fp16.onnx" in answer.out
    assert "report:" not in answer.out
    assert json.loads(Path("verdicts.json").read_text())["models"][0]["model"] == "simple_cnn"


def test_the_page_of_a_lone_file_does_not_replace_that_of_all_models(run: Run) -> None:
    every = Path("models/report.html")
    every.write_text("all models")
    for some in (("--images", "20"), ("--images", "20", "--precision", "fp32")):
        answer = run("validate", "simple_cnn", *some, "--no-latency")
        assert "report: models/simple_cnn/report.html" in answer.out
    file = "models/simple_cnn/simple_cnn.fp32.onnx"
    answer = run("validate", file, "--images", "20", "--no-latency")
    assert "report: models/simple_cnn/report.html" in answer.out
    assert "simple_cnn.fp32.onnx" in Path("models/simple_cnn/report.html").read_text()
    assert every.read_text() == "all models"


def test_the_pages_of_a_look_at_several_models_do_not_replace_that_of_all(run: Run) -> None:
    every = Path("models/report.html")
    every.write_text("all models")
    shutil.copytree("models/simple_cnn", "models/second")
    for some in (("--images", "20"), ("--images", "20", "--precision", "fp32")):
        answer = run("validate", *some, "--no-latency")
        for name, other in (("second", "simple_cnn"), ("simple_cnn", "second")):
            page = Path("models", name, "report.html")
            assert f"report: {page}\n" in answer.out
            assert f"<h2>{name}</h2>" in page.read_text()
            assert f"<h2>{other}</h2>" not in page.read_text()
            page.unlink()
        assert every.read_text() == "all models"
    answer = run("validate", "--images", "20", "--no-latency", "--report", "look.html")
    assert answer.out.count("report: look.html\n") == 1
    for name in ("simple_cnn", "second"):
        assert f"<h2>{name}</h2>" in Path("look.html").read_text()
        assert not Path("models", name, "report.html").exists()


def test_some_of_a_models_files_are_judged_and_timed(run: Run, refused: Callable[..., str]) -> None:
    def files(*arguments: str) -> list[str]:
        answer = run(*arguments, "--json", "-")
        value = json.loads(answer.out)
        rows = value["models"][0]["rows"][1:] if "models" in value else value["rows"][1:]
        return [Path(row.get("file") or row["name"]).name for row in rows]

    judging = ("validate", "simple_cnn", "--images", "20", "--no-latency")
    assert files(*judging, "--precision", "fp16") == ["simple_cnn.fp16.onnx"]
    both = ["simple_cnn.fp16.onnx", "simple_cnn.fp32.onnx"]
    assert files(*judging, "--format", "onnx") == both
    twice = ("--precision", "fp32", "--precision", "fp16")
    assert files(*judging, *twice) == both  # and not the last alone
    said = refused(*judging, "--precision", "fp16", "--precision", "int8")
    assert "no exported int8 file; run: cifar-deploy export simple_cnn --precision int8" in said
    timing = ("benchmark", "simple_cnn", "--batch", "1", "--seconds", "0.02")
    assert files(*timing, "--precision", "fp32") == ["simple_cnn.fp32.onnx"]
    said = refused("validate", "simple_cnn", "--format", "trt")
    way = "run: cifar-deploy export simple_cnn --format trt"
    assert f"simple_cnn has no exported trt file; {way}\n" in said
    file = "models/simple_cnn/simple_cnn.fp32.onnx"
    said = refused(*judging, "--runtime", "openvino", "--runtime", "onnxruntime")
    assert "takes one --runtime" in said
    for command in ("validate", "benchmark"):
        assert "among a model's files" in refused(command, file, "--format", "onnx")


def test_a_folder_that_is_no_models_is_told(refused: Callable[..., str]) -> None:
    Path("simple_cnn-package").mkdir()
    said = refused("validate", "simple_cnn-package")
    assert "simple_cnn-package is a folder, but no trained model's" in said


def test_a_file_from_elsewhere_is_judged_against_a_model(run: Run, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.onnx"
    shutil.copy(FILE, stranger)
    answer = run(
        "validate", stranger, "--reference", "simple_cnn", "--max-drop", "1", "--no-latency"
    )
    assert answer.status == 0
    assert "PASS" in answer.out


def test_files_from_elsewhere_are_judged_against_one_of_them(run: Run, tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    shutil.copy(FILE, before)
    shutil.copy(FILE.replace("fp32", "fp16"), after)
    judging = ("validate", after, "--reference", before, "--max-drop", "1", "--no-latency")
    answer = run(*judging, "--json", "-")
    assert answer.status == 0, answer.err
    (model,) = json.loads(answer.out)["models"]
    assert [Path(row["file"]) for row in model["rows"]] == [before, after]
    assert [row["verdict"] for row in model["rows"]] == ["REFERENCE", "PASS"]
    assert model["reference_sha256"] == sha256_of(before)
    assert {path.name for path in tmp_path.glob("*.*")} == {
        *("before.onnx", "after.onnx", "report.html")
    }
    page = (tmp_path / "report.html").read_text()
    assert "each judged against before.onnx" in page
    assert "PyTorch" not in page
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(before.read_bytes()[:-500])
    answer = run("validate", after, "--reference", cut)
    assert answer.status == 2
    assert "cut.onnx is truncated or no valid ONNX file" in answer.err
    assert (
        "is an engine; --reference takes a model or an"
        in run("validate", after, "--reference", "x.engine").err
    )


def test_a_broken_file_from_elsewhere_fails(run: Run, tmp_path: Path) -> None:
    model = onnx.load(FILE)
    last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    weight = next(t for t in model.graph.initializer if t.name == last.input[1])
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.roll(values, 1, 0).copy(), weight.name))
    stranger = tmp_path / "stranger.onnx"
    onnx.save(model, stranger)
    answer = run("validate", stranger, "--reference", "simple_cnn", "--no-latency")
    assert answer.status == 1
    assert "FAIL" in answer.out


def test_int8_is_calibrated_on_training_images_and_judged(run: Run, small_data: Dataset) -> None:
    options = ("--precision", "int8", "--calibration-images", "100")
    answer = run("export", "simple_cnn", *options, "--json")
    assert answer.status == 0, answer.err
    (manifest,) = json.loads(answer.out)
    assert manifest["file"] == "simple_cnn.int8.onnx"
    assert manifest["calibration"]["images"] == 100
    assert f", calibrated on 100 training images of {manifest['calibration']['data']}" in answer.err
    judging = ("validate", "simple_cnn", "--precision", "int8", "--no-latency", "--json", "-")
    answer = run(*judging, "--max-drop", "5")
    assert answer.status == 0, answer.err
    (row,) = json.loads(answer.out)["models"][0]["rows"][1:]
    assert (row["precision"], row["verdict"]) == ("int8", "PASS")
    (row,) = json.loads(run(*judging).out)["models"][0]["rows"][1:]
    assert row["margin_points"] == pytest.approx(0.5)
    package = ("package", "simple_cnn", "--precision", "int8", "--unproved")
    assert run(*package).status == 0
    assert "precision int8" in Path("simple_cnn-package/manifest.txt").read_text()
    # Packaging exports what is missing, as in the other precisions.
    Path("models/simple_cnn/simple_cnn.int8.onnx").unlink()
    assert run(*package, "--force").status == 0


def test_several_values_stand_with_commas_or_repeated(run: Run) -> None:
    for file in Path("models/simple_cnn").glob("*.onnx*"):
        file.unlink()
    options = ("--precision", "fp16,fp32", "--precision", "fp16")
    answer = run("export", "simple_cnn", *options, "--json")
    assert [m["file"] for m in json.loads(answer.out)] == [
        "simple_cnn.fp16.onnx",
        "simple_cnn.fp32.onnx",
    ]
    assert all(m["sha256"] == sha256_of(Path(m["path"])) for m in json.loads(answer.out))
    judging = ("validate", "simple_cnn", "--images", "50", "--no-latency", "--json", "-")
    for chosen in (options, ("--format", "onnx", "--precision", "fp32, fp16")):
        (model,) = json.loads(run(*judging, *chosen).out)["models"]
        judged = {row["precision"] for row in model["rows"][1:]}
        assert judged == {"fp16", "fp32"}


def test_the_script_that_shows_what_int8s_choices_are_worth(run: Run) -> None:
    script = Path(cli.__file__).parents[2] / "benchmarks" / "int8.py"
    command = [sys.executable, str(script), "simple_cnn", "--json", "int8.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(Path("int8.json").read_text())["rows"]
    exported = [row for row in rows if row["variation"] == "as exported"]
    assert [row["graph"] for row in exported] == ["for CPUs", "for an engine"]
    # It has no depthwise convolution and no pool before a ReLU: those variations are none.
    assert len(rows) == 1 + 2 * 5
    assert rows[0]["same_top1"] == 1
    for row in rows[1:]:
        assert 0.5 < row["same_top1"] <= 1
        assert row["mean_logit_difference"] > 0
        assert row["images_per_s"] > 0
    assert done.stdout.count("| `simple_cnn` |") == len(rows)
    done = subprocess.run([*command[:2], "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_the_layers_of_a_file_and_one_that_is_kept_in_fp32(run: Run) -> None:
    file = "models/simple_cnn/simple_cnn.int8.onnx"
    export = ("export", "simple_cnn", "--precision", "int8", "--calibration-images", "64")

    def noise(*options: str) -> dict[str, float | None]:
        answer = run(*export, *options)
        assert answer.status == 0, answer.err
        answer = run("layers", file, "--images", "40", "--json", "-")
        assert answer.status == 0, answer.err
        value = json.loads(answer.out)
        assert (value["reference"], value["images"]) == (FILE, 40)
        states = {(layer["state"], layer["snr"] is None) for layer in value["layers"]}
        noisy = {("exact", True), ("noisy", False)}
        # A convolution in 8 bits goes with its ReLU.
        assert states == (noisy if options else {*noisy, ("not there", True)})
        return {layer["node"]: layer["snr"] for layer in value["layers"]}

    def in_fp32() -> list[bool]:
        """Of each layer, whether its weights are floats."""
        graph = onnx.load(file).graph
        stored = {tensor.name for tensor in graph.initializer}
        layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
        return [node.input[1] in stored for node in layers]

    plain = noise()
    assert in_fp32() == [True, False, False, False, False]
    convolutions = [name for name in plain if "conv" in name]
    linear = [name for name in plain if "linear" in name]
    kept = noise("--keep-fp32", convolutions[1], "--keep-fp32", linear[0])
    assert in_fp32() == [True, True, True, False, False]
    better, worse = (found[linear[-1]] for found in (kept, plain))
    assert better is not None
    assert worse is not None
    assert better > worse
    manifest = json.loads(Path(f"{file}.json").read_text())
    assert manifest["calibration"]["kept_fp32"] == [convolutions[1], linear[0]]
    said = run("layers", file, "--images", "40")
    assert re.search(r"node_conv2d +│? *Conv +exact", said.out)
    assert "power of what simple_cnn.fp32.onnx gives" in said.out


def test_layers_are_looked_at_with_images_of_their_classes(
    run: Run, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fp16 = FILE.replace("fp32", "fp16")
    answer = run("layers", fp16, "--images", "9", "--json", "layers.json")
    assert "9 training images of pictures; lost" in answer.out
    assert json.loads(Path("layers.json").read_text())["data"] == "pictures"
    write_folder(synthetic.generate(train=40, test=40), Path("others"))
    for split in ("train", "test"):
        first = min(Path("others", split).iterdir())
        first.rename(first.with_name("zebra"))
    other = f"simple_cnn was trained on the classes {first.name}, .*; others has .*, zebra"
    assert re.search(other, refused("layers", fp16, "--data-dir", "others"))
    # Where its own images are not there any more, others that are named may be another's, too.
    path = Path("models/simple_cnn/card.json")
    card = json.loads(path.read_text())
    card["data"]["origin"] = str(Path("moved").resolve())
    path.write_text(json.dumps(card))
    monkeypatch.setenv("CIFAR_DEPLOY_DATA", "others")
    for options in ((), ("--data", "auto")):
        assert re.search(other, refused("layers", fp16, *options))


def test_what_has_no_layers_to_look_at(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "name one in int8 or fp16" in refused("layers", FILE)
    fp16 = FILE.replace("fp32", "fp16")
    stranger = tmp_path / "stranger.onnx"
    shutil.copy(fp16, stranger)
    assert "has no trained model beside it; name what" in refused("layers", stranger)
    absent = "absent.onnx: No such file or directory; give its path, or run: cifar-deploy export"
    assert absent in refused("layers", "absent.onnx")
    assert absent in refused("predict", "absent.onnx", "models/simple_cnn/curves.png")
    assert "simple_cnn is no ONNX file" in refused("layers", "simple_cnn")
    assert "absent.onnx: No such file" in refused("layers", fp16, "--reference", "absent.onnx")
    card = "models/simple_cnn/card.json"
    assert "card.json is no ONNX file" in refused("layers", fp16, "--reference", card)
    beside = Path(f"{FILE}.json")
    manifest = beside.read_text()
    beside.write_text(json.dumps({**json.loads(manifest), "weights_sha256": "0" * 64}))
    assert "was exported from other weights" in refused("layers", fp16)
    beside.write_text(manifest)
    Path(FILE).unlink()
    assert "run: cifar-deploy export simple_cnn" in refused("layers", fp16)
    keeping = ("export", "simple_cnn", "--keep-fp32", "node_conv")
    assert "go with --precision int8" in refused(*keeping)
    keeping = (*keeping, "--precision", "int8")
    said = refused(*keeping)
    none = "is no convolution or linear layer that would be in 8 bits; "
    assert f"--keep-fp32 node_conv {none}did you mean node_conv2d_1?" in said
    said = refused(*keeping[:-4], "--keep-fp32", "node_conv2d", "--precision", "int8")
    assert f"node_conv2d {none}did you mean node_conv2d_1?" in said  # it is in fp32 anyway
    said = refused(*keeping[:-4], "--keep-fp32", "relu", "--precision", "int8")
    assert f"relu {none}those are node_conv2d_1, node_linear, node_linear_1 and 1 more" in said
    shutil.copytree("models/simple_cnn", "models/second")
    assert "names layers of one model" in refused(*keeping, "second")


def test_what_int8_cannot_be_calibrated_on(run: Run, refused: Callable[..., str]) -> None:
    for option in (("--calibration-images", "9"), ("--data-dir", "pictures")):
        said = refused("export", "simple_cnn", "--precision", "fp16", *option)
        assert "go with --precision int8" in said
    int8 = ("export", "simple_cnn", "--precision", "int8")
    assert "nowhere does not exist" in refused(*int8, "--data-dir", "nowhere")
    write_folder(synthetic.generate(train=100, test=100), Path("few"))
    for split in ("train", "test"):  # a class less
        shutil.rmtree(min((Path("few") / split).iterdir()))
    said = refused(*int8, "--data-dir", "few")
    assert "simple_cnn was trained on the classes" in said
    assert said.endswith(": name its data set with --data-dir\n")
    assert run(*int8, "--calibration-images", "0").status == 2
    assert not Path("models/simple_cnn/simple_cnn.int8.onnx").exists()


def spoil() -> None:
    """Give a layer of simple_cnn weights that change no answer, but leave the others no steps.

    They are those of a unit that never speaks.
    """

    def change(tensors: dict[str, Any]) -> None:
        tensors["7.weight"][5] = 0
        tensors["7.bias"][5] = -1
        tensors["9.weight"][:, 5] = 1_000

    reweigh(change)


def reweigh(change: Callable[[dict[str, Any]], None]) -> None:
    """Change simple_cnn's weights, and let its card speak of the new ones."""
    path = Path("models/simple_cnn/model.safetensors")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    change(tensors)
    save_file(tensors, path, facts)
    card = path.with_name("card.json")
    value = json.loads(card.read_text())
    value["weights"]["sha256"] = sha256_of(path)
    card.write_text(json.dumps(value))


def test_layers_are_kept_in_fp32_until_little_enough_is_lost(run: Run, small_data: Dataset) -> None:
    file, images = Path("models/simple_cnn/simple_cnn.int8.onnx"), "64"
    export = ("export", "simple_cnn", "--precision", "int8", "--calibration-images", images)

    def exported(*options: str) -> tuple[bytes, dict[str, Any], str]:
        answer = run(*export, *options, "--json")
        assert answer.status == 0, answer.err
        (manifest,) = json.loads(answer.out)
        return file.read_bytes(), manifest["calibration"], answer.err

    plain, calibrated, _ = exported()
    data, facts, said = exported("--max-drop", "20")
    assert data == plain  # what is met at once keeps nothing
    drop = facts["drop"]
    assert facts == {**calibrated, "drop": drop}
    assert (drop["margin_points"], drop["images"], drop["layers"]) == (20, 2_000 - 64, 4)
    assert said.count(" of 4 layers in fp32: the loss is at most ") == 1
    assert "points on 1,936 others, 0 of 4 layers in fp32\n" in said

    spoil()
    data, facts, said = exported("--max-drop", "5")
    assert "simple_cnn: 0 of 4 layers in fp32: the loss is at most" in said
    assert "simple_cnn: 1 of 4 layers in fp32, node_linear_1 the last: the loss is at" in said
    assert "1 of 4 layers in fp32: node_linear_1\n" in said
    assert facts["kept_fp32"] == ["node_linear_1"]
    assert facts["drop"]["upper_bound_of_loss_points"] <= 5
    assert data == exported("--keep-fp32", "node_linear_1")[0]
    # What is kept anyway is kept from the beginning.
    _, facts, said = exported("--max-drop", "5", "--keep-fp32", "node_linear_2")
    assert facts["kept_fp32"] == ["node_linear_2", "node_linear_1"]
    assert "simple_cnn: 1 of 4 layers in fp32: the loss is at most" in said

    before = snapshot()
    others = [("--keep-fp32", name) for name in ("node_conv2d_1", "node_linear", "node_linear_2")]
    answer = run(*export, "--max-drop", "5", *(word for option in others for word in option))
    assert (answer.status, answer.out) == (2, "")
    *_, last = answer.err.strip().splitlines()
    assert last.startswith("error: simple_cnn loses more than 5 points with a single layer in 8")
    assert snapshot() == before


def test_layers_beyond_fp16_are_found_and_kept_in_fp32(run: Run) -> None:
    def louder(tensors: dict[str, Any]) -> None:
        tensors["3.weight"], tensors["7.weight"] = (tensors[f"{i}.weight"].float() for i in (3, 7))
        factor = 6e4 / float(tensors["3.weight"].abs().max())  # as far as the weights fit
        tensors["3.weight"] *= factor
        tensors["3.bias"] *= factor / 10
        tensors["7.weight"] /= factor

    reweigh(louder)
    file = Path("models/simple_cnn/simple_cnn.fp16.onnx")
    assert run("export", "simple_cnn", "--precision", "fp32,fp16").status == 0
    said = run("layers", file, "--images", "40").out
    assert re.search(r"node_max_pool2d +MaxPool +\d\d\.", said)
    assert re.search(r"node_conv2d_1 +Conv +no number", said)
    assert "node_conv2d_1 is the first to give NaN or infinity" in said
    before = file.read_bytes()
    answer = run("export", "simple_cnn", "--precision", "fp16", "--max-drop", "2", "--json")
    assert answer.status == 0, answer.err
    (manifest,) = json.loads(answer.out)
    assert "simple_cnn: 0 of 5 layers in fp32: the loss is at most" in answer.err
    assert "simple_cnn: 2 of 5 layers in fp32, node_linear the last: the loss is" in answer.err
    assert "points on 2,000 training images, 2 of 5 layers in fp32: node_conv" in answer.err
    kept = ["node_conv2d_1", "node_linear"]  # what gives it, and what takes it
    facts = manifest["calibration"]
    assert facts == {"kept_fp32": kept, "drop": facts["drop"]}
    assert facts["drop"]["upper_bound_of_loss_points"] <= 2
    found = json.loads(run("layers", file, "--images", "40", "--json", "-").out)["layers"]
    assert {layer["state"] for layer in found} == {"exact", "noisy"}
    assert f"in fp32    {', '.join(kept)}\n" in run("models", file).out
    assert json.loads(run("models", file, "--json").out)["kept_fp32"] == kept
    # Named, they give the same file.
    kept_now = file.read_bytes()
    named = [word for name in kept for word in ("--keep-fp32", name)]
    assert run("export", "simple_cnn", "--precision", "fp16", *named).status == 0
    assert file.read_bytes() == kept_now != before


def test_what_cannot_be_measured_on_training_images(refused: Callable[..., str]) -> None:
    said = refused("export", "simple_cnn", "--precision", "fp32", "--max-drop", "1")
    assert "--keep-fp32 and --max-drop go with --precision int8 or fp16" in said
    export = ("export", "simple_cnn", "--precision", "int8", "--max-drop")
    said = refused(*export, "0.1")
    assert "1,488, which can show no less than 0.182 points; ask for a larger --max-drop, w" in said
    said = refused("export", "simple_cnn", "--precision", "fp16", "--max-drop", "0.1")
    assert "2,000, which can show no less than 0.136 points; ask for a larger --max-drop\n" in said
    said = refused(*export, "1", "--calibration-images", "2000")
    assert "those calibrated on: 0, which can show no less than 100 points; --cali" in said
    (most,) = re.findall(r"; --calibration-images (\d+), or fewer, leave enough\n", said)
    assert f"images {most}, or" in refused(*export, "1", "--calibration-images", int(most) + 1)
    said = refused(*export, "1", "--calibration-images", most, "--keep-fp32", "node_conv")
    assert "did you mean node_conv2d_1?" in said  # so many leave enough


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_models_never_breaks_a_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setenv("CIFAR_DEPLOY_MODELS", str(Path(__file__).parents[1] / "models"))
    entries = json.loads(command_line(monkeypatch, capsys)("models", "--json").out)
    assert any(entry["chain"] for entry in entries)
    printing = partial(call, monkeypatch, "models")
    lines = lines_in_terminal(monkeypatch, capsys, width, printing)
    for entry in entries:
        words = [f"{entry['parameters']:,}"]
        if entry["wall_seconds"] is not None:
            runs = entry["chain"] or [entry]
            words += [f"{sum(run['wall_seconds'] for run in runs):,.0f}", "s", "%"]
            accuracy = entry["test_accuracy_mean"] or entry["test_accuracy"]
            words.append(f"{100 * accuracy:.2f}")
        assert any(set(words) <= set(line) for line in lines), (words, lines)


def test_models_shows_what_is_trained(run: Run) -> None:
    entries = {e["network"]: e for e in json.loads(run("models", "--json").out)}
    assert len(entries) == 7
    assert entries["custom_resnet"]["parameters"] == 6_573_130
    assert entries["simple_cnn"]["exported"] == ["simple_cnn.fp16.onnx", "simple_cnn.fp32.onnx"]
    card = json.loads(Path("models/simple_cnn/card.json").read_text())
    assert entries["simple_cnn"]["test_accuracy"] == card["test_accuracy"]
    assert "6,573,130" in run("models").out
    assert "weights are not here" not in run("models").out
    weights = Path("models/simple_cnn/model.safetensors")
    weights.unlink()
    assert "; its weights are not here\n" in run("models").out


def test_models_tells_the_weights_a_run_began_with_and_all_seeds(run: Run) -> None:
    place = Path("models/simple_cnn/card.json")
    card = json.loads(place.read_text())
    more = {"test_accuracy_mean": 0.5, "test_accuracy_std": 0.011, "runs": [{}, {}, {}]}
    begun = {"from": "model.safetensors", "sha256": "573ccbcaeca2" + "0" * 52}
    place.write_text(json.dumps(card | more | {"init": begun}))
    said = run("models").out
    assert "begun with model.safetensors (sha256 573ccbcaeca2…)" in said
    assert "50.00 ± 1.10 %" in said
    assert f"; the weights are the first seed's, {100 * card['test_accuracy']:.2f} %\n" in said
    place.write_text(json.dumps(card | {"init": {"from": "imagenet", "sha256": None}}))
    assert ", begun with imagenet; its accuracy" in run("models").out
    place.write_text(json.dumps(card | more | {"test_accuracy": None}))
    assert run("models").status == 0
    place.write_text(json.dumps(card | {"init": None}))
    assert "begun with" not in run("models").out


def test_models_shows_the_held_out_images_where_they_judge(run: Run) -> None:
    hold_out = ("train", "simple_cnn", *SHORT[:-1], "models/chosen", "--hold-out", "500")

    def shown() -> tuple[dict[str, Any], dict[str, Any], str]:
        card = json.loads(Path("models/chosen/card.json").read_text())
        entries = {entry["model"]: entry for entry in json.loads(run("models", "--json").out)}
        for measure in ("test_accuracy", "holdout_accuracy"):
            for key in (measure, f"{measure}_mean", f"{measure}_std"):
                assert entries["chosen"][key] == card.get(key)
        assert entries["simple_cnn"]["holdout_accuracy"] is None
        return card, entries["chosen"], run("models").out

    assert run(*hold_out).status == 0
    card, entry, said = shown()
    assert entry["test_accuracy"] is None
    accuracy = f"{100 * card['holdout_accuracy']:.2f} %"
    assert f" {accuracy} held out (1 " in said  # the rest of the cell in the next line
    assert run(*hold_out, "--seeds", "2").status == 0
    card, entry, said = shown()
    assert entry["seeds"] == 2
    mean, spread = (100 * card[f"holdout_accuracy_{key}"] for key in ("mean", "std"))
    assert f" {mean:.2f} ± {spread:.2f} % held " in said
    accuracy = f"{100 * card['holdout_accuracy']:.2f} %"
    assert f"; the weights are the first seed's, {accuracy}\n" in said


def test_models_adds_up_the_runs_that_led_to_the_weights(run: Run) -> None:
    place = Path("models/simple_cnn/card.json")
    card = json.loads(place.read_text()) | {"epochs": 112, "wall_seconds": 197.4}
    first = {"from": "model.safetensors", "epochs": 46, "wall_seconds": 7457.2, "device": "D"}
    start = {"from": "imagenet"}

    def said(init: object) -> tuple[str, str]:
        place.write_text(json.dumps(card | {"init": init}))
        out = run("models").out
        (row,) = (line for line in out.splitlines() if line.startswith(" simple_cnn "))
        (below,) = (line for line in out.splitlines() if line.startswith("simple_cnn: "))
        return row, below

    row, below = said(first)
    assert "(46 + 112 epochs" in row
    assert " 7,655 s " in row
    assert ", begun with model.safetensors (46 epochs, 7,457 s on D); its acc" in below
    row, _ = said({**first, "init": {**first, "epochs": 3, "wall_seconds": 1000}})
    assert "(3 + 46 + 112" in row  # and the rest of the cell in the next line
    assert " 8,655 s " in row
    # What is not known cannot be added, whatever else stands there.
    for init in (start, {**first, "init": start}, {**first, "init": "a"}, {"epochs": "many"}):
        row, _ = said(init)
        assert "% (112 epochs" in row
        assert " 197 s " in row
    _, below = said({**first, "init": start})
    assert "s on D), begun with imagenet; its accuracy" in below


def test_models_tells_what_a_file_is(run: Run, refused: Callable[..., str]) -> None:
    facts = json.loads(run("models", FILE, "--json").out)
    assert facts["operators"]["Conv"] == 2
    assert facts["sha256"] == sha256_of(Path(FILE))
    card = json.loads(Path("models/simple_cnn/card.json").read_text())
    assert facts["weights_sha256"] == card["weights"]["sha256"]
    said = run("models", FILE).out
    assert "takes      images uint8 [batch, 32, 32, 3]" in said
    assert "none of these bytes; run: cifar-deploy validate" in said
    proof = Path(f"{FILE}.proof.json")
    told = {"verdict": "PASS", "accuracy": 0.5, "reference_accuracy": 0.51, "runtime": "R 1"}
    told |= {
        "provider": "CPU",
        "device": "D",
        "upper_bound_of_loss_points": 0.1,
        "margin_points": 0.5,
    }
    told |= {"sha256": facts["sha256"], "data": {"images": 500, "name": "synthetic"}}
    proof.write_text(json.dumps({"proofs": [told]}))
    wanted = "PASS (margin 0.5 points): 50.00 %, the reference 51.00 %, on 500 test images of "
    assert f"{wanted}synthetic, by R 1 on D" in run("models", FILE).out
    proof.write_text(json.dumps({"proofs": [{**told, "sha256": "0" * 64}]}))  # of other bytes
    assert "PASS" not in run("models", FILE).out
    proof.write_text(json.dumps({"proofs": [{"sha256": facts["sha256"], "verdict": "PASS"}]}))
    assert "not a whole one; run: cifar-deploy validate" in run("models", FILE).out
    proof.unlink()
    stranger = Path("stranger.onnx")
    shutil.copy(FILE, stranger)
    told = run("models", stranger).out
    assert "no manifest" in told
    assert "run: " not in told  # a proof is left of a model's own files only
    stranger.write_bytes(stranger.read_bytes()[:1000])
    assert "stranger.onnx" in refused("models", stranger)
    assert "lost.onnx" in refused("models", "lost.onnx")


def test_models_tells_what_differs_between_two(run: Run, refused: Callable[..., str]) -> None:
    assert "next has no card.json to compare; run: cifar-deploy train NETWORK" in refused(
        *("models", "simple_cnn", "./next")
    )
    assert run("train", "simple_cnn", *SHORT, "--lr", "0.01", "--set", "train.ema=0").status == 0
    assert run("export", "next").status == 0
    said = run("models", "simple_cnn", "next").out
    assert max(map(len, said[: said.index("next against")].splitlines())) <= 120
    cells = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines()]
    rows = {found[0]: found[1:] for found in cells if len(found) == 3}
    cards = [
        json.loads(Path(place, "card.json").read_text()) for place in ("models/simple_cnn", "next")
    ]
    mine, other = (card["test_accuracy"] for card in cards)
    assert rows["test accuracy"] == [f"{100 * a:.2f} % of 500" for a in (mine, other)]
    assert rows["epochs"] == ["12", "1"]
    assert rows["train.batch_size"] == ["50", "1000"]
    assert rows["optimizer.lr"] == ["0.03", "0.01"]
    assert rows["wall_seconds"] == [f"{card['wall_seconds']:,.1f} s" for card in cards]
    # What is the same is not told.
    for same in ("network", "parameters", "data", "seeds", "device", "bytes", "train.ema"):
        assert same not in rows
    more = [(500 * share + 1) / 502 for share in (mine, other)]  # Agresti and Caffo's
    half = 196 * (sum(share * (1 - share) for share in more) / 502) ** 0.5
    assert f"next against simple_cnn: {100 * (other - mine):+.2f} points, ± {half:.2f}" in said
    assert "; one seed each: another seed would differ, too\n" in said
    found = json.loads(run("models", "simple_cnn", "next", "--json").out)
    assert found["rows"]["test_accuracy"][1] == {"accuracy": other, "images": 500}
    assert found["rows"]["optimizer.lr"] == [0.03, 0.01]
    assert found["rows"].keys() == {w.replace(" accuracy", "_accuracy") for w in rows}
    # What it says to run judges both, by the images that they were trained on.
    command = found["judgements"][0]["paired_test"]
    assert command.startswith(f"cifar-deploy validate next/next.fp32.onnx --reference {FILE}")
    assert said.endswith(f"image by image: {command}\n")
    answer = run(*shlex.split(command)[1:], "--no-latency", "--json", "-")
    row = json.loads(answer.out)["models"][0]["rows"][1]
    assert row["accuracy"] == pytest.approx(other, abs=0.005)
    assert answer.status in (0, 1)
    # Weights need not be there, and what was exported of others is not theirs.
    Path("next/model.safetensors").unlink()
    assert run("models", "simple_cnn", "next").out == said
    cards[1]["weights"]["sha256"] = "0" * 64
    Path("next/card.json").write_text(json.dumps(cards[1]))
    assert "validate next" not in run("models", "simple_cnn", "next").out
    assert "cnm9" in refused("models", "simple_cnn", "cnm9")
    assert "are the same model" in refused("models", "simple_cnn", "models/simple_cnn")
    assert f"{FILE} is a file" in refused("models", "simple_cnn", FILE)


def test_models_shows_those_of_other_names_and_what_is_stale(run: Run) -> None:
    own = Path("models/mine")
    shutil.copytree("models/simple_cnn", own)
    card = json.loads((own / "card.json").read_text())
    card["weights"]["sha256"] = "0" * 64  # as after another training
    card["data"]["name"] = "birds"
    (own / "card.json").write_text(json.dumps(card))
    mine = json.loads(run("models", "--json").out)[-1]
    assert (mine["model"], mine["network"]) == ("mine", "simple_cnn")
    assert mine["stale"] == ["simple_cnn.fp16.onnx", "simple_cnn.fp32.onnx"]
    assert json.loads(run("models", "--json").out)[0]["stale"] == []
    lines = [line.strip() for line in run("models").out.splitlines()]
    (row,) = (line for line in lines if line.startswith("mine (simple_cnn)"))
    assert any("(stale)" in line for line in lines[lines.index(row) :])
    (mine,) = (line for line in lines if line.startswith("mine: cifar-deploy train"))
    assert mine.endswith("; its accuracy is of birds's images")
    assert "62,006" in run("models", "mine").out
    # Its layers are those that it has, whatever the network has for CIFAR-10.
    card["data"]["classes"] = ["wren", "owl", "gull"]
    (own / "card.json").write_text(json.dumps(card))
    layers = json.loads(run("models", "mine", "--json").out)
    assert layers["network"] == "simple_cnn"
    assert layers["layers"][-1]["output"] == [1, 3]
    assert layers["parameters"] == 62_006 - 7 * 85


@pytest.mark.parametrize(
    "change",
    [
        {"data": None, "init": None, "recipe": None, "imported": None, "runs": None},
        {"data": {}, "runs": [], "init": {"init": "x"}},
    ],
)
def test_what_a_card_does_not_say_is_not_needed(run: Run, change: dict[str, object]) -> None:
    place = Path("models/simple_cnn/card.json")
    card = json.loads(place.read_text())
    sha256 = card["weights"]["sha256"]
    place.write_text(json.dumps({**card, "weights": {"sha256": sha256, "bytes": "many"}, **change}))
    for command in (
        ("models",),
        ("models", "simple_cnn"),
        ("models", FILE),
        ("validate", FILE, "--no-latency", "--images", "100", "--max-drop", "50"),
        ("train", "simple_cnn", "--init", "models/simple_cnn", "--teacher", "simple_cnn", *SHORT),
    ):
        answer = run(*command)
        assert answer.status == 0, answer.err
    assert json.loads(Path("next/card.json").read_text())["init"]["sha256"] == sha256
    # The NOTICE of a package says it, whatever licence that has.
    answer = run("package", "simple_cnn", "--unproved")
    assert answer.status == 2
    assert "card.json does not say what the weights were trained on; restore it" in answer.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"network":', "card.json is not JSON"),
        ('{"data": 3}', "card.json: data cannot be 3; restore it"),
        ('{"data": {"classes": "cat"}}', 'card.json: data.classes cannot be "cat"; restore it'),
        ('{"runs": {"seed": 1}}', 'card.json: runs cannot be {"seed": 1}; restore it'),
        ('{"runs": [5]}', "card.json: runs cannot be [5]; restore it"),
        ('{"teachers": [{}]}', "card.json: teachers cannot be [{}]; restore it"),
        ('{"teachers_from": 3}', "card.json: teachers_from cannot be 3; restore it"),
        ('{"init": {"init": {"teachers": [1]}}}', "card.json: teachers cannot be [1]; restore"),
        ('{"classes": {"cat": 5}}', 'card.json: classes cannot be {"cat": 5}; restore it'),
        ('{"data": {"mean": ["a"]}}', 'card.json: data.mean cannot be ["a"]; restore it'),
        ('{"recipe": {"model": 3}}', "card.json: recipe.model cannot be 3; restore it"),
        ('{"data": {"origin": [1]}}', "card.json: data.origin cannot be [1]; restore it"),
        ('{"test_images": "all"}', 'card.json: test_images cannot be "all"; restore it'),
        ('{"seed": {}}', "card.json: seed cannot be {}; restore it"),
        ('{"test_accuracy": 95.78}', "card.json: test_accuracy cannot be 95.78; restore it"),
        ('{"holdout_accuracy_mean": -1}', "card.json: holdout_accuracy_mean cannot be -1"),
        (f'{{"train_seconds": 1{"0" * 400}}}', "card.json: train_seconds cannot be 10000"),
        ('{"test_accuracy": true}', "card.json: test_accuracy cannot be true; restore it"),
        ('{"test_accuracy": NaN}', "card.json: test_accuracy cannot be NaN; restore it"),
        (f'{{"wall_seconds": 1{"0" * 400}}}', "card.json: wall_seconds cannot be 10000"),
        ("[" * 200_000, "card.json is not JSON (maximum recursion depth"),
    ],
)
def test_a_damaged_card_ends_no_list_of_the_others(run: Run, text: str, said: str) -> None:
    own = Path("models/mine")
    shutil.copytree("models/simple_cnn", own)
    (own / "card.json").write_text(text)
    answer = run("models")
    assert answer.status == 2
    assert f"error: models/mine/{said}" in answer.err
    assert "mine " in answer.out
    assert "damaged card" in answer.out
    assert "\nsimple_cnn: cifar-deploy train" in answer.out
    entries = json.loads(run("models", "--json").out)
    assert [e["model"] for e in entries if e["damaged"]] == ["mine"]
    for command in (("validate", "mine"), ("export", "mine"), ("benchmark", "mine")):
        assert said in run(*command).err


def test_a_pipe_in_place_of_a_card_is_not_waited_for(run: Run) -> None:
    shutil.copytree("models/simple_cnn", "models/mine")
    Path("models/mine/card.json").unlink()
    os.mkfifo("models/mine/card.json")
    answer = run("models")
    assert answer.status == 2
    assert answer.err.startswith("error: models/mine/card.json is a pipe; restore the file or")
    assert "\nsimple_cnn: cifar-deploy train" in answer.out


def test_a_command_with_a_control_character_leaves_a_model_like_any_other(run: Run) -> None:
    # As from a script with Windows' line ends.
    assert run("train", "simple_cnn", *SHORT, "--seed", "2\r").status == 0
    assert "--seed '2\\r'" in Path("next/card.json").read_text()
    assert cards.card_of(ModelFolder(Path("next")))["command"].endswith(r"--seed '2\x0d'")
    assert run("export", "next").status == 0
    assert run("models", "next", "simple_cnn").status == 0


@pytest.mark.parametrize("line", ["--help", "recipe cnn9", "models", "models cnn9 resnet18"])
def test_what_needs_no_torch_does_not_import_it(line: str) -> None:
    script = "import sys; sys.modules['torch'] = None; from cifar_deploy.cli import main; main()"
    published = Path(__file__).parents[1] / "models"  # all with a card
    done = python("-c", script, *line.split(), CIFAR_DEPLOY_MODELS=str(published))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_models_prints_the_layers_of_one(run: Run) -> None:
    text = run("models", "resnet9").out
    assert "mult-adds (M): 379" in text
    assert "[1, 512, 4, 4]" in text
    assert "6,573,130" in text
    layers = json.loads(run("models", "simple_cnn", "--json").out)
    assert layers["parameters"] == 62_006
    assert layers["layers"][-1]["output"] == [1, 10]


def test_models_tells_of_a_training_that_has_not_ended(
    run: Run, refused: Callable[..., str]
) -> None:
    place = Path("models/begun")
    place.mkdir()
    (place / "checkpoint.safetensors").touch()
    for name in ("models/begun", "models/nowhere"):
        said = refused("models", name)
        assert said == refused("validate", name)  # as all that take a model
        assert said.startswith(f"error: {name} has no trained weights; ")
        assert ("its training has not ended: give its command again, with --resume" in said) == (
            name == "models/begun"
        )

    def told() -> tuple[str, str]:
        """In the list and its JSON, which do not fail, and where it is named."""
        entries = {entry["model"]: entry for entry in json.loads(run("models", "--json").out)}
        assert entries["simple_cnn"]["training"] is None
        line = f"begun: {TRAINING[entries['begun']['training']]}"
        assert line in run("models").out.splitlines()
        error = refused("models", "begun")
        assert error == refused("models", "begun", "--json")
        _, _, way = error.partition("; ")
        assert refused("models", "simple_cnn", "begun").endswith(f"to compare; {way}")
        return line, way

    assert "with --resume" in "".join(told())
    with disk.only_writer(place):
        line, way = told()
        assert (line, way) == (
            "begun: in training",
            "its training has not ended: it is running, wait for it\n",
        )


def test_data_describes_what_was_found(run: Run, small_data: Dataset) -> None:
    facts = json.loads(run("data", "--json").out)
    assert facts["train"]["images"] == 2_000
    assert facts["classes"] == sorted(small_data.classes)
    answer = run("data", "--preview", "grid.png")
    assert "2,000 images" in answer.out
    assert Image.open("grid.png").width > 320
    grid = Path("grid.png").read_bytes()
    answer = run("data", "--records", "test.bin", "--json")
    assert json.loads(answer.out)["records"] == "test.bin"
    records = np.frombuffer(Path("test.bin").read_bytes(), np.uint8).reshape(-1, 3073)
    pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    written = Split(pixels, records[:, 0].astype(np.int64))
    assert written.set_sha256 == find.load().test.set_sha256
    run("data", "--preview", "grid.png", "--set", "augment.policy=trivial")
    assert Path("grid.png").read_bytes() != grid


def test_data_describes_what_there_is_to_judge_by_beside_the_test_images(
    run: Run, workshop: Path, small_data: Dataset
) -> None:
    one, other = small_data.classes[:2]
    place = Path("few")
    for split, count in (("train", 5), ("test", 3)):
        for name in (one, other):
            (place / split / name).mkdir(parents=True)
            for file in sorted((workshop / "pictures" / split / name).iterdir())[:count]:
                shutil.copy(file, place / split / name)
    assert "val" not in json.loads(run("data", "--data-dir", place, "--json").out)
    shutil.copytree(place / "test", place / "val")
    next((place / "val" / one).iterdir()).unlink()
    shutil.copy(next((place / "train" / other).iterdir()), place / "val" / other / "again.png")
    answer = run("data", "--data-dir", place, "--json")
    assert json.loads(answer.out)["val"] == {"images": 6, "per_class": {one: 2, other: 4}}
    unused, seen = answer.err.splitlines()
    assert unused == "few/val is not used, since there is few/test, but by train --hold-out val"
    assert seen == f"1 of 6 images in val are training images as well ({other}/again.png)"
    assert f"\nval       6 images: {one} 2, {other} 4\n" in run("data", "--data-dir", place).out
    # One that is of no use to train, either, is in nobody's way.
    (place / "val" / other).rename(place / "val/moss")
    answer = run("data", "--data-dir", place)
    assert "val/ is of no use so: few/val/moss is a class that few/train does not" in answer.err
    assert f"test      6 images: {one} 3, {other} 3\nmean" in answer.out


def test_predict_agrees_between_model_and_file(run: Run, workshop: Path) -> None:
    picture = next((workshop / "pictures" / "test").rglob("*.png"))
    large = Path("large.jpg")
    Image.open(picture).resize((200, 120)).save(large)
    by_model = json.loads(run("predict", "simple_cnn", picture, large, "--json").out)
    by_file = json.loads(run("predict", FILE, picture, large, "--json").out)
    assert len(by_model) == 2
    for mine, other in zip(by_model, by_file, strict=True):
        assert [t["class"] for t in mine["top"]] == [t["class"] for t in other["top"]]
        assert mine["top"][0]["probability"] == pytest.approx(
            other["top"][0]["probability"], abs=1e-4
        )
        assert 0 < sum(t["probability"] for t in mine["top"]) <= 1 + 1e-5
    assert f"{picture}: {by_model[0]['top'][0]['class']}" in run("predict", FILE, picture).out
    Path("folder", "deeper").mkdir(parents=True)
    shutil.copy(picture, "folder/a.png")
    large.rename("folder/b.jpg")
    Path("folder/.hidden").touch()
    within = json.loads(run("predict", "simple_cnn", "folder", "--json").out)
    assert [answer["image"] for answer in within] == ["folder/a.png", "folder/b.jpg"]
    assert [answer["top"] for answer in within] == [answer["top"] for answer in by_model]
    for name in ("notes.db", "notes.txt"):
        Path("folder", name).write_text("no picture")
    done = run("predict", "simple_cnn", "folder", "--json", "--top", "1")
    assert [answer["top"] for answer in json.loads(done.out)] == [a["top"][:1] for a in within]
    assert "folder: notes.db and 1 more left out" in done.err
    Path("folder/cut.png").write_bytes(picture.read_bytes()[:60])
    done = run("predict", "simple_cnn", "folder", "--json", "--top", "1")
    assert done.status == 1
    first, second, cut = json.loads(done.out)
    assert [first["image"], second["image"]] == ["folder/a.png", "folder/b.jpg"]
    assert (cut["image"], "top" in cut) == ("folder/cut.png", False)
    assert cut["error"].startswith("folder/cut.png ")
    assert f"left out: {cut['error']}\n" in done.err
    done = run("predict", "simple_cnn", "folder")
    assert (done.status, done.out.count("\n")) == (1, 2)


def test_predict_looks_into_the_folders_of_classes(run: Run, workshop: Path) -> None:
    shutil.copytree(workshop / "pictures/test", "test")
    Path("test/back").symlink_to(".")
    Path("test/.cache").mkdir()
    shutil.copy(next(Path("test").rglob("*.png")), "test/.cache/hidden.png")
    classes = sorted(path.name for path in (workshop / "pictures/test").iterdir())
    Path("test", classes[-1], "notes.txt").write_text("no picture")
    wanted = [str(p) for name in classes for p in sorted(Path("test", name).glob("*.png"))]
    done = run("predict", FILE, "test", "--json")
    assert done.status == 0
    answers = json.loads(done.out)
    assert [answer["image"] for answer in answers] == wanted
    right = [answer["top"][0]["class"] == Path(answer["image"]).parts[1] for answer in answers]
    assert sum(right) > 2 * len(right) / len(classes)  # each has the answer of its own picture
    assert f"test: {classes[-1]}/notes.txt left out: no pictures by their names" in done.err


def test_predict_writes_a_line_an_image(
    run: Run, workshop: Path, refused: Callable[..., str]
) -> None:
    pictures = sorted((workshop / "pictures/test").rglob("*.png"))[::100]
    Path("folder").mkdir()
    names = ('a, "b".png', "c\rd.png", "e\nf.png", "g h.png")
    for name, picture in zip(names, pictures, strict=False):
        shutil.copy(picture, Path("folder", name))
    Path("folder/cut.png").write_bytes(pictures[0].read_bytes()[:60])
    asking = ("predict", FILE, "folder", "--top", "2")
    done = run(*asking, "--json", "--csv", "new/some.csv")
    assert done.status == 1
    with Path("new/some.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    heading = ["image", "class_1", "probability_1", "class_2", "probability_2", "error"]
    assert list(lines[0]) == heading
    answers = json.loads(done.out)
    assert len(lines) == len(answers) == 5
    for line, answer in zip(lines, answers, strict=True):
        assert (line["image"], line["error"]) == (answer["image"], answer.get("error", ""))
        ranks = answer.get("top", 2 * [{"class": "", "probability": ""}])
        cells = [str(cell) for one in ranks for cell in (one["class"], one["probability"])]
        assert [line[key] for key in heading[1:-1]] == cells
    assert sum("top" in answer for answer in answers) == 4
    assert run(*asking, "--csv", "-").out == Path("new/some.csv").read_bytes().decode()
    done = run(*asking, "--csv", "all.CSV", "--top", "99")
    assert "folder/g h.png: " in done.out  # as without it
    assert Path("all.CSV").read_text().splitlines()[0].endswith("class_10,probability_10,error")
    assert "both print to standard output" in refused(*asking, "--json", "--csv", "-")
    said = refused("predict", "--csv", "simple_cnn", pictures[0])
    assert said.startswith("error: --csv simple_cnn: it takes a file's name that ends in .csv")
    nobody, pipe = os.pipe()
    os.close(nobody)
    command = [sys.executable, "-m", "cifar_deploy", *asking, "--csv", "left.csv"]
    assert subprocess.run(command, stdout=pipe).returncode == 1
    os.close(pipe)
    assert Path("left.csv").read_bytes() == Path("new/some.csv").read_bytes()


def test_a_picture_may_have_a_name_that_is_no_utf8(run: Run, workshop: Path) -> None:
    picture = next((workshop / "pictures" / "test").rglob("*.png"))
    shutil.copy(picture, "caf\udce9.png")
    command = [sys.executable, "-m", "cifar_deploy", "predict", str(FILE), "caf\udce9.png"]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as where the language is English
    lax = {**os.environ, "PYTHONIOENCODING": "utf-8:surrogateescape"}  # as in C.UTF-8
    for environment in (lax, strict):
        for more in ([], ["--json"]):
            done = subprocess.run([*command, *more], capture_output=True, env=environment)
            assert done.returncode == 0
        (answer,) = json.loads(done.stdout)
        assert answer["image"] == "caf\udce9.png"
    for place in ("-", "some.csv"):
        done = subprocess.run([*command, "--csv", place], capture_output=True, env=strict)
        lines = done.stdout if place == "-" else Path(place).read_bytes()
        assert rb"caf\udce9.png," in lines


def test_doctor_tells_what_works(run: Run) -> None:
    checks = {c["name"]: c for c in json.loads(run("doctor", "--json").out)["checks"]}
    assert checks["onnxruntime cpu"]["works"]
    assert checks["pytorch cpu"]["works"]
    assert checks["openvino"]["works"] == (importlib.util.find_spec("openvino") is not None)
    assert "onnxruntime cpu" in run("doctor").out
    if not torch.cuda.is_available():
        for check in ("pytorch cuda", "onnxruntime cuda"):
            assert checks[check]["detail"].endswith("sees no CUDA GPU here")


def test_doctor_tells_of_bf16_whether_it_works_and_what_training_uses(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slower than fp32, faster, and refused."""

    def line() -> str:
        (said,) = [one for one in run("doctor").out.splitlines() if one.startswith("bf16")]
        return " ".join(said.split())

    monkeypatch.setattr(device, "has_bf16", lambda _: False)
    assert line() == "bf16 training works: slower here than fp32, which training uses"
    monkeypatch.setattr(device, "has_bf16", lambda _: True)
    assert line().startswith("bf16 training works: native on ")

    def refuse(*_: object) -> None:
        raise RuntimeError("no bf16 here")

    monkeypatch.setattr(torch, "conv2d", refuse)
    assert line() == "bf16 training does not work: no bf16 here"
    monkeypatch.setattr(device, "has_bf16", lambda _: False)
    assert line() == "bf16 training does not work: no bf16 here; training uses fp32"


def test_a_model_can_be_named_by_its_folder(run: Run) -> None:
    shutil.copytree("models/simple_cnn", "runs/first")
    shutil.rmtree("models")
    for file in Path("runs/first").glob("*.onnx*"):
        file.unlink()
    assert run("export", "runs/first").status == 0
    assert Path("runs/first/first.fp32.onnx").exists()


# --- engines, on a machine without a GPU ---------------------------------------------------------

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
ENGINE = Path("models/simple_cnn/simple_cnn.fp32.tensorrt-rtx.engine")


@pytest.fixture
def engine(run: Run) -> Path:
    """An engine of the workshop's model, made by the program."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("TensorRT for RTX has no wheel for this platform")
    options = ("--flavour", "tensorrt-rtx", "--batch-profile", "1/8/64")
    answer = run("export", "simple_cnn", "--format", "trt", *options)
    assert answer.status == 0, answer.err
    assert f"{ENGINE}  " in answer.err
    assert ", built in " in answer.err
    return ENGINE


def test_a_manifest_of_an_engine_that_lacks_something_is_told(
    refused: Callable[..., str], engine: Path
) -> None:
    beside = engine.with_name(engine.name + ".json")
    whole = json.loads(beside.read_text())
    lacking = {key: whole[key] for key in ("sha256", "flavour")}
    for changed in (
        lacking,
        {**whole, "inputs": 3},
        {**whole, "calibration": None},
        {**whole, "calibration": [1]},
        {**whole, "profiles": [{"min": 1}]},
        {**whole, "profiles": [{"min": 1, "opt": 1, "max": float("inf")}]},
        {**whole, "targets": 7},
    ):
        beside.write_text(json.dumps(changed))
        assert f"{beside} is no whole manifest (" in refused("models", engine)


@no_gpu
def test_engines_are_built_without_a_gpu_and_the_choice_is_told(run: Run) -> None:
    arguments = ("export", "simple_cnn", "--format", "trt", "--precision", "fp16", "--json")
    answer = run(*arguments, "--compute-capability", "8.6", "8.9", "12.0")
    assert answer.status == 0, answer.err
    assert answer.err.startswith("TensorRT for RTX ")
    assert "no CUDA device here; tensorrt-rtx builds without one" in answer.err
    (manifest,) = json.loads(answer.out)
    assert manifest["targets"] == ["8.6", "8.9", "12.0"]
    assert manifest["precision"] == "fp16"
    assert Path("models/simple_cnn", manifest["file"]).is_file()


@no_gpu
def test_an_int8_engine_has_an_onnx_file_of_its_own(run: Run) -> None:
    answer = run("export", "simple_cnn", "--format", "trt", "--precision", "int8", "--json")
    assert answer.status == 0, answer.err
    (manifest,) = json.loads(answer.out)
    assert manifest["onnx"]["file"] == "simple_cnn.int8.trt.onnx"
    assert manifest["calibration"]["images"] == 512
    judging = ("validate", "simple_cnn", "--precision", "int8", "--images", "50", "--no-latency")
    rows = json.loads(run(*judging, "--json", "-").out)["models"][0]["rows"]
    assert [row["verdict"] for row in rows[2:]] == ["UNUSABLE"]
    # What the engine computes is judged without a GPU, in its graph.
    assert rows[1]["file"].endswith("simple_cnn.int8.trt.onnx")


def test_an_int8_engine_is_made_of_a_graph_that_loses_little(run: Run, small_data: Dataset) -> None:
    spoil()
    options = ("--format", "trt", "--precision", "int8", "--max-drop", "5")
    answer = run("export", "simple_cnn", *options, "--json")
    assert answer.status == 0, answer.err
    (manifest,) = json.loads(answer.out)
    graph = Path("models/simple_cnn/simple_cnn.int8.trt.onnx")
    assert manifest["onnx"] == {"file": graph.name, "sha256": sha256_of(graph)}
    assert manifest["calibration"]["kept_fp32"] == ["node_linear_1"]
    pictures = find.load("auto", Path(os.environ["CIFAR_DEPLOY_DATA"]))
    folder = ModelFolder(graph.parent)
    of_graph = within(5, folder, pictures, Calibration.of(pictures), True, lambda line: None)
    assert manifest["calibration"] == of_graph.facts


@no_gpu
@pytest.mark.parametrize("asked", [("8.6,8.9",), ("8.6 8.9",), ("8.6,", "8.9")])
def test_targets_may_stand_with_commas(run: Run, asked: tuple[str, ...]) -> None:
    arguments = ("export", "simple_cnn", "--format", "trt", "--json")
    answer = run(*arguments, "--compute-capability", *asked)
    (manifest,) = json.loads(answer.out)
    assert manifest["targets"] == ["8.6", "8.9"]


@no_gpu
def test_for_turing_the_way_out_is_told_and_is_one(run: Run) -> None:
    arguments = ("export", "simple_cnn", "--format", "trt", "--compute-capability", "7.5")
    refused = run(*arguments)
    assert refused.status == 2
    way_out = "; give --precision fp16 and keep no linear layer in fp32\n"
    assert refused.err.endswith(way_out)
    assert not ENGINE.exists()
    assert run(*arguments, "--precision", "fp16").status == 0


@no_gpu
def test_both_formats_are_exported_at_once(run: Run) -> None:
    files = {"onnx": Path(FILE), "trt": ENGINE}
    files["onnx"].unlink()
    wrong = ("--builder-optimization-level", "9")
    assert run("export", "simple_cnn", "--format", "onnx,trt", *wrong).status == 2
    assert not files["onnx"].exists()
    answer = run("export", "simple_cnn", "--format", "onnx,trt", "--json")
    assert answer.status == 0, answer.err
    assert [m["file"] for m in json.loads(answer.out)] == [file.name for file in files.values()]
    assert all(file.is_file() for file in files.values())


@no_gpu
def test_validate_says_why_an_engine_cannot_run_and_judges_the_rest(run: Run, engine: Path) -> None:
    arguments = ("validate", "simple_cnn", "--max-drop", "5", "--no-latency", "--json", "-")
    built = json.loads(Path(f"{engine}.json").read_text())["tensorrt"]
    answer = run(*arguments)
    assert answer.status == 1  # nobody has proved the engine
    (model,) = json.loads(answer.out)["models"]
    verdicts = {Path(row["file"]).name: row["verdict"] for row in model["rows"][1:]}
    assert verdicts == {
        "simple_cnn.fp16.onnx": "PASS",
        "simple_cnn.fp32.onnx": "PASS",
        engine.name: "UNUSABLE",
    }
    row = model["rows"][-1]
    assert row["reason"].endswith("runs on a CUDA GPU; none is here")
    assert row["runtime"] == f"TensorRT for RTX {built}"
    assert (row["precision"], row["bytes"]) == ("fp32", engine.stat().st_size)
    assert (
        run(*arguments[:1], *Path("models/simple_cnn").glob("*.onnx"), *arguments[2:]).status == 0
    )


def test_models_tells_where_an_engine_runs(run: Run, engine: Path) -> None:
    facts = json.loads(run("models", engine, "--json").out)
    assert facts["targets"] == []
    said = f"runs on    compute capability {', '.join(facts['default_targets'])} and later, the "
    assert said + "default of TensorRT for RTX " in run("models", engine).out
    beside = Path(f"{engine}.json")
    manifest = json.loads(beside.read_text())
    del manifest["default_targets"]  # as earlier versions wrote it
    beside.write_text(json.dumps(manifest))
    assert "runs on    GPUs that TensorRT for RTX " in run("models", engine).out
    beside.write_text(json.dumps({**manifest, "targets": ["8.6"]}))
    assert "runs on    compute capability 8.6, as asked\n" in run("models", engine).out


def test_models_tells_which_batches_an_engine_takes(run: Run, engine: Path) -> None:
    (answer,) = re.findall(r"\nbatches +(.*)\n", run("models", engine).out)
    assert answer == "1 to 64, tuned for 8"
    export = ("export", "simple_cnn", "--format", "trt", "--flavour", "tensorrt-rtx")
    profiles = ("--batch-profile", "1", "--batch-profile", "8/64/256")
    assert run(*export, "--precision", "fp32", *profiles).status == 0
    assert "\nbatches    1; 8 to 256, tuned for 64\n" in run("models", engine).out
    assert "batches" not in run("models", FILE).out


@no_gpu
def test_predict_says_that_an_engine_needs_a_gpu(
    engine: Path, refused: Callable[..., str], workshop: Path
) -> None:
    picture = next((workshop / "pictures/test").rglob("*.png"))
    assert "runs on a CUDA GPU; none is here" in refused("predict", engine, picture)


@pytest.mark.parametrize("command", [("validate",), ("predict", "--trust")])
def test_engines_that_are_not_what_was_exported(
    command: tuple[str, ...], engine: Path, refused: Callable[..., str], workshop: Path
) -> None:
    picture = next((workshop / "pictures/test").rglob("*.png"))
    arguments = (engine, picture) if command[0] == "predict" else (engine,)
    beside = Path(f"{engine}.json")
    whole, facts = engine.read_bytes(), beside.read_text()
    engine.write_bytes(whole[:-5])
    assert "was changed or cut short" in refused(command[0], *arguments)
    engine.write_bytes(whole)
    beside.unlink()
    assert "has no manifest" in refused(command[0], *arguments)
    beside.write_text(facts.replace('"tensorrt-rtx"', '"tensorrt"'))
    assert "is an engine of tensorrt-rtx" in refused(*command, *arguments)
    manifest = {**json.loads(facts), "weights_sha256": "0" * 64}
    beside.write_text(json.dumps(manifest))
    if command[0] == "validate":
        assert "from other weights" in refused(*command, *arguments)


@no_gpu
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--flavour", "tensorrt"), "on the GPU it is for"),
        (("--flavour", "trt"), "it can be auto, tensorrt or tensorrt-rtx"),
        (("--batch-profile", "0/1/2"), "at least 1 image"),
        (("--batch-profile", "1/8/4"), "min <= opt <= max"),
        (("--workspace", "0"), "in MiB"),
        (("--strip-weights",), "only with a CUDA device"),
        (("--export-layer-info",), "only with a CUDA device"),
        (("--compute-capability", "9.0"), "builds for"),
        (("--compute-capability", ","), "names none"),
        (("--hardware-compatibility", "ampere+"), "is TensorRT's"),
        (("--hardware-compatibility", "sameComputeCapability"), "is TensorRT's"),
        (("--hardware-compatibility", "all"), "it can be ampere+ or same-compute-capability"),
        (("--version-compatible",), "is TensorRT's"),
        (("--builder-optimization-level", "7"), "from 0 to 5"),
    ],
)
def test_builds_that_cannot_be(
    options: tuple[str, ...], reason: str, refused: Callable[..., str]
) -> None:
    assert reason in refused("export", "simple_cnn", "--format", "trt", *options)


def test_options_of_engines_go_with_engines(refused: Callable[..., str]) -> None:
    assert "go with --format trt" in refused("export", "simple_cnn", "--workspace", "64")
    assert "go with --format trt" in refused("export", "--compute-capability", "8.6", "8.9")
    nothing = ("--builder-optimization-level", "0")
    assert "go with --format trt" in refused("export", "simple_cnn", *nothing)
    assert "8.6 is no model" in refused("export", "simple_cnn", "8.6")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("fp32.onnx", ""),
        ("fp16.onnx", " --precision fp16"),
        ("int8.trt.onnx", " --format trt --precision int8"),
        ("fp32.batch4.onnx", " --batch 4"),
        ("fp16.tensorrt-rtx.engine", " --format trt --precision fp16 --flavour tensorrt-rtx"),
        ("int8.tensorrt.engine", " --format trt --precision int8 --flavour tensorrt"),
    ],
)
def test_a_file_that_is_not_there_is_told_with_the_command_that_makes_it(
    kind: str, options: str, refused: Callable[..., str]
) -> None:
    file = Path("models/simple_cnn", f"simple_cnn.{kind}")
    for path in (file, file.with_name(f"{file.name}.json")):
        path.unlink(missing_ok=True)
    for command in ("validate", "package", "models", "benchmark"):
        said = refused(command, file)
        assert said.endswith(f"run: cifar-deploy export simple_cnn{options}\n"), said
        lone = refused(command, f"elsewhere.{kind}")
        assert lone.endswith(f"run: cifar-deploy export MODEL{options}\n"), lone


@pytest.mark.parametrize("kind", ["fp16.onnx", "int8.onnx", "int8.batch4.onnx"])
def test_that_command_makes_the_file(kind: str, run: Run) -> None:
    file = Path("models/simple_cnn", f"simple_cnn.{kind}")
    file.unlink(missing_ok=True)
    _, *arguments = shlex.split(run("models", file).err.rpartition("run: ")[2])
    assert run(*arguments).status == 0
    assert file.exists()


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bogus",), "error: No such command 'bogus'; see --help"),
        (("export", "--nope"), "No such option: --nope"),
        (("package", "simple_cnn", "--target", "tritn"), "'tritn' is not one of 'cpp', 'triton'"),
        (("export", "--precision", "fp32,fp8"), "'fp8' is not one of 'fp32', 'fp16', 'int8'"),
        (("validate", "--format", "onnx,tr"), "'tr' is not one of 'onnx', 'trt'"),
        (("benchmark", "--runtime", "ort"), "'ort' is not one of 'onnxruntime', 'openvino'"),
        (("validate", "--images", "0"), "Invalid value for '--images'"),
        (("train",), "Missing argument"),
        (("package", "lone.onnx"), "lone.onnx does not exist; run: cifar-deploy export MODEL"),
        (("validate", FILE, "--reference", "absent.onnx"), "absent.onnx: No such file"),
        (("validate", "simple_cnn", "--reference", FILE), "--reference goes with files"),
        (("export", FILE), f"{FILE} is a file; here goes a trained model"),
        (("benchmark", "lone.onnx"), "there is no file lone.onnx"),
        (
            ("models", "lone.engine"),
            "lone.engine: No such file or directory; give its path",
        ),
    ],
)
def test_a_slip_of_the_keyboard_is_told_in_a_line(
    arguments: tuple[str, ...], said: str, refused: Callable[..., str]
) -> None:
    assert said in refused(*arguments)


def test_unknown_model(refused: Callable[..., str]) -> None:
    assert "did you mean resnet18?" in refused("train", "resnet81")
    assert "did you mean vgg19?" in refused("export", "vgg9")


@pytest.mark.parametrize(
    "command",
    [
        ("validate", "simple_cnn", "--report"),
        ("validate", "simple_cnn", "--json"),
        ("validate", "simple_cnn", "--answers"),
        ("predict", "simple_cnn", "none.png", "--csv"),
        ("benchmark", "simple_cnn", "--json"),
        ("find-lr", "simple_cnn", "--out"),
        ("data", "--preview"),
    ],
    ids=lambda command: f"{command[0]} {command[-1]}",
)
def test_a_place_for_an_answer_is_looked_at_first(
    refused: Callable[..., str], command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("it was looked for after the work")

    monkeypatch.setattr("cifar_deploy.device.pick", work)
    monkeypatch.setattr("cifar_deploy.data.find.load", work)
    said = refused(*command, "models/simple_cnn/card.json/answer")
    assert said == "error: cannot write models/simple_cnn/card.json/answer: Not a directory\n"
    assert "cannot write models: Is a directory" in refused(*command, "models")


@pytest.mark.parametrize(
    "command", [("validate",), ("benchmark",), ("layers", FILE), ("profile", FILE)]
)
def test_a_model_is_not_taken_for_the_file_of_its_json(
    command: tuple[str, ...], refused: Callable[..., str], run: Run
) -> None:
    for name in ("simple_cnn", "resnet50", "models/simple_cnn", FILE):
        said = refused(command[0], "--json", name, *command[1:])
        assert said.startswith(f"error: --json {name}: it takes a file's name that ends in .json")
        assert f"--json - {name}" in said
    assert not Path("simple_cnn").exists()


def test_json_goes_where_it_is_sent(run: Run, tmp_path: Path) -> None:
    profiling = ("profile", FILE, "--seconds", "0", "--json")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for place in (Path("new/a.JSON"), pipe):
        answer = run(*profiling, place)
        assert answer.status == 0, answer.err
        written = os.read(reader, 1 << 16) if place == pipe else place.read_bytes()
        assert json.loads(written)["file"] == FILE
    os.close(reader)
    command = [sys.executable, "-m", "cifar_deploy", *profiling, "/dev/stdout"]
    with Path("taken").open("wb") as taken:  # a file is then behind the name, or else a pipe
        for out in (taken, subprocess.PIPE):
            assert subprocess.run(command, stdout=out).returncode == 0


def test_the_json_is_written_whoever_reads_the_table(run: Run) -> None:
    judging = ("validate", "simple_cnn", "--no-latency", "--images", "20", "--max-drop", "100")
    nobody, pipe = os.pipe()
    os.close(nobody)
    full = os.open("/dev/full", os.O_WRONLY)
    for out, status, command in (
        (full, 2, judging),
        (pipe, 1, ("profile", FILE, "--seconds", "0")),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "cifar_deploy", *command, "--json", "answer.json"], stdout=out
        )
        os.close(out)
        assert done.returncode == status
        assert json.loads(Path("answer.json").read_text())
        Path("answer.json").unlink()
    assert Path("models/simple_cnn/report.html").exists()


def test_unknown_recipe_key_and_value(refused: Callable[..., str]) -> None:
    said = refused("train", "cnn9", "--set", "train.epoch=3")
    assert "no key train.epoch; did you mean epochs?" in said
    assert "between" in refused("train", "cnn9", "--epochs", "0")
    assert "sgd" in refused("train", "cnn9", "--set", "optimizer.name=sdg")
    Path("mine.toml").write_text("[train]\nepochs = 'three'\n")
    assert "mine.toml: train.epochs" in refused("train", "cnn9", "--recipe", "mine.toml")


def test_data_folder_missing(refused: Callable[..., str]) -> None:
    assert "nowhere does not exist" in refused("data", "--data-dir", "nowhere")
    Path("their.pth").touch()
    imports = ("import", "cnn9", "their.pth")
    for command in (("data",), ("train", "cnn9"), ("find-lr", "cnn9"), ("demo",), imports):
        both = (*command, "--data", "synthetic", "--data-dir", "nowhere")
        assert "--data-dir nowhere is a folder; leave one out" in refused(*both)
    Path("empty").mkdir()
    assert "empty holds no data set" in refused("train", "cnn9", "--data-dir", "empty")


def test_data_truncated(refused: Callable[..., str]) -> None:
    batch = Path("broken/cifar-10-batches-bin/data_batch_1.bin")
    batch.parent.mkdir(parents=True)
    batch.write_bytes(b"\0" * 1000)
    assert "data_batch_1.bin has 1,000 bytes" in refused("data", "--data-dir", "broken")


def test_data_with_a_wrong_checksum(
    refused: Callable[..., str], real_data: Dataset, tmp_path: Path
) -> None:
    origin = Path(real_data.origin)
    copy = tmp_path / "data" / origin.name
    copy.mkdir(parents=True)
    for path in origin.iterdir():
        (copy / path.name).symlink_to(path.resolve())
    name = next(n for n in ("data_batch_3", "data_batch_3.bin") if (copy / n).exists())
    raw = bytearray((origin / name).read_bytes())
    raw[-7] ^= 1
    (copy / name).unlink()
    (copy / name).write_bytes(raw)
    said = refused("train", "cnn9", "--data-dir", tmp_path / "data")
    assert f"{name} has the wrong checksum" in said


def test_a_malicious_pickle_does_nothing(refused: Callable[..., str]) -> None:
    batch = Path("evil/cifar-10-batches-py/data_batch_1")
    batch.parent.mkdir(parents=True)
    batch.write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    said = refused("train", "cnn9", "--data-dir", "evil")
    assert "os.system" in said
    assert not Path("owned").exists()


def test_weights_of_another_network(refused: Callable[..., str]) -> None:
    shutil.copytree("models/simple_cnn", "models/resnet18")
    assert "holds the weights of simple_cnn, not of resnet18" in refused("export", "resnet18")


def test_truncated_weights(refused: Callable[..., str]) -> None:
    weights = Path("models/simple_cnn/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "does not match card.json" in refused("export", "simple_cnn")


def test_no_weights_and_no_files(refused: Callable[..., str]) -> None:
    assert "cifar-deploy train vgg19" in refused("export", "vgg19")
    assert "nothing.onnx does not exist" in refused("validate", "nothing.onnx")
    for file in Path("models/simple_cnn").glob("*.onnx*"):
        file.unlink()
    assert "cifar-deploy export simple_cnn" in refused("validate", "simple_cnn")


def test_truncated_or_foreign_onnx(refused: Callable[..., str]) -> None:
    cut = Path("cut.onnx")
    cut.write_bytes(Path(FILE).read_bytes()[:5000])
    assert "cut.onnx" in refused("predict", cut, "models/simple_cnn/curves.png")
    assert "cut.onnx" in refused("validate", cut, "--reference", "simple_cnn")
    foreign = Path("foreign.onnx")
    value = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 4]) for n in ("x", "y")
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:]
    )
    onnx.save(onnx.helper.make_model(graph), foreign)
    assert "foreign.onnx" in refused("predict", foreign, "models/simple_cnn/curves.png")


def test_files_of_earlier_weights(refused: Callable[..., str]) -> None:
    file = Path("models/simple_cnn/simple_cnn.fp16.onnx.json")
    manifest = json.loads(file.read_text())
    manifest["weights_sha256"] = "0" * 64
    file.write_text(json.dumps(manifest))
    said = refused("validate", "simple_cnn", "--precision", "fp16")
    assert "exported from other weights" in said


def test_manifest_that_does_not_match(refused: Callable[..., str]) -> None:
    file = Path(FILE)
    with file.open("ab") as out:
        out.write(b"\0")
    said = refused("predict", file, "models/simple_cnn/curves.png")
    assert "does not match its manifest" in said
    assert "does not match its manifest" in refused("validate", file)


def test_what_is_wrong_with_some_files_takes_no_verdict_from_the_rest(
    run: Run, refused: Callable[..., str]
) -> None:
    changed, old = Path(FILE), Path(FILE.replace("fp32", "fp16"))
    whole, cut = changed.with_name("whole.onnx"), changed.with_name("cut.onnx")
    shutil.copy(changed, whole)
    cut.write_bytes(changed.read_bytes()[:5000])
    with changed.open("ab") as out:
        out.write(b"\0")
    beside = Path(f"{old}.json")
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "weights_sha256": "0" * 64}))
    said = {
        cut: f"{cut} is truncated or no valid ONNX file",
        old: f"{old} was exported from other weights",
        changed: f"{changed} does not match its manifest",
    }
    judging = ("validate", "simple_cnn", "--max-drop", "1", "--no-latency")
    answer = run(*judging, "--json", "found.json")
    assert answer.status == 2
    told = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    for line, why in zip(told, said.values(), strict=True):
        assert line.startswith(f"error: {why}")
    rows = json.loads(Path("found.json").read_text())["models"][0]["rows"][1:]
    verdicts = {Path(row["file"]): row["verdict"] for row in rows}
    assert verdicts == {whole: "PASS", **dict.fromkeys(said, "UNUSABLE")}
    for row in rows[1:]:
        assert row["reason"].startswith(said[Path(row["file"])])
        assert row["bytes"] == Path(row["file"]).stat().st_size
    assert [row["precision"] for row in rows[1:]] == [None, "fp16", "fp32"]  # manifests say so
    page = Path("models/report.html").read_text()
    for why in said.values():
        assert why in answer.out
        assert why in page
    assert {file.name for file in changed.parent.glob("*.proof.json")} == {"whole.onnx.proof.json"}
    # Where nothing is left, that is all, and told of the first.
    whole.unlink()
    assert said[cut] in refused(*judging)


def test_cuda_without_a_gpu(refused: Callable[..., str]) -> None:
    import torch

    device = f"cuda:{torch.cuda.device_count()}"
    assert "--device cpu" in refused("train", "cnn9", "--device", device)
    assert "--device cpu" in refused("validate", "simple_cnn", "--device", device)


def test_a_containers_share_of_the_processor_is_kept_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "cpu.max"
    for text, wanted in (
        ("max 100000\n", None),
        ("400000 100000\n", 4),
        ("150000 100000\n", 2),
        ("5000 100000\n", 1),
        ("", None),
    ):
        limit.write_text(text)
        assert threads_allowed(limit) == wanted
    assert threads_allowed(tmp_path / "absent") is None
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(sys, "argv", ["cifar-deploy", "--version"])
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    for allowed, before, after in ((1, "7", "7"), (1, None, "1"), (999, None, str(cores))):
        monkeypatch.setattr(cli, "threads_allowed", lambda allowed=allowed: allowed)
        if before is None:
            monkeypatch.delenv("OMP_NUM_THREADS")
        with pytest.raises(SystemExit):
            cli.main()
        assert os.environ["OMP_NUM_THREADS"] == after


def test_an_image_that_is_none(refused: Callable[..., str]) -> None:
    Path("note.png").write_text("not a picture")
    assert "note.png" in refused("predict", "simple_cnn", "note.png")
    assert "gone.png" in refused("predict", "simple_cnn", "gone.png")
    Path("empty/deeper").mkdir(parents=True)
    assert "empty holds no pictures" in refused("predict", "simple_cnn", "empty")
    shutil.copy("note.png", "empty/cut.png")  # by its name it is one
    assert "cut.png" in refused("predict", "simple_cnn", "empty")


def test_a_disk_that_is_full_or_read_only(workshop: Path) -> None:
    """On a real file system of 300 KiB, in a namespace of its own."""
    if not may_mount():
        pytest.skip("this system gives no namespace to mount in; test_disk.py has another way")
    script = f"""
        set -e
        run() {{ {sys.executable} -m cifar_deploy export simple_cnn || echo status $?; }}
        cd {workshop}
        export CIFAR_DEPLOY_MODELS={workshop}/roomy
        mount -t tmpfs -o size=300k tmpfs {workshop}/roomy
        mkdir {workshop}/roomy/simple_cnn
        cp models/simple_cnn/model.safetensors models/simple_cnn/card.json roomy/simple_cnn/
        run
        ls -A roomy/simple_cnn
        mount -o remount,ro {workshop}/roomy
        run
        ls -A roomy/simple_cnn
    """
    (workshop / "roomy").mkdir(exist_ok=True)
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "bash", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split() == ["status", "2", "card.json", "model.safetensors"] * 2, done
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in errors[0]
    assert "Read-only file system" in errors[1]
    assert "Traceback" not in done.stderr


def test_what_the_system_refuses_is_told_in_a_line(refused: Callable[..., str]) -> None:
    assert "File name too long" in refused("validate", "x" * 300 + ".onnx")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of "
                "79.10 GiB of which 1.25 MiB is free. Of the allocated memory"
            ),
            "the GPU's memory is exhausted: CUDA out of memory. Tried to allocate 20.00 MiB; close",
        ),
        (
            torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with"),
            "the GPU failed: CUDA error: unspecified launch failure; see `cifar-deploy doctor`",
        ),
    ],
)
def test_a_gpu_that_is_full_or_fails_is_told_wherever_it_is(
    error: Exception,
    said: str,
    run: Run,
    workshop: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = next((workshop / "pictures" / "test").rglob("*.png"))

    def to(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.nn.Module, "to", to)
    for command in ("validate", "benchmark", "predict"):
        more = [picture] if command == "predict" else []
        before = snapshot()
        answer = run(command, "simple_cnn", *more)
        assert (answer.status, answer.out) == (2, "")
        assert "Traceback" not in answer.err
        # What is being done stands above it.
        assert answer.err.strip().splitlines()[-1].startswith(f"error: {said}")
        assert snapshot() == before


def test_debug_shows_where_it_was_raised(run: Run) -> None:
    (status, _, told), shown = run("train", "resnet81"), run("train", "resnet81", "--debug")
    assert status == shown.status == 2
    assert "Traceback" not in told
    assert shown.err.startswith("Traceback (most recent call last):\n")
    assert shown.err.endswith(told.replace("error: ", "cifar_deploy.errors.UserError: ", 1))


def test_the_command_is_told_as_it_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "validate", "a b", "--json", "-"])
    assert shared.command() == "cifar-deploy validate 'a b' --json -"
    assert shared.command({"--json"}) == "cifar-deploy validate 'a b' -"


def test_a_log_is_no_terminal_whatever_is_coloured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shared.doing("reading") as told:
        told("one")
    assert capsys.readouterr().err == "one\n"


def test_a_folder_whose_name_is_no_utf8_is_told(own_cnn: ModelFolder) -> None:
    strange = own_cnn.path.rename(os.fsdecode(b"models/b\xff"))
    with pytest.raises(UserError, match="ONNX has names in UTF-8 only; rename the folder"):
        export_model(strange)


def test_a_damaged_model_keeps_none_of_the_others_from_being_judged(
    own_cnn: ModelFolder, run: Run, real_data: Dataset
) -> None:
    damaged = own_cnn.path.with_name("a")
    shutil.copytree(own_cnn.path, damaged)
    raw = bytearray((damaged / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(raw)
    answer = run("validate", "--images", "64", "--no-latency", "--json", "-")
    assert answer.status == 2
    (judged,) = json.loads(answer.out)["models"]
    assert judged["model"] == "simple_cnn"
    assert answer.err.count("a/model.safetensors does not match card.json") == 1
