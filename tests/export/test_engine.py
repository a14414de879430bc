import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from gpus import supported

from cifar_deploy import architectures
from cifar_deploy.cards import read_card
from cifar_deploy.disk import sha256_of
from cifar_deploy.engines import build as builder
from cifar_deploy.engines import flavour
from cifar_deploy.engines.flavour import Flavour
from cifar_deploy.engines.load import Opened, open_engine
from cifar_deploy.engines.options import Options, Profile, default_targets
from cifar_deploy.errors import UserError
from cifar_deploy.export import engine
from cifar_deploy.export.engine import cuda_device, export_engine
from cifar_deploy.export.onnx_file import PRECISIONS
from cifar_deploy.store import ModelFolder, manifest_path, read_manifest

if TYPE_CHECKING:
    from conftest import Shelf


@pytest.fixture
def small(shelf: "Shelf", tmp_path: Path) -> ModelFolder:
    """A trained simple_cnn with its fp32 ONNX file, to be changed by the test."""
    onnx = shelf.exported("simple_cnn", "fp32").path
    copied = shelf.copied("simple_cnn", tmp_path / "simple_cnn")
    for file in (onnx, manifest_path(onnx)):
        shutil.copy(file, copied.path)
    return copied


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", architectures.NETWORKS)
def test_every_network_builds(name: str, precision: str, shelf: "Shelf", rtx: Flavour) -> None:
    folder, calibration = shelf.folder(name), shelf.calibration
    path = export_engine(
        folder, precision, rtx, Options(), calibration=calibration, graphs=shelf.graphs
    )
    onnx = folder.onnx(precision, engine=True)
    assert path == folder.path / f"{name}.{precision}.tensorrt-rtx.engine"
    manifest = read_manifest(path)
    assert manifest
    # The engine holds the weights, in the file's precision.
    assert manifest["bytes"] == path.stat().st_size > 0.95 * onnx.stat().st_size
    source = read_manifest(onnx)
    assert source
    assert manifest["onnx"] == {"file": onnx.name, "sha256": sha256_of(onnx)}
    for key in ("model", "network", "precision", "classes", "mean", "std", "weights_sha256"):
        assert manifest[key] == source[key], key
    assert manifest["inputs"] == [
        {"name": "images", "dtype": "uint8", "shape": ["batch", 32, 32, 3]}
    ]
    assert manifest["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    assert (manifest["format"], manifest["flavour"]) == ("tensorrt", "tensorrt-rtx")
    assert manifest["tensorrt"] == rtx.version
    assert manifest["cuda"] == rtx.cuda  # and not torch's
    assert manifest["profiles"] == [{"min": 1, "opt": 128, "max": 1024}]
    assert manifest["gpu"] is None  # it is built for every GPU that the library supports
    assert manifest["system"] is None  # x86-64 and ARM give the same engine
    assert manifest["targets"] == []
    assert manifest["default_targets"] == default_targets(rtx)
    assert manifest["build_seconds"] > 0
    assert manifest.get("calibration") == (calibration.facts if precision == "int8" else None)
    assert path in folder.exported()


def test_options_stand_in_the_manifest(small: ModelFolder, rtx: Flavour) -> None:
    options = Options(
        profiles=(Profile(1, 1, 1), Profile(8, 64, 256)),
        compute_capabilities=("8.6", "12.0"),
        workspace=512,
        level=4,
        tf32=True,
    )
    manifest = read_manifest(export_engine(small, "fp32", rtx, options))
    assert manifest
    assert manifest["profiles"] == [
        {"min": 1, "opt": 1, "max": 1},
        {"min": 8, "opt": 64, "max": 256},
    ]
    assert manifest["targets"] == ["8.6", "12.0"]
    assert manifest["default_targets"] == []
    assert manifest["workspace_mib"] == 512
    assert manifest["builder_optimization_level"] == 4
    assert manifest["tf32"] is True


def test_the_onnx_file_is_made_where_it_is_missing(small: ModelFolder, rtx: Flavour) -> None:
    assert not small.onnx("fp16").exists()
    path = export_engine(small, "fp16", rtx, Options())
    made = read_manifest(small.onnx("fp16"))
    found = read_manifest(path)
    assert made
    assert found
    assert found["onnx"]["sha256"] == made["sha256"]


@pytest.mark.parametrize(
    "state", ["of other weights", "cut short", "without a manifest", "of an older version"]
)
def test_the_onnx_file_is_made_anew_where_it_is_no_good(
    state: str, small: ModelFolder, rtx: Flavour
) -> None:
    onnx = small.onnx("fp32")
    whole = sha256_of(onnx)
    manifest = json.loads(manifest_path(onnx).read_text())
    if state == "of other weights":
        manifest_path(onnx).write_text(json.dumps({**manifest, "weights_sha256": "0" * 64}))
    elif state == "of an older version":
        del manifest["test_accuracy"]
        manifest_path(onnx).write_text(json.dumps(manifest))
    elif state == "cut short":
        onnx.write_bytes(onnx.read_bytes()[:-10])
    else:
        manifest_path(onnx).unlink()
    path = export_engine(small, "fp32", rtx, Options())
    found = read_manifest(path)
    assert found
    assert sha256_of(onnx) == whole == found["onnx"]["sha256"]
    assert found["weights_sha256"] == read_card(small)["weights"]["sha256"]


def test_a_good_onnx_file_stays(small: ModelFolder, rtx: Flavour) -> None:
    before = small.onnx("fp32").stat().st_mtime_ns
    export_engine(small, "fp32", rtx, Options())
    assert small.onnx("fp32").stat().st_mtime_ns == before


def test_too_little_memory_is_told_with_the_need(shelf: "Shelf", rtx: Flavour) -> None:
    shelf.exported("resnet18", "fp32")
    folder = shelf.folder("resnet18")
    engine = folder.engine("fp32", rtx.name)
    before = engine.exists()
    with pytest.raises(UserError, match=r"needs [1-9]\d* MiB to build .* raise --workspace"):
        export_engine(folder, "fp32", rtx, Options(workspace=1))
    assert engine.exists() == before


def test_a_foreign_file_is_no_timing_cache(
    small: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx = flavour.load(flavour.RTX)
    monkeypatch.setattr(engine, "check", lambda *_: None)  # which refuses a cache for this member
    foreign = tmp_path / "trtexec.cache"
    foreign.write_bytes(b"its timings")
    with pytest.raises(UserError, match=r"trtexec\.cache is there and is no cache"):
        export_engine(small, "fp32", rtx, Options(timing_cache=foreign))
    assert foreign.read_bytes() == b"its timings"
    assert not small.engine("fp32", rtx.name).exists()


def test_untrained_is_told(tmp_path: Path, rtx: Flavour) -> None:
    with pytest.raises(UserError, match="has no trained weights"):
        export_engine(ModelFolder(tmp_path / "none"), "fp32", rtx, Options())


def test_a_stopped_build_writes_nothing(
    small: ModelFolder, rtx: Flavour, ctrl_c: Callable[[], None]
) -> None:
    class Impatient:
        def start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                ctrl_c()
                time.sleep(0.5)  # the main thread, which Python tells of signals, gets its turn

        def step(self, phase: str, done: int) -> None:
            pass

        def finish(self, phase: str) -> None:
            pass

    before = sorted(small.path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        export_engine(small, "fp32", rtx, Options(), Impatient())
    assert sorted(small.path.iterdir()) == before


def test_layers_of_an_older_engine_do_not_stay(
    small: ModelFolder, rtx: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("no space")

    # Listing them takes a GPU, which these stand for.
    with monkeypatch.context() as patch:
        patch.setattr(engine, "check", lambda *_: None)
        patch.setattr(engine, "deserialise", lambda *_: Opened(rtx, None, None, {}))
        patch.setattr(builder, "layer_information", lambda *_: {"Layers": ["conv"]})
        path = export_engine(small, "fp32", rtx, Options(layer_info=True))
    beside = path.with_suffix(".layers.json")
    layers = json.loads(beside.read_text())
    assert layers == {
        "engine": {"file": path.name, "sha256": sha256_of(path)},
        "Layers": ["conv"],
    }
    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_bytes", refuse)
        with pytest.raises(UserError, match="no space"):
            export_engine(small, "fp32", rtx, Options())
    assert beside.exists()  # as the engine does
    export_engine(small, "fp32", rtx, Options())
    assert not beside.exists()


@pytest.mark.gpu
def test_layers_are_written(small: ModelFolder, rtx: Flavour) -> None:
    with supported():
        path = export_engine(small, "fp32", rtx, Options(layer_info=True))
    layers = json.loads(path.with_suffix(".layers.json").read_text())
    assert len(layers["Layers"]) > 0
    assert layers["engine"] == {"file": path.name, "sha256": sha256_of(path)}


@pytest.mark.gpu
def test_a_stripped_engine_is_small(shelf: "Shelf", rtx: Flavour) -> None:
    shelf.exported("resnet18", "fp32")
    folder = shelf.folder("resnet18")
    with supported():  # where it is not, stripping fails in words that do not say so
        open_engine(export_engine(folder, "fp32", rtx, Options()), torch.device("cuda", 0))
    path = export_engine(folder, "fp32", rtx, Options(strip_weights=True))
    assert path.stat().st_size < 0.2 * folder.onnx("fp32").stat().st_size


@pytest.mark.gpu
def test_the_gpu_is_named() -> None:
    gpu = cuda_device()
    assert gpu
    assert float(gpu.compute_capability) >= 7


def test_a_manifest_is_of_what_its_own_export_wrote(
    small: ModelFolder, rtx: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = engine.write_bytes

    def before_another(path: Path, data: bytes) -> None:
        write_bytes(path, data)
        path.write_bytes(b"another export's")

    monkeypatch.setattr(engine, "write_bytes", before_another)
    path = export_engine(small, "fp32", rtx, Options())
    with pytest.raises(UserError, match="does not match its manifest"):
        read_manifest(path)
