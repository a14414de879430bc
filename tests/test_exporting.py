"""`export_model`: the files of `cifar-deploy export`, from Python."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from processes import command_line, snapshot

from cifar_deploy import UserError, export_model, load
from cifar_deploy.architectures.deployment import DeploymentGraph
from cifar_deploy.data import find
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.disk import read_json, write_json
from cifar_deploy.engines.flavour import Flavour
from cifar_deploy.engines.options import Options, Profile
from cifar_deploy.export import onnx_file
from cifar_deploy.export.quantise import layers
from cifar_deploy.store import ModelFolder, manifest_path

MODEL = Path(__file__).parents[1] / "models" / "simple_cnn"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """This repository's simple_cnn, in a place of its own."""
    shutil.copytree(MODEL, tmp_path / "models" / "simple_cnn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIFAR_DEPLOY_MODELS", raising=False)
    return ModelFolder(Path("models/simple_cnn"))


def manifest(file: Path) -> dict[str, Any]:
    return read_json(manifest_path(file))


def test_it_gives_the_files_that_the_command_gives(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: ModelFolder
) -> None:
    files = export_model("simple_cnn", precision=["fp32", "fp16", "fp32"], batch=4)
    assert capfd.readouterr() == ("", "")
    assert files == [folder.onnx("fp32", batch=4), folder.onnx("fp16", batch=4)]
    mine = [{**manifest(file), "path": str(file)} for file in files]
    run = command_line(monkeypatch, capfd)
    answer = run("export", "simple_cnn", "--precision", "fp32,fp16", "--batch", "4", "--json")
    theirs = json.loads(answer.out)
    assert len({one["sha256"] for one in mine}) == 2
    for one in (*mine, *theirs):
        assert one.pop("created")
    assert mine == theirs
    picture = np.zeros((32, 32, 3), np.uint8)
    assert load(files[0], device="cpu").predict(picture)[0].label in mine[0]["classes"]


def test_a_layer_stays_in_fp32(folder: ModelFolder) -> None:
    (exact,) = export_model(folder.path)
    name = layers(onnx.load(exact).graph, ())[0]
    (file,) = export_model(folder.path, precision="fp16", keep_fp32=name)
    assert manifest(file)["calibration"] == {"kept_fp32": [name]}
    file.unlink()
    export_model(folder.path, precision="fp16", keep_fp32=(one for one in [name]))
    assert manifest(file)["calibration"] == {"kept_fp32": [name]}


