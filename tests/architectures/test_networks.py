from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from cifar_deploy import architectures, recipe
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.custom_resnet import ConvBlock
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.disk import Json
from cifar_deploy.errors import UserError
from cifar_deploy.export.onnx_file import export_onnx
from cifar_deploy.store import ModelFolder
from cifar_deploy.train.loop import Job, Trainer

PARAMETERS = {
    "simple_cnn": 62_006,
    "custom_resnet": 6_573_130,
    "vgg19": 20_040_522,
    "resnet18": 11_173_962,
    "resnet50": 23_520_842,
    "mobilenet_v3_small": 1_528_106,
}
NAMES = list(architectures.NETWORKS)


def meta(name: str, num_classes: int = 10, stem: str = "cifar") -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return architectures.build(name, num_classes, stem)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_seven_networks() -> None:
    assert set(NAMES) == {*PARAMETERS, "cnn9"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name: str) -> None:
    assert parameters(meta(name)) == PARAMETERS[name]


def test_cnn9_stays_within_five_million() -> None:
    assert 4_000_000 < parameters(meta("cnn9")) <= 5_000_000


@pytest.mark.parametrize("classes", [10, 3])
@pytest.mark.parametrize("name", NAMES)
def test_images_to_logits(name: str, classes: int) -> None:
    network = meta(name, classes).eval()
    for batch in (1, 5):
        logits = network(torch.zeros(batch, 3, 32, 32, device="meta"))
        assert logits.shape == (batch, classes)
        assert logits.dtype == torch.float32


