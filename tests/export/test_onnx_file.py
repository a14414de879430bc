import json
import resource
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from processes import python

from cifar_deploy import __version__, architectures, device
from cifar_deploy.architectures import weights
from cifar_deploy.data import cifar10
from cifar_deploy.data.dataset import Images
from cifar_deploy.disk import sha256_of, write_json
from cifar_deploy.errors import UserError
from cifar_deploy.export.onnx_file import OPSET, PRECISIONS, export_onnx
from cifar_deploy.store import ModelFolder, manifest_path, read_manifest

if TYPE_CHECKING:
    from conftest import Exported, Shelf

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
ELEMENTS = {"fp32": FLOAT, "fp16": HALF}
# Of the range of the logits: what 50 layers make of a rounding of 6e-8 and of 5e-4.
TOLERANCE = {"fp32": 2e-5, "fp16": 1e-2}
SHAPE_ARITHMETIC = {"Shape", "Gather", "Concat", "Slice", "Squeeze", "Unsqueeze", "Range", "Expand"}

every_file = pytest.mark.parametrize(
    ("name", "precision"), [(n, p) for n in architectures.NETWORKS for p in PRECISIONS]
)
every_float_file = pytest.mark.parametrize(
    ("name", "precision"), [(n, p) for n in architectures.NETWORKS for p in ELEMENTS]
)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@every_float_file
def test_agrees_with_pytorch(name: str, precision: str, shelf: "Shelf", images: Images) -> None:
    run = session(shelf.exported(name, precision).path)
    with torch.inference_mode():
        expected = shelf.trained(name).graph()(torch.from_numpy(images)).numpy()
    found = run.run(["logits"], {"images": images})[0]
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < TOLERANCE[precision] * np.ptp(expected)
    # Untrained networks are near ties on many images; fp16 may turn one of them round.
    same = (found.argmax(1) == expected.argmax(1)).mean()
    assert same == 1.0 if precision == "fp32" else same >= 0.95
    for batch in (1, 3, 17):
        part = run.run(["logits"], {"images": images[:batch]})[0]
        assert part.shape == (batch, 10)
        np.testing.assert_allclose(
            part, found[:batch], rtol=0, atol=TOLERANCE[precision] * np.ptp(expected)
        )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_of_one_batch_has_no_open_shape(
    precision: str, shelf: "Shelf", images: Images, tmp_path: Path
) -> None:
    trained = shelf.copied("simple_cnn", tmp_path / "simple_cnn")
    whole, fixed = (
        export_onnx(trained, precision, shelf.calibration, batch=batch, graphs=shelf.graphs)
        for batch in (None, 3)
    )
    assert fixed.name == f"simple_cnn.{precision}.batch3.onnx"
    graph = onnx.load(fixed).graph
    shapes = [
        [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output, *graph.value_info)
    ]
    assert shapes[:2] == [[3, 32, 32, 3], [3, 10]]
    assert len(shapes) > len(graph.node)  # every tensor between them, too
    assert all(all(shape) for shape in shapes)
    manifest = read_manifest(fixed)
    assert manifest
    assert manifest["inputs"][0]["shape"] == [3, 32, 32, 3]
    found, wanted = (session(f).run(["logits"], {"images": images[:3]})[0] for f in (fixed, whole))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert whole.exists()


@every_float_file
def test_graph(name: str, precision: str, shelf: "Shelf") -> None:
    path = shelf.exported(name, precision).path
    onnx.checker.check_model(path, full_check=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True)
    graph = model.graph
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert interface(graph.input) == [("images", onnx.TensorProto.UINT8, ["batch", 32, 32, 3])]
    assert interface(graph.output) == [("logits", FLOAT, ["batch", 10])]
    operators = Counter(node.op_type for node in graph.node)
    assert not SHAPE_ARITHMETIC & operators.keys()
    assert not {"BatchNormalization", "Identity", "Dropout"} & operators.keys()
    assert operators["Cast"] == {"fp32": 1, "fp16": 3}[precision]
    assert [node.op_type for node in graph.node][:2] == ["Cast", "Transpose"]
    constants = {tensor.name for tensor in graph.initializer}
    assert all(node.input[1] in constants for node in graph.node if node.op_type == "Reshape")


