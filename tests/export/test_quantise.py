"""What an int8 graph is made of, and that ONNX Runtime takes its layers as 8-bit ones."""

import resource
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from processes import python

from cifar_deploy import architectures
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.disk import sha256_of
from cifar_deploy.engines.flavour import Flavour
from cifar_deploy.engines.options import Options
from cifar_deploy.errors import UserError
from cifar_deploy.export.engine import export_engine
from cifar_deploy.export.onnx_file import export_onnx
from cifar_deploy.export.quantise import Calibration, kept, quantise
from cifar_deploy.store import manifest_path, read_manifest

if TYPE_CHECKING:
    from conftest import Shelf

KINDS = onnx.TensorProto
LAYERS = ("Conv", "Gemm", "MatMul")
# Every kind of layer; those of the others are more of the same, and take long.
every_network = pytest.mark.parametrize(
    "name", sorted(architectures.NETWORKS.keys() - {"resnet50", "vgg19"})
)


class Graph:
    """An ONNX graph and what stands before each of its layers."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
        self.nodes = list(self.model.graph.node)
        self.constants = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}

    def layers(self) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in LAYERS]

    def quantised(self) -> Iterator[onnx.NodeProto]:
        return (node for node in self.layers() if self.pair(node.input[1]))

    def pair(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that makes a value, if one does."""
        maker = self.makers.get(name)
        return maker if maker and maker.op_type == "DequantizeLinear" else None

    def values(self, name: str) -> np.ndarray:
        return onnx.numpy_helper.to_array(self.constants[name])


def group(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


@pytest.fixture
def built(shelf: "Shelf") -> Callable[[str, bool], Graph]:
    def build(name: str, engine: bool) -> Graph:
        path = shelf.folder(name).onnx("int8", engine)
        if not path.exists():
            export_onnx(shelf.folder(name), "int8", shelf.calibration, engine)
        return Graph(path)

    return build


@every_network
@pytest.mark.parametrize("engine", [False, True])
def test_layers_are_in_8_bits(name: str, engine: bool, built: Callable[[str, bool], Graph]) -> None:
    graph = built(name, engine)
    convolutions = [node for node in graph.nodes if node.op_type == "Conv"]
    left = {node.name for node in graph.layers()} - {node.name for node in graph.quantised()}
    # What meets the pixels, and the depthwise ones.
    assert left == {n.name for n in convolutions if n is convolutions[0] or group(n) > 1}
    for node in graph.quantised():
        given, weights = graph.pair(node.input[0]), graph.pair(node.input[1])
        assert given, node.name
        assert weights
        values = graph.values(weights.input[0])
        assert values.dtype == np.int8
        assert values.any()
        scale, zero = graph.values(weights.input[1]), graph.values(weights.input[2])
        if node.op_type == "Conv":
            assert scale.shape == (len(values),)  # one for each output channel
        assert not zero.any()
        kind = graph.values(given.input[2]).dtype
        if engine:
            assert kind == np.int8
            assert not graph.values(given.input[2]).any()
            assert all(graph.constants[b].data_type == KINDS.FLOAT for b in node.input[2:])
        else:
            assert kind == np.uint8
            assert np.abs(values.astype(int)).max() <= 64  # 7 bits
            for bias in map(graph.pair, node.input[2:]):
                assert bias
                assert graph.constants[bias.input[0]].data_type == KINDS.INT32
    assert not graph.pair("logits")  # fp32, unrounded
    if engine:  # it fuses what follows a layer, which a pair in between would prevent
        made = {node.output[0] for node in graph.layers()}
        for which in ("QuantizeLinear", "DequantizeLinear"):
            made = {n.output[0] for n in graph.nodes if n.op_type == which and n.input[0] in made}
        assert made <= {name for node in graph.layers() for name in node.input}
    assert [(o.domain, o.version) for o in graph.model.opset_import] == [("", 18)]


@every_network
def test_onnx_runtime_computes_them_in_8_bits(
    name: str, built: Callable[[str, bool], Graph], shelf: "Shelf", tmp_path: Path
) -> None:
    layers = Counter(node.op_type for node in built(name, False).quantised())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "as-run.onnx")
    path = shelf.folder(name).onnx("int8")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    # It takes a depthwise one between two pairs for another.
    assert run["QLinearConv"] >= layers["Conv"] > 0
    assert run["QGemm"] + run["QLinearMatMul"] + run["MatMulIntegerToFloat"] == (
        layers["Gemm"] + layers["MatMul"]
    )


@every_network
@pytest.mark.parametrize("engine", [False, True])
def test_agrees_with_pytorch(
    name: str, engine: bool, built: Callable[[str, bool], Graph], shelf: "Shelf", images: Images
) -> None:
    built(name, engine)
    path = shelf.folder(name).onnx("int8", engine)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"images": images})[0]
    with torch.inference_mode():
        expected = shelf.trained(name).graph()(torch.from_numpy(images)).numpy()
    # Untrained networks magnify every rounding, and are near ties on many images.
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9
    for batch in (1, 17):
        part = session.run(["logits"], {"images": images[:batch]})[0]
        np.testing.assert_allclose(part, found[:batch], rtol=0, atol=0.1 * np.ptp(expected))


