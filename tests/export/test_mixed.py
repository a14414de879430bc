"""Layers that stay in fp32 in an fp16 graph, where fp16 is rounded as on a GPU."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import nn

from cifar_deploy.architectures import weights
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.engines.flavour import Flavour
from cifar_deploy.engines.options import Options
from cifar_deploy.errors import UserError
from cifar_deploy.export.engine import export_engine
from cifar_deploy.export.onnx_file import Graphs, export_onnx
from cifar_deploy.export.quantise import Calibration
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.runtimes.graphs import element_types
from cifar_deploy.runtimes.half import rounded
from cifar_deploy.runtimes.load import ONNXRUNTIME, OPENVINO
from cifar_deploy.runtimes.protocol import Logits
from cifar_deploy.store import ModelFolder, read_manifest
from cifar_deploy.validate import judge

if TYPE_CHECKING:
    from conftest import Shelf

Save = Callable[[Path, str, nn.Module], ModelFolder]
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
GRAPHS: Graphs = {}  # the same networks in many a test: each is translated once


def louder(module: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= factor


@pytest.fixture
def loud(trained_like: Callable[[str], nn.Module], saved: Save, tmp_path: Path) -> ModelFolder:
    """A simple_cnn whose second convolution gives what fp16 cannot hold, and the next mends it."""
    network = trained_like("simple_cnn")
    assert isinstance(network, nn.Sequential)
    with torch.no_grad():
        network[3].weight *= 7e5
        network[7].weight /= 7e5
    return saved(tmp_path / "loud", "simple_cnn", network)


@pytest.fixture
def residual(trained_like: Callable[[str], nn.Module], saved: Save, tmp_path: Path) -> ModelFolder:
    """A custom_resnet whose first sum, of a quiet and a loud branch, is beyond fp16."""
    network = trained_like("custom_resnet")
    louder(network.get_submodule("features.2.pair.1.2"), 3e4)  # a batch norm
    norm = network.get_submodule("features.3.2")  # it is behind what takes the sum
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean *= 3e4
    norm.running_var *= 9e8
    return saved(tmp_path / "residual", "custom_resnet", network)


def export(folder: ModelFolder, *keep: str) -> onnx.ModelProto:
    return onnx.load(export_onnx(folder, "fp16", Calibration.of_none(keep), graphs=GRAPHS))


def answers(model: onnx.ModelProto, images: Images) -> Logits:
    """What ONNX Runtime makes of it, everything rounded that is in fp16."""
    session = onnxruntime.InferenceSession(
        rounded(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: Logits = session.run(["logits"], {"images": images})[0]
    return found


def exact(folder: ModelFolder, images: Images) -> Logits:
    return answers(onnx.load(export_onnx(folder, "fp32", graphs=GRAPHS)), images)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """What each node gives, by the node's name."""
    known = element_types(model)
    return {node.name: known[node.output[0]] for node in model.graph.node}


def assert_close(found: Logits, wanted: Logits) -> None:
    assert np.abs(found - wanted).max() < 1e-2 * np.ptp(wanted)


def test_what_is_beyond_fp16_wants_its_layer_and_the_next_in_fp32(
    loud: ModelFolder, images: Images
) -> None:
    wanted, few = exact(loud, images), images[:2]
    half = export(loud)
    # ONNX's own reference computes in fp16, too; ONNX Runtime on a CPU shows nothing of it.
    with np.errstate(all="ignore"):
        assert np.isnan(ReferenceEvaluator(half).run(None, {"images": few})[0]).all()
    assert np.isnan(answers(half, images)).any(1).all()
    assert np.isnan(answers(export(loud, "node_conv2d_1"), images)).any()
    kept = export(loud, "node_conv2d_1", "node_linear")
    assert_close(answers(kept, images), wanted)
    assert_close(ReferenceEvaluator(kept).run(None, {"images": few})[0], wanted[:2])
    # Between the two nothing is cast, and each has the weights of fp32.
    given = types(kept)
    assert [name for name, kind in given.items() if kind == HALF] == [
        *("node__to_copy_1", "node_conv2d", "node_relu", "node_max_pool2d"),
        *("node_relu_2_fp16", "node_linear_1", "node_relu_3", "node_linear_2"),
    ]
    assert [node.op_type for node in kept.graph.node].count("Cast") == 5
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in kept.graph.initializer}
    fp32 = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load(loud.onnx("fp32")).graph.initializer
    }
    for name in ("network.3.weight", "network.7.weight", "network.7.bias"):
        assert name not in stored
        np.testing.assert_array_equal(stored[f"{name}_fp32"], fp32[name], strict=True)
    manifest = read_manifest(loud.onnx("fp16"))
    assert manifest
    assert manifest["precision"] == "fp16"
    assert manifest["calibration"] == {"kept_fp32": ["node_conv2d_1", "node_linear"]}
    # Most of its numbers are in fp32; it is judged as an fp16 file.
    assert onnx_interface.inspect(loud.onnx("fp16"))["precision"] == "fp16"