def interface(values: "list[onnx.ValueInfoProto]") -> list[tuple[str, int, list[str | int]]]:
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


@every_float_file
def test_precision_is_in_the_graph(name: str, precision: str, shelf: "Shelf") -> None:
    path = shelf.exported(name, precision).path
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    numbers = {t.name: t.data_type for t in model.graph.initializer if t.data_type != 7}
    # The preprocessing is fp32 in both.
    preprocessing = {numbers.pop("scale"), numbers.pop("shift")}
    assert preprocessing == {FLOAT}
    assert set(numbers.values()) == {ELEMENTS[precision]}
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    heavy = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MaxPool")]
    assert {types[node.output[0]] for node in heavy if node.output[0] != "logits"} == {
        ELEMENTS[precision]
    }


@every_file
def test_metadata_and_manifest(name: str, precision: str, shelf: "Shelf") -> None:
    exported = shelf.exported(name, precision)
    sha256 = sha256_of(exported.folder.weights)
    trained = shelf.trained(name)
    model = onnx.load(exported.path)
    assert model.ir_version == 8  # what ONNX Runtime reads from 1.14 on; of 10 it does from 1.18 on
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata == {
        "model": name,
        "network": name,
        "precision": precision,
        "classes": json.dumps(list(cifar10.CLASSES)),
        "mean": json.dumps(trained.mean),
        "std": json.dumps(trained.std),
        "test_accuracy": str(trained.card["test_accuracy"]),
        "weights_sha256": sha256,
        "cifar_deploy": __version__,
    }
    manifest = read_manifest(exported.path)
    assert manifest is not None
    assert manifest.pop("created").endswith("+00:00")
    calibration = shelf.calibration.facts if precision == "int8" else None
    assert manifest.pop("calibration", None) == calibration
    assert manifest == {
        "file": exported.path.name,
        "bytes": exported.path.stat().st_size,
        "sha256": sha256_of(exported.path),
        "format": "onnx",
        "opset": OPSET,
        "inputs": [{"name": "images", "dtype": "uint8", "shape": ["batch", 32, 32, 3]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "model": name,
        "network": name,
        "precision": precision,
        "classes": list(cifar10.CLASSES),
        "mean": trained.mean,
        "std": trained.std,
        "test_accuracy": trained.card["test_accuracy"],
        "weights_sha256": sha256,
        "cifar_deploy": __version__,
        "versions": device.versions(),
    }


@every_file
def test_says_nothing_and_names_no_local_path(name: str, precision: str, shelf: "Shelf") -> None:
    exported: Exported = shelf.exported(name, precision)
    assert exported.printed == ""
    assert exported.warned == []
    model = onnx.load(exported.path)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # weights may spell anything
    text = model.SerializeToString()
    folders = {Path(module.__file__ or "").parent for module in (weights, torch, onnx)}
    for trace in (*map(str, folders), str(Path.home()), ".py", "File "):
        assert trace.encode() not in text
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_the_same_weights_give_the_same_bytes(shelf: "Shelf", tmp_path: Path) -> None:
    first = shelf.exported("custom_resnet", "fp16")
    folder = shelf.copied("custom_resnet", tmp_path / "custom_resnet")
    code = (
        "import sys, pathlib; from cifar_deploy.export.onnx_file import export_onnx;"
        "from cifar_deploy.store import ModelFolder;"
        "export_onnx(ModelFolder(pathlib.Path(sys.argv[1])), 'fp16')"
    )
    # Another process with another hash seed: nothing may hang on the order of a set.
    done = python("-c", code, folder.path, PYTHONHASHSEED="123")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sha256_of(folder.onnx("fp16")) == sha256_of(first.path)


def with_weight(shelf: "Shelf", to: Path, value: float) -> ModelFolder:
    """simple_cnn with `value` as one of its weights."""
    folder = shelf.copied("simple_cnn", to)
    tensors, facts = weights.read_tensors(folder.weights)
    tensors["3.weight"] = tensors["3.weight"].float()
    tensors["3.weight"][0, 0, 0, 0] = value
    weights.save(folder.weights, tensors, facts)
    card = json.loads(folder.card.read_text())
    card["weights"]["sha256"] = sha256_of(folder.weights)
    write_json(folder.card, card)
    return folder


def test_weight_beyond_fp16(shelf: "Shelf", tmp_path: Path) -> None:
    folder = with_weight(shelf, tmp_path / "simple_cnn", 70_000.0)
    with pytest.raises(UserError, match=r"3\.weight holds 7e\+04 .*--precision fp32"):
        export_onnx(folder, "fp16")
    assert folder.exported() == []
    assert export_onnx(folder, "fp32").exists()


def test_weight_that_is_no_number(shelf: "Shelf", tmp_path: Path) -> None:
    folder = with_weight(shelf, tmp_path / "simple_cnn", float("nan"))
    with pytest.raises(UserError, match=r"3\.weight is not finite.*train again"):
        export_onnx(folder, "fp32")
    assert folder.exported() == []


def test_another_programs_file_is_not_written_over(shelf: "Shelf", tmp_path: Path) -> None:
    folder = shelf.copied("simple_cnn", tmp_path / "simple_cnn")
    mine = export_onnx(folder, "fp32", graphs=shelf.graphs)
    manifest_path(mine).unlink()
    assert (
        export_onnx(folder, "fp32", graphs=shelf.graphs) == mine
    )  # but our own that lost its manifest is
    manifest_path(mine).unlink()
    theirs = onnx.load(mine)
    del theirs.metadata_props[:]
    onnx.save(theirs, mine)
    before = mine.read_bytes()
    with pytest.raises(UserError, match="was not exported by cifar-deploy"):
        export_onnx(folder, "fp32")
    assert mine.read_bytes() == before


def test_unknown_precision(shelf: "Shelf") -> None:
    with pytest.raises(UserError, match="--precision int4: it can be fp32 or fp16 or int8"):
        export_onnx(shelf.folder("simple_cnn"), "int4")


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trained weights; run: cifar-deploy train resnet18"):
        export_onnx(ModelFolder(tmp_path / "resnet18"), "fp32")


def names(folder: ModelFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


def test_failed_check_leaves_nothing(
    shelf: "Shelf", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shelf.copied("simple_cnn", tmp_path / "simple_cnn")
    before = names(folder)
    seen = []

    def refuse(path: Path, full_check: bool = False) -> None:
        seen.append((path.exists(), full_check, folder.onnx("fp32").exists()))
        raise onnx.checker.ValidationError("refused")

    with monkeypatch.context() as patched:
        patched.setattr(onnx.checker, "check_model", refuse)
        with pytest.raises(onnx.checker.ValidationError):
            export_onnx(folder, "fp32", graphs=shelf.graphs)
    assert seen == [(True, True, False)]
    assert names(folder) == before


def test_full_disk_keeps_the_old_file(shelf: "Shelf", tmp_path: Path) -> None:
    folder = shelf.copied("simple_cnn", tmp_path / "simple_cnn")
    path = export_onnx(folder, "fp32", graphs=shelf.graphs)
    before = {p.name: sha256_of(p) for p in folder.path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*simple_cnn\.fp32\.onnx"):
            export_onnx(folder, "fp32", graphs=shelf.graphs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: sha256_of(p) for p in folder.path.iterdir()} == before
    assert manifest_path(path).exists()


def test_a_manifest_is_of_what_its_own_export_wrote(
    shelf: "Shelf", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shelf.copied("simple_cnn", tmp_path / "simple_cnn")
    path, versions = folder.onnx("fp32"), device.versions

    def while_another_exports() -> dict[str, str]:
        path.write_bytes(b"another export's")
        return versions()

    monkeypatch.setattr(device, "versions", while_another_exports)
    export_onnx(folder, "fp32", graphs=shelf.graphs)
    with pytest.raises(UserError, match="does not match its manifest"):
        read_manifest(path)
