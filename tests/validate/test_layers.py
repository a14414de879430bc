"""The noise in every layer of a file."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.errors import UserError
from cifar_deploy.export.onnx_file import export_onnx
from cifar_deploy.export.quantise import Calibration
from cifar_deploy.runtimes.load import open_runtime
from cifar_deploy.runtimes.onnx_interface import Pixels
from cifar_deploy.store import ModelFolder
from cifar_deploy.validate import layers as compared
from cifar_deploy.validate.layers import Layer

Change = Callable[[onnx.ModelProto], None]


@pytest.fixture
def exact(folder: ModelFolder) -> Path:
    return folder.onnx("fp32")


@pytest.fixture
def images(judged_data: Dataset) -> Images:
    return judged_data.train.spread(70).images  # two batches and a part of one


def changed(source: Path, target: Path, change: Change) -> Path:
    model = onnx.load(source)
    change(model)
    onnx.save(model, target)
    return target


def compare(reference: Path, file: Path, images: Images, pixels: Pixels) -> list[Layer]:
    """The layers, of all images."""
    layers, count = compared.compare(reference, file, images, pixels)
    assert count == len(images)
    return layers


def operators(layers: list[Layer]) -> list[str]:
    return [layer.operator for layer in layers]


def weights_of(model: onnx.ModelProto, index: int) -> onnx.TensorProto:
    """The filters of the convolution that comes as number `index`."""
    node = [node for node in model.graph.node if node.op_type == "Conv"][index]
    return next(t for t in model.graph.initializer if t.name == node.input[1])


def test_the_same_file_is_exact(exact: Path, images: Images) -> None:
    layers = compare(exact, exact, images, Pixels())
    nodes = onnx.load(exact).graph.node
    assert [layer.node for layer in layers] == [node.name for node in nodes]
    assert operators(layers) == [node.op_type for node in nodes]
    assert {(layer.snr, layer.lost) for layer in layers} == {(math.inf, None)}


def test_fp16_has_a_little_noise_everywhere(
    folder: ModelFolder, exact: Path, images: Images
) -> None:
    layers = compare(exact, folder.onnx("fp16"), images, Pixels())
    first = next(layer for layer in layers if layer.operator == "Conv")
    for layer in (first, layers[-1]):
        assert layer.snr
        assert 40 < layer.snr < 90


def test_the_layers_of_an_fp16_reference_are_those_that_it_has(
    folder: ModelFolder, exact: Path, images: Images
) -> None:
    half = folder.onnx("fp16")
    names = [node.name for node in onnx.load(half).graph.node]
    same = compare(half, half, images, Pixels())
    assert [layer.node for layer in same] == names
    assert {layer.snr for layer in same} == {math.inf}
    against = compare(half, exact, images, Pixels())
    assert [layer.node for layer in against] == names
    # The noise is that of the other way round, but for whose power it is measured by.
    back = {layer.node: layer.snr for layer in compare(exact, half, images, Pixels())}
    *layers, last = [layer for layer in against if layer.operator in ("Conv", "Gemm")]
    assert len(layers) == 4
    for layer in layers:
        assert layer.snr == pytest.approx(back[layer.node], abs=0.1)
    assert last.snr is None  # in fp32 the logits are its own, here those of the Cast behind it


def test_the_layer_that_is_damaged_is_the_first_with_noise(
    exact: Path, images: Images, tmp_path: Path
) -> None:
    def damage(model: onnx.ModelProto) -> None:
        filters = weights_of(model, 1)
        values = numpy_helper.to_array(filters).copy()
        values[0] = 0
        filters.CopyFrom(numpy_helper.from_array(values, filters.name))

    damaged = changed(exact, tmp_path / "damaged.onnx", damage)
    layers = compare(exact, damaged, images, Pixels())
    noisy = [layer for layer in layers if layer.snr and layer.snr < math.inf]
    convolutions = [layer for layer in layers if layer.operator == "Conv"]
    assert noisy[0] is convolutions[1]
    assert noisy[0].lost is None  # all before it is exact
    before, after = noisy[0].snr, noisy[1].snr
    assert before
    assert after
    assert before < 20
    assert noisy[1].lost == pytest.approx(before - after)
    cpu = torch.device("cpu")
    mine, theirs = (
        open_runtime(path, cpu).logits(images).astype(np.float64) for path in (exact, damaged)
    )
    ratio = 10 * math.log10((mine**2).sum() / ((mine - theirs) ** 2).sum())
    assert layers[-1].snr == pytest.approx(ratio, abs=1e-3)


def test_int8_layers_are_seen_behind_their_rounding(
    folder: ModelFolder, judged_data: Dataset, images: Images, tmp_path: Path, exact: Path
) -> None:
    own = ModelFolder(tmp_path / "simple_cnn")
    own.path.mkdir()
    for path in (folder.weights, folder.card):
        (own.path / path.name).write_bytes(path.read_bytes())
    calibration = Calibration.of(judged_data, 64)
    for engine in (False, True):
        layers = compare(exact, export_onnx(own, "int8", calibration, engine), images, Pixels())
        # The quantizer leaves out what the ranges do as well: before them those are no ReLUs.
        relus = [layer.snr or 0 for layer in layers if layer.operator == "Relu"]
        assert len(relus) == 4
        assert min(relus) > 15
        assert 20 < relus[-1] < 60
        gone = [layer.operator for layer in layers if layer.snr is None]
        assert bool(gone) == (not engine)


def test_what_is_no_number_is_told(exact: Path, images: Images, tmp_path: Path) -> None:
    def overflow(model: onnx.ModelProto) -> None:
        filters = weights_of(model, 1)
        values = np.full(numpy_helper.to_array(filters).shape, np.inf, np.float32)
        filters.CopyFrom(numpy_helper.from_array(values, filters.name))

    file = changed(exact, tmp_path / "overflowing.onnx", overflow)
    convolutions = [
        layer for layer in compare(exact, file, images, Pixels()) if layer.operator == "Conv"
    ]
    assert convolutions[0].snr == math.inf
    assert str(convolutions[1].snr) == "nan"
    assert convolutions[1].lost is None


def test_where_there_was_nothing_all_is_noise(exact: Path, images: Images, tmp_path: Path) -> None:
    def clear(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            empty = np.zeros_like(numpy_helper.to_array(tensor))
            if len(tensor.dims) in (1, 2) and empty.dtype == np.float32:
                tensor.CopyFrom(numpy_helper.from_array(empty, tensor.name))

    layers = compare(changed(exact, tmp_path / "silent.onnx", clear), exact, images, Pixels())
    assert layers[-1].snr == -math.inf


@pytest.mark.parametrize("layer", [0, 1])
def test_files_without_a_layer_in_common_are_refused(
    exact: Path, images: Images, tmp_path: Path, layer: int
) -> None:
    """Also where the preprocessing and the answer are: those of two networks are called alike."""

    def rename(model: onnx.ModelProto) -> None:
        nodes = model.graph.node
        convolutions = [i for i, node in enumerate(nodes) if node.op_type == "Conv"]
        made = {name for node in nodes[convolutions[layer] : -1] for name in node.output}
        for node in nodes:
            for names in (node.input, node.output):
                names[:] = [f"other_{name}" if name in made else name for name in names]
        del model.graph.value_info[:]

    other = changed(exact, tmp_path / "other.onnx", rename)
    if layer:  # all from the second convolution on
        assert "Conv" in operators(
            [one for one in compare(exact, other, images, Pixels()) if one.snr]
        )
        return
    with pytest.raises(UserError, match="have no layer in common"):
        compare(exact, other, images, Pixels())


def fix_batch(size: int) -> Change:
    def fix(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = size

    return fix


def test_a_fixed_batch_is_kept(exact: Path, images: Images, tmp_path: Path) -> None:
    eight = changed(exact, tmp_path / "eight.onnx", fix_batch(8))
    five = changed(exact, tmp_path / "five.onnx", fix_batch(5))
    for reference, file in ((exact, eight), (eight, exact), (eight, eight)):
        layers, count = compared.compare(reference, file, images, Pixels())
        assert count == 64
        assert {layer.snr for layer in layers} == {math.inf}
    with pytest.raises(
        UserError, match=r"eight.onnx takes batches of 8, .*five.onnx takes batches"
    ):
        compare(eight, five, images, Pixels())
    with pytest.raises(UserError, match="7 images do not fill a batch of 8; --images 8 do"):
        compare(exact, eight, images[:7], Pixels())


def test_outputs_without_a_name_are_none(exact: Path, images: Images, tmp_path: Path) -> None:
    def unnamed(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.name = ""
        relu = next(node for node in model.graph.node if node.op_type == "Relu")
        relu.op_type = "Dropout"
        relu.output.append("")

    file = changed(exact, tmp_path / "unnamed.onnx", unnamed)
    layers = compare(file, file, images, Pixels())
    assert [layer.node for layer in layers] == [n.output[0] for n in onnx.load(file).graph.node]


def test_a_file_of_float_pixels_is_given_them(
    floats: Path, trained: Trained, images: Images, tmp_path: Path
) -> None:
    def damage(model: onnx.ModelProto) -> None:
        filters = weights_of(model, 0)
        values = 0.9 * numpy_helper.to_array(filters)
        filters.CopyFrom(numpy_helper.from_array(values.astype(np.float32), filters.name))

    damaged = changed(floats, tmp_path / "damaged.onnx", damage)
    pixels = Pixels(trained.mean, trained.std)
    layers = compare(floats, damaged, images, pixels)
    assert [layer.node for layer in layers] == [n.name for n in onnx.load(floats).graph.node]
    cpu = torch.device("cpu")
    mine, theirs = (
        open_runtime(path, cpu, pixels=pixels).logits(images).astype(np.float64)
        for path in (floats, damaged)
    )
    ratio = 10 * math.log10((mine**2).sum() / ((mine - theirs) ** 2).sum())
    assert layers[-1].snr == pytest.approx(ratio, abs=1e-3)


def test_images_that_do_not_fill_the_only_batch_are_not_computed_in_half(
    folder: ModelFolder, images: Images, tmp_path: Path
) -> None:
    own = ModelFolder(tmp_path / folder.name)
    shutil.copytree(folder.path, own.path)
    for batch, count in ((32, 12), (16, 12), (12, 12), (5, 10)):
        file = export_onnx(own, "fp16", batch=batch)
        answers = compared.in_half(file, images[:12], Pixels())
        assert (0 if answers is None else len(answers)) == (0 if batch > 12 else count)