@pytest.mark.parametrize("name", sorted({*NAMES} - {"simple_cnn"}))
def test_images_may_begin_small(name: str) -> None:
    for side in (16, 24):
        assert meta(name).eval()(torch.zeros(2, 3, side, side, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", ["simple_cnn", "cnn9", "mobilenet_v3_small"])
def test_real_logits_tell_images_apart(name: str) -> None:
    torch.manual_seed(0)
    network = architectures.build(name).eval()
    with torch.inference_mode():
        logits = network(torch.randn(4, 3, 32, 32))
    assert logits.isfinite().all()
    assert (logits.std(0) > 0).all()


@pytest.mark.parametrize("name", ["simple_cnn", "mobilenet_v3_small", "resnet18"])
def test_the_seed_makes_the_weights(name: str) -> None:
    def matrices(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [p.detach() for p in architectures.build(name).parameters() if p.ndim > 1]

    assert all(map(torch.equal, matrices(1), matrices(1)))
    assert not any(map(torch.equal, matrices(1), matrices(2)))


# --- layouts ------------------------------------------------------------------------------------


def kinds(network: nn.Module) -> list[str]:
    """The classes of the leaves, in order."""
    return [type(m).__name__ for m in network.modules() if not list(m.children())]


def test_simple_cnn_is_the_blitz_network() -> None:
    convolutions = ["Conv2d", "ReLU", "MaxPool2d"] * 2
    linear = ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert kinds(meta("simple_cnn")) == [*convolutions, "Flatten", *linear]
    shapes = [tuple(p.shape) for p in meta("simple_cnn").parameters() if p.ndim > 1]
    assert shapes == [(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]


def test_cnn9_has_nine_layers_in_pairs() -> None:
    network = meta("cnn9")
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 6
    assert {(c.kernel_size, c.padding, c.stride) for c in convolutions} == {
        ((3, 3), (1, 1), (1, 1))
    }
    order = kinds(network)
    pair = ["Conv2d", "BatchNorm2d", "ReLU"] * 2
    assert order[:14] == [*pair, "MaxPool2d", *pair, "MaxPool2d"]
    assert order[14:20] == pair
    assert order[20:] == ["AdaptiveMaxPool2d", "Flatten", *["Linear", "ReLU"] * 2, "Linear"]


def test_custom_resnet_pools_between_convolution_and_norm() -> None:
    network = meta("custom_resnet")
    blocks = [m for m in network.modules() if isinstance(m, ConvBlock)]
    matrices = [b.get_parameter("0.weight") for b in blocks]
    assert [(m.shape[1], m.shape[0]) for m in matrices] == [
        *((3, 64), (64, 128), (128, 128), (128, 128)),
        *((128, 256), (256, 512), (512, 512), (512, 512)),
    ]
    pooled = [isinstance(b[1], nn.MaxPool2d) for b in blocks]
    assert pooled == [False, True, False, False, True, True, False, False]
    for block, pool in zip(blocks, pooled, strict=True):
        middle = "MaxPool2d" if pool else "Identity"
        assert kinds(block) == ["Conv2d", middle, "BatchNorm2d", "ReLU"]
        assert block[0].bias is None
        assert (block[0].kernel_size, block[0].padding) == ((3, 3), (1, 1))
    pools = [m for m in network.modules() if isinstance(m, nn.MaxPool2d)]
    assert [pool.kernel_size for pool in pools] == [2, 2, 2]
    (last,) = (m for m in network.modules() if isinstance(m, nn.AdaptiveMaxPool2d))
    plane = torch.randn(2, 512, 4, 4)  # what 32x32 images have become there
    assert torch.equal(last(plane), nn.MaxPool2d(4)(plane))


def test_custom_resnet_adds_its_pairs() -> None:
    torch.manual_seed(0)
    residual = architectures.build("custom_resnet").eval().get_submodule("features.2")
    x = torch.randn(2, 128, 4, 4)
    with torch.inference_mode():
        pair = residual.get_submodule("pair")(x)
        assert pair.abs().max() > 0
        assert torch.equal(residual(x), x + pair)


def test_vgg19_keeps_four_of_its_five_pools() -> None:
    network = meta("vgg19")
    features = network.get_submodule("features")
    leaves = list(features.children())
    assert isinstance(leaves[-1], nn.Identity)
    assert kinds(features).count("MaxPool2d") == 4
    assert kinds(features).count("Conv2d") == 16
    assert kinds(features).count("BatchNorm2d") == 16
    assert features(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, 512, 2, 2)
    assert kinds(network)[-2:] == ["AdaptiveAvgPool2d", "Linear"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_stems(name: str) -> None:
    cifar, imagenet = meta(name), meta(name, stem="imagenet")
    small, large = cifar.get_submodule("conv1"), imagenet.get_submodule("conv1")
    assert isinstance(small, nn.Conv2d)
    assert isinstance(large, nn.Conv2d)
    assert (small.kernel_size, small.stride, small.bias) == ((3, 3), (1, 1), None)
    assert (large.kernel_size, large.stride) == ((7, 7), (2, 2))
    assert isinstance(cifar.get_submodule("maxpool"), nn.Identity)
    assert isinstance(imagenet.get_submodule("maxpool"), nn.MaxPool2d)
    assert parameters(imagenet) - parameters(cifar) == 64 * 3 * (49 - 9)
    assert imagenet.eval()(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, 10)


def test_mobilenet_leaves_4x4() -> None:
    features = meta("mobilenet_v3_small").eval().get_submodule("features")
    assert features(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, 576, 4, 4)


def test_mobilenets_stored_statistics_follow_within_an_epoch() -> None:
    torch.manual_seed(0)
    features = architectures.build("mobilenet_v3_small").get_submodule("features")
    images = torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        for _ in range(195):  # an epoch of CIFAR-10 in batches of 256
            wanted = features.train()(images)
        found = features.eval()(images)
    # So few values make the batch's variances differ from the stored ones, which are unbiased.
    assert (found - wanted).norm() < 0.25 * wanted.norm()


# --- the registry -------------------------------------------------------------------------------


def test_aliases() -> None:
    assert architectures.canonical("resnet9") == "custom_resnet"
    assert architectures.canonical("mobilenetv3") == "mobilenet_v3_small"
    assert [architectures.canonical(name) for name in NAMES] == NAMES
    assert parameters(meta("resnet9")) == PARAMETERS["custom_resnet"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet-18", "did you mean resnet18?"),
        ("resnet5", "did you mean resnet50?"),
        ("ResNet50", "did you mean resnet50?"),
        ("vgg16", "did you mean vgg19?"),
        ("simple-cnn", "did you mean simple_cnn?"),
        ("mobilenet", "did you mean mobilenetv3?"),
        ("zzz", f"there are {', '.join(NAMES)}"),
        ("", f"there are {', '.join(NAMES)}"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        architectures.build(name)
    assert str(caught.value) == f"no network is called {name!r}; {nearest}"


@pytest.mark.parametrize("name", ["simple_cnn", "cnn9", "custom_resnet", "vgg19", "mobilenetv3"])
def test_a_network_of_one_stem_refuses_another(name: str) -> None:
    with pytest.raises(UserError, match=r"has no 'imagenet' stem; leave model\.stem out"):
        meta(name, stem="imagenet")


@pytest.mark.parametrize("name", ["resnet18", "simple_cnn"])
def test_an_unknown_stem_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="'large'"):
        meta(name, stem="large")


# --- one file and one line ----------------------------------------------------------------------

NEW_FILE = '''
"""One convolution and a linear layer."""

from torch import nn


def build(num_classes: int) -> nn.Module:
    """For [n, 3, 32, 32]."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, num_classes),
    )
'''


class Silent:
    """A watch that says nothing."""

    def step(self, done: int, epoch: int, loss: float, accuracy: float, rate: float) -> None:
        pass

    def epoch(self, record: Json) -> None:
        pass


def test_a_new_network_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_data: Dataset
) -> None:
    (tmp_path / "one_layer_network.py").write_text(NEW_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(architectures.NETWORKS, "one_layer", "one_layer_network")

    short = recipe.load(None, ["train.epochs=1", "train.batch_size=1000", "train.precision=fp32"])
    folder = ModelFolder(tmp_path / "one_layer")
    job = Job("one_layer", short, small_data, torch.device("cpu"), folder)
    Trainer(job).run(Silent())

    graph = weights.load(folder).graph()
    images = small_data.test.images[:20]
    with torch.inference_mode():
        wanted = graph(torch.from_numpy(images)).numpy()
    assert wanted.std() > 0
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 2e-2)):
        file = export_onnx(folder, precision)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"images": images})
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, wanted, atol=tolerance, rtol=0)