def test_the_same_images_give_the_same_bytes(shelf: "Shelf", tmp_path: Path, data: Dataset) -> None:
    there = shelf.exported("custom_resnet", "int8")
    folder = shelf.copied("custom_resnet", tmp_path / "custom_resnet")
    np.save(tmp_path / "images.npy", shelf.calibration.images)
    code = (
        "import sys, pathlib, numpy; from cifar_deploy.export.onnx_file import export_onnx;"
        "from cifar_deploy.export.quantise import Calibration;"
        "from cifar_deploy.store import ModelFolder;"
        "images = Calibration(numpy.load(sys.argv[2]), {});"
        "export_onnx(ModelFolder(pathlib.Path(sys.argv[1])), 'int8', images)"
    )
    done = python("-c", code, folder.path, tmp_path / "images.npy", PYTHONHASHSEED="123")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sha256_of(folder.onnx("int8")) == sha256_of(there.path)
    export_onnx(folder, "int8", Calibration.of(data, 8))  # other images, other scales
    assert sha256_of(folder.onnx("int8")) != sha256_of(there.path)


def test_a_full_temporary_folder_leaves_nothing(
    shelf: "Shelf", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shelf.copied("simple_cnn", tmp_path / "simple_cnn")
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(room))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*: File too large"):
            export_onnx(folder, "int8", shelf.calibration)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folder.exported() == []
    assert list(room.iterdir()) == []
    assert export_onnx(folder, "int8", shelf.calibration).exists()
    assert list(room.iterdir()) == []


def test_what_stays_in_fp32() -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["images", "w"], ["a"], name="pixels"),
        make("Conv", ["a", "one"], ["b"], name="depthwise", group=8),
        make("Conv", ["b", "two"], ["c0"], name="grouped", group=4),
        make("Conv", ["c0", "w"], ["c"], name="plain", group=1),
        make("MaxPool", ["c"], ["d"], name="before", kernel_shape=[2, 2]),
        make("Relu", ["d"], ["e"], name="relu"),
        make("MaxPool", ["e"], ["f"], name="behind", kernel_shape=[2, 2]),
    ]
    filters = {"one": (8, 1, 3, 3), "two": (8, 2, 3, 3), "w": (8, 8, 3, 3)}
    tensors = [numpy_helper.from_array(np.zeros(s, "f"), name) for name, s in filters.items()]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], tensors)
    assert kept(graph) == ["pixels", "depthwise", "before"]


def test_no_test_image_calibrates(small_data: Dataset) -> None:
    calibration = Calibration.of(small_data, 100)
    assert calibration.images.shape == (100, 32, 32, 3)
    assert calibration.facts["images"] == 100
    assert calibration.facts["data_sha256"] == small_data.sha256
    training = {image.tobytes() for image in small_data.train.images}
    test = {image.tobytes() for image in small_data.test.images}
    chosen = {image.tobytes() for image in calibration.images}
    assert len(chosen) == 100
    assert chosen <= training
    spread = small_data.train.spread(100)  # of all
    assert np.array_equal(calibration.images, spread.images)
    assert not chosen & test
    everything = Calibration.of(small_data, 10**6)
    assert everything.facts["images"] == len(small_data.train)


def test_another_calibration_makes_the_engines_graph_anew(
    shelf: "Shelf", tmp_path: Path, data: Dataset, rtx: Flavour
) -> None:
    folder = shelf.copied("simple_cnn", tmp_path / "simple_cnn")

    def graph(calibration: Calibration) -> str:
        path = export_engine(folder, "int8", rtx, Options(), calibration=calibration)
        manifest = read_manifest(path)
        assert manifest
        assert manifest["calibration"] == calibration.facts
        assert not folder.onnx("int8").exists()  # that for CPUs was not asked for
        return str(manifest["onnx"]["sha256"])

    few, many = Calibration.of(data, 8), Calibration.of(data, 64)
    first = graph(few)
    written = manifest_path(folder.onnx("int8", engine=True)).stat().st_mtime_ns
    assert graph(few) == first
    assert manifest_path(folder.onnx("int8", engine=True)).stat().st_mtime_ns == written
    assert graph(many) != first


def test_what_has_no_range_is_told(exported_cnn: Path, small_data: Dataset) -> None:
    calibration = Calibration.of(small_data, 32)
    model = onnx.load(exported_cnn / "simple_cnn.fp32.onnx")
    (bias,) = (t for t in model.graph.initializer if t.name == "network.7.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(120, np.inf, np.float32), bias.name))
    with pytest.raises(UserError, match="8 bits have no range for what a layer gives for the cal"):
        quantise(model, calibration, symmetric=False)