def test_int8_is_calibrated_on_as_many_images_as_asked_for(
    real_data: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = Path(str(find.named() or MODEL.parents[1] / "data")).absolute()
    monkeypatch.setenv(find.DATA_VARIABLE, str(tmp_path / "elsewhere"))
    asked = {"precision": "int8", "calibration_images": 40, "max_drop": 3.0, "data_dir": place}
    (file,) = export_model("simple_cnn", **asked)  # type: ignore[arg-type]
    facts = manifest(file)["calibration"]
    assert facts["images"] == 40
    assert facts["data_sha256"] == real_data.sha256
    assert facts["drop"]["margin_points"] == 3.0


@pytest.mark.usefixtures("real_data")
def test_a_network_is_translated_once_for_int8_and_fp32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    translated: list[torch.dtype] = []
    translate = onnx_file._translate

    def counted(graph: DeploymentGraph) -> onnx.ModelProto:
        translated.append(graph.dtype)
        return translate(graph)

    monkeypatch.setattr(onnx_file, "_translate", counted)
    place = Path(str(find.named() or MODEL.parents[1] / "data")).absolute()
    both = ("int8", "fp32")
    files = export_model("simple_cnn", precision=both, calibration_images=40, data_dir=place)
    assert translated == [torch.float32]
    together = manifest(files[1])["sha256"]
    (alone,) = export_model("simple_cnn")
    assert (alone, manifest(alone)["sha256"]) == (files[1], together)


def test_an_engine_is_built_with_the_options_of_its_dataclass(
    rtx: Flavour, capfd: pytest.CaptureFixture[str], folder: ModelFolder
) -> None:
    options = Options(profiles=(Profile(1, 2, 4),), compute_capabilities=("8.6",))
    made = export_model("simple_cnn", ("onnx", "trt"), flavour=rtx.name, options=options)
    assert made == [folder.onnx("fp32"), folder.engine("fp32", rtx.name)]
    assert manifest(made[1])["targets"] == ["8.6"]
    assert manifest(made[1])["profiles"] == [{"min": 1, "opt": 2, "max": 4}]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("exporting", "said"),
    [
        (lambda: export_model("simple_cmm"), "did you mean simple_cnn?"),
        (lambda: export_model("cnn9"), "cifar-deploy train cnn9"),
        (lambda: export_model(None), "a NoneType is no model"),  # type: ignore[arg-type]
        (lambda: export_model("simple_cnn", "pt"), "format 'pt': it can be onnx, trt"),
        (lambda: export_model("simple_cnn", precision=["fp32", "fp8"]), "precision 'fp8'"),
        (lambda: export_model("simple_cnn", precision=[]), "precision []: it can be fp32"),
        (lambda: export_model("simple_cnn", precision=None), "precision None: it can be fp32"),  # type: ignore[arg-type]
        (lambda: export_model("simple_cnn", None), "format None: it can be onnx, trt"),  # type: ignore[arg-type]
        (lambda: export_model("simple_cnn", 5), "format 5: it can be onnx, trt"),  # type: ignore[arg-type]
        (lambda: export_model("simple_cnn", [["trt"]]), "format ['trt']: it can be onnx, trt"),  # type: ignore[list-item]
        (lambda: export_model("simple_cnn", keep_fp32=None), "keep_fp32 None: it is a word or"),  # type: ignore[arg-type]
        (lambda: export_model("simple_cnn", "trt", options={"level": 3}), "options {'level': 3}: "),  # type: ignore[arg-type]
        (lambda: export_model("simple_cnn", batch=0), "batch 0: it is from 1 to"),
        (
            lambda: export_model("simple_cnn", precision="int8", calibration_images=0),
            "calibration_images 0: it is 1 or more",
        ),
        (
            lambda: export_model("simple_cnn", precision="fp16", max_drop=float("nan")),
            "max_drop nan: it is from 0 to 100",
        ),
        (lambda: export_model("simple_cnn", keep_fp32="x"), "--keep-fp32 and --max-drop go with"),
        (lambda: export_model("simple_cnn", precision="fp16", keep_fp32="x"), "x"),
        (lambda: export_model("simple_cnn", options=Options()), "they go with --format trt"),
        (lambda: export_model("simple_cnn", flavour="tensorrt"), "they go with --format trt"),
        (lambda: export_model("simple_cnn", "trt", batch=4), "--batch-profile 4"),
        (
            lambda: export_model("simple_cnn", ["onnx", "trt"], options=Options(level=9)),
            "--builder-optimization-level 9",
        ),
    ],
)
def test_what_cannot_be_exported_is_told_before_anything_is_written(
    exporting: Callable[[], object], said: str
) -> None:
    before = snapshot()
    with pytest.raises(UserError) as told:
        exporting()
    assert said in str(told.value)
    assert snapshot() == before


def test_exports_at_once_leave_the_process_as_it_was(folder: ModelFolder) -> None:
    # Standard output and the filters of warnings are the whole process's.
    shown, filters = sys.stdout, list(warnings.filters)
    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(partial(export_model, folder.path, "onnx"), ("fp32", "fp16") * 2))
    assert made == [[folder.onnx(kind)] for kind in ("fp32", "fp16")] * 2
    assert sys.stdout is shown
    assert warnings.filters == filters


def test_images_of_other_classes_calibrate_nothing_whatever_the_card_says(
    folder: ModelFolder, tmp_path: Path
) -> None:
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            place = tmp_path / "insects" / part / name
            place.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (32, 32), (number, 0, 0)).save(place / f"{number}.png")
    card = read_json(folder.card)
    del card["data"]["classes"]
    write_json(folder.card, card)
    with pytest.raises(UserError, match=r"was trained on the classes airplane.* has ant, bee"):
        export_model(folder.path, precision="int8", data_dir=tmp_path / "insects")