@pytest.mark.parametrize("runtime", [ONNXRUNTIME, OPENVINO])
def test_a_verdict_from_a_cpu_knows_of_it(runtime: str, loud: ModelFolder, data: Dataset) -> None:
    pytest.importorskip(runtime)
    options = judge.Options(seconds=0, max_drop=50.0, onnx=runtime)
    reference = judge.Reference.of_model(weights.load(loud))
    data = dataclasses.replace(data, classes=reference.classes)  # the generated set has others
    for keep in ((), ("node_conv2d_1", "node_linear")):
        for batch in (None, 48):
            export_onnx(loud, "fp16", Calibration.of_none(keep), batch=batch, graphs=GRAPHS)
            file = loud.onnx("fp16", batch=batch)
            found = judge.judge(reference, [file], data, torch.device("cpu"), options, images=96)
            assert len(found.rows) == (2 if keep else 1)
            for lost in found.unusable:
                assert lost.ran
                assert "no number for an answer to 96 of 96 images where fp16 is" in lost.reason


def test_a_sum_stays_in_fp32_with_the_layer_before_it(
    residual: ModelFolder, images: Images
) -> None:
    wanted = exact(residual, images)
    assert np.isnan(answers(export(residual), images)).any(1).all()
    kept = export(residual, "node_conv2d_3", "node_conv2d_4")
    (added, *_) = [node for node in kept.graph.node if node.op_type == "Add"][1:]
    assert types(kept)[added.name] == FLOAT
    assert "relu_1_fp32" in added.input  # the other branch is in fp16
    assert_close(answers(kept, images), wanted)


def test_with_every_layer_in_fp32_nothing_is_rounded(shelf: "Shelf", tmp_path: Path) -> None:
    folder = shelf.copied("simple_cnn", tmp_path / "simple_cnn")
    every = [f"node_{name}" for name in ("conv2d", "conv2d_1", "linear", "linear_1", "linear_2")]
    whole, fp32 = (
        export(folder, *every).graph,
        onnx.load(export_onnx(folder, "fp32", graphs=GRAPHS)).graph,
    )
    assert HALF not in {tensor.data_type for tensor in whole.initializer}
    assert [n.op_type for n in whole.node] == [*(n.op_type for n in fp32.node), "Cast"]


def test_without_a_name_the_file_is_the_same(shelf: "Shelf", tmp_path: Path) -> None:
    exported = shelf.exported("simple_cnn", "fp16").path.read_bytes()
    folder = shelf.copied("simple_cnn", tmp_path / "simple_cnn")
    assert export_onnx(folder, "fp16", Calibration.of_none()).read_bytes() == exported
    manifest = read_manifest(folder.onnx("fp16"))
    assert manifest
    assert "calibration" not in manifest


def test_a_weight_that_fp16_cannot_hold_names_the_layer_to_keep(
    trained_like: Callable[[str], nn.Module], saved: Save, tmp_path: Path, images: Images
) -> None:
    network = trained_like("simple_cnn")
    assert isinstance(network, nn.Sequential)
    louder(network[9], 1e7)
    with torch.no_grad():
        network[11].weight *= 1e-7
    folder = saved(tmp_path / "large", "simple_cnn", network)
    large = r"model.safetensors: 9\.weight holds .*e\+0\d once .*, too large for fp16; export with"
    ways = "--precision fp16 --keep-fp32 node_linear_1 or --precision fp32"
    with pytest.raises(UserError, match=f"{large} {ways}"):
        export(folder)
    with pytest.raises(UserError, match=f"{large} {ways}"):
        export(folder, "node_linear_2")
    assert not folder.onnx("fp16").exists()
    found = answers(export(folder, "node_linear_1", "node_linear_2"), images)
    assert_close(found, exact(folder, images))


def test_a_layer_that_is_none_is_refused(shelf: "Shelf", tmp_path: Path) -> None:
    folder = shelf.copied("simple_cnn", tmp_path / "simple_cnn")
    none = "is no convolution or linear layer that would be in fp16; did you mean node_linear"
    with pytest.raises(UserError, match=f"--keep-fp32 node_linea {none}"):
        export(folder, "node_linea")
    assert not folder.onnx("fp16").exists()


def test_an_engine_keeps_what_its_file_keeps(
    residual: ModelFolder, rtx: Flavour, shelf: "Shelf"
) -> None:
    """The file is made anew where another one was made with other layers."""
    sizes = {}
    for keep in ((), ("node_conv2d_6", "node_linear")):
        calibration = Calibration.of_none(keep)
        path = export_engine(
            residual, "fp16", rtx, Options(), calibration=calibration, graphs=GRAPHS
        )
        engine, file = read_manifest(path), read_manifest(residual.onnx("fp16"))
        assert engine
        assert file
        assert engine["onnx"]["sha256"] == file["sha256"]
        assert engine.get("calibration") == file.get("calibration")
        assert engine.get("calibration", {}).get("kept_fp32", []) == list(keep)
        sizes[keep] = engine["bytes"]
    small, large = sizes.values()
    # 512 x 512 filters of 3 x 3, with two bytes more each.
    assert large - small == pytest.approx(2 * 512 * 512 * 9, rel=0.1)


def test_a_fixed_batch_has_kept_layers_too(loud: ModelFolder, images: Images) -> None:
    keep = Calibration.of_none(("node_conv2d_1", "node_linear"))
    fixed = onnx.load(export_onnx(loud, "fp16", keep, batch=3, graphs=GRAPHS))
    assert_close(answers(fixed, images[:3]), exact(loud, images[:3]))
