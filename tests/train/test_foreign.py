"""Weights that another program trained: taken by torchvision's names, measured, used like ours."""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import command_line
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from cifar_deploy import architectures, cards, disk, store
from cifar_deploy.architectures import summary, weights
from cifar_deploy.data import find
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.errors import UserError
from cifar_deploy.models.overview import overview
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.store import ModelFolder
from cifar_deploy.train import foreign
from cifar_deploy.train.foreign import bring
from cifar_deploy.train.loop import Job, Trainer, Watch

CPU = torch.device("cpu")
State = dict[str, torch.Tensor]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cifar_resnet18() -> State:
    """A ResNet-18 for 32x32 images as other programs have it, with weights of chance."""
    torch.manual_seed(3)
    network = models.resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    return network.state_dict()


def in_pytorch_cifar(state: State) -> State:
    """The same as kuangliu's pytorch-cifar calls it, trained with DataParallel."""
    names = {key: key.replace("downsample", "shortcut").replace("fc.", "linear.") for key in state}
    return {f"module.{names[key]}": value for key, value in state.items()}


@pytest.fixture(scope="module")
def fewer(few: Dataset) -> Dataset:
    """For tests of names, in which no accuracy counts."""
    return dataclasses.replace(few, train=few.train.first(10), test=few.test.first(10))


def same(network: nn.Module, state: State) -> bool:
    return all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    "form", ["plain", "safetensors", "pytorch-cifar", "compiled", "averaged", "lightning"]
)
def test_the_names_of_other_programs(
    form: str, cifar_resnet18: State, fewer: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / ("their.safetensors" if form == "safetensors" else "their.pth")
    if form == "safetensors":
        save_file(cifar_resnet18, path)
    elif form == "pytorch-cifar":
        torch.save({"net": in_pytorch_cifar(cifar_resnet18), "acc": 95.5, "epoch": 199}, path)
    elif form == "compiled":
        torch.save({f"_orig_mod.{key}": value for key, value in cifar_resnet18.items()}, path)
    elif form == "averaged":  # by torch.optim.swa_utils
        state = {f"module.{key}": value for key, value in cifar_resnet18.items()}
        torch.save({"n_averaged": torch.tensor(7), **state}, path)
    elif form == "lightning":  # with what stands beside the network
        state = {f"model.net.{key}": value for key, value in cifar_resnet18.items()}
        state |= {"criterion.weight": torch.ones(10), "metric.total": torch.tensor(3)}
        torch.save({"state_dict": state, "hyper_parameters": {"lr": 0.1}, "epoch": 3}, path)
    else:
        torch.save(cifar_resnet18, path)
    folder = ModelFolder(tmp_path / "resnet18")
    bring("resnet18", path, fewer, CPU, folder)
    assert same(weights.load(folder).network, cifar_resnet18)


def test_the_published_stem_is_seen(
    fewer: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = models.resnet18(num_classes=10).state_dict()
    torch.save(theirs, tmp_path / "their.pth")
    folder = ModelFolder(tmp_path / "resnet18")
    made = bring("resnet18", tmp_path / "their.pth", fewer, CPU, folder)
    assert same(weights.load(folder).network, theirs)
    # And shown: the number of all parameters, and the layers as they are.
    counted = sum(value.numel() for value in models.resnet18(num_classes=10).parameters())
    assert made["parameters"] == summary.layers(str(folder.path))["parameters"] == counted
    with monkeypatch.context() as patched:
        patched.setenv(store.MODELS_VARIABLE, str(tmp_path))
        (entry,) = (one for one in overview() if one["model"] == "resnet18")
    assert entry["parameters"] == counted


def test_of_several_networks_the_first_is_taken(cifar_resnet18: State) -> None:
    first = next(iter(cifar_resnet18))
    for names in (("student", "teacher"), ("teacher", "student"), ("net", "ema"), ("ema", "net")):
        state = {f"{name}.{first}": torch.full((1,), n) for n, name in enumerate(names)}
        assert foreign._unwrapped(state, [first]) == {first: torch.zeros(1)}


def test_what_was_trained_keeps_its_accuracy(
    make_job: Callable[..., Job], normed: str, few: Dataset, tmp_path: Path, recorder: Watch
) -> None:
    card = Trainer(make_job(network=normed)).run(recorder)
    ours = weights.load(ModelFolder(tmp_path / "out"))
    torch.save(ours.network.state_dict(), tmp_path / "their.pth")
    there = ModelFolder(tmp_path / "there")
    made = bring(normed, tmp_path / "their.pth", few, CPU, there, ours.mean, ours.std)
    assert made["test_accuracy"] == card["test_accuracy"]
    assert made["test_images"] == len(few.test)
    assert made["data"]["sha256"] == card["data"]["sha256"]
    again = weights.load(there)
    assert again.classes == few.classes
    images = few.test.images
    assert (PyTorch(again, CPU).logits(images) == PyTorch(ours, CPU).logits(images)).all()
    other = ModelFolder(tmp_path / "other")
    bring(normed, tmp_path / "their.pth", few, CPU, other, [0.9] * 3, [0.1] * 3)
    otherwise = weights.load(other)
    assert (otherwise.mean, otherwise.std) == ([0.9] * 3, [0.1] * 3)
    assert (PyTorch(otherwise, CPU).logits(images) != PyTorch(ours, CPU).logits(images)).any()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_does_not_fit_is_refused(
    cifar_resnet18: State, fewer: Dataset, tmp_path: Path
) -> None:
    def refused(name: str, state: object, message: str) -> None:
        torch.save(state, tmp_path / "their.pth")
        folder = ModelFolder(tmp_path / name)
        with pytest.raises(UserError, match=message):
            bring(name, tmp_path / "their.pth", fewer, CPU, folder)
        assert not folder.path.exists()

    another = r"their\.pth holds the weights of another network: miss"
    refused("simple_cnn", cifar_resnet18, another)
    refused("vgg19", models.resnet18().state_dict(), another)  # whose stem it cannot have
    cut = {key: value for key, value in cifar_resnet18.items() if key != "layer1.0.conv1.weight"}
    refused("resnet18", cut, r"another network: missing layer1\.0\.conv1\.weight")
    hundred = models.resnet18(num_classes=100).state_dict()
    refused("resnet18", hundred, r"answers with 100 classes, .* has 10; name the data set")
    # What answers is the last layer, whatever else does not fit.
    narrow = {**cifar_resnet18, "layer1.0.bn1.bias": torch.zeros(5)}
    refused("resnet18", narrow, r"another network: misshapen layer1\.0\.bn1\.bias")
    twice = {**cifar_resnet18, "linear.weight": cifar_resnet18["fc.weight"] + 1}
    refused("resnet18", twice, r"another network: extra linear\.weight")
    broken = {**cifar_resnet18, "fc.bias": torch.full((10,), torch.nan)}
    refused("resnet18", broken, r"fc\.bias is not finite")
    refused("resnet18", {"net": [1, 2]}, "is not a state dict of tensors: it holds net")
    first = cifar_resnet18["conv1.weight"]
    for strange, said in (
        (first.to_sparse(), "sparse"),
        (first.to("meta"), "without data"),
        (torch.quantize_per_tensor(first, 0.1, 0, torch.qint8), "quantised"),
        (first.to(torch.complex64), r"of torch\.complex64"),
        (first.to(torch.int8), r"of torch\.int8"),
        (first.to(torch.uint8).view(torch.float4_e2m1fn_x2), r"of torch\.float4_e2m1fn_x2"),
    ):
        refused("resnet18", {**cifar_resnet18, "conv1.weight": strange}, f"conv1.weight is {said}")
    huge = {
        **cifar_resnet18,
        "conv1.weight": first * 1e38,
        "fc.weight": torch.full((10, 512), 1e38),
    }
    refused("resnet18", huge, "its answers are no finite numbers")
    refused(
        "resnet18", {"state_dict": cut, "args": argparse.Namespace()}, r"\(argparse\.Namespace\)"
    )


def made_for(state: State, trained: weights.Trained, mean: float, std: float) -> State:
    """`state` with its first convolution, which has no padding, made for other pixels."""
    ours, theirs = torch.tensor(trained.mean), torch.tensor(trained.std)
    filters, bias = state["0.weight"], state["0.bias"]
    moved = (filters * ((mean - ours) / theirs)[:, None, None]).sum((1, 2, 3))
    scaled = filters * (std / theirs)[:, None, None]
    return {**state, "0.weight": scaled, "0.bias": bias + moved}


def test_another_normalisation_is_noticed(
    real_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By training images alone, and only where nobody says how the pixels were normalised."""
    published = weights.load(ModelFolder(Path(__file__).parents[2] / "models" / "simple_cnn"))
    state = published.network.state_dict()
    few, tested = real_data.train.spread(5_000), real_data.test.first(500)
    data = dataclasses.replace(real_data, train=few, test=tested)
    folder = ModelFolder(tmp_path / "simple_cnn")

    def said(state: State, **given: list[float]) -> tuple[str, float]:
        torch.save(state, tmp_path / "their.pth")
        made = bring("simple_cnn", tmp_path / "their.pth", data, CPU, folder, **given)
        return capsys.readouterr().err, made["test_accuracy"]

    silent, accuracy = said(state)
    assert silent == ""
    halves = made_for(state, published, 0.5, 0.5)
    told, lower = said(halves)
    assert told == (
        "the training images fit better with pixels from -1 to 1; if the network was trained so, "
        "import it with --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5\n"
    )
    assert lower < accuracy - 0.02
    # With what it says, the accuracy is there again and nothing is left to say.
    assert said(halves, mean=[0.5] * 3, std=[0.5] * 3) == ("", accuracy)
    assert said(halves, mean=[0.4] * 3)[0] == ""
    assert "with pixels from 0 to 1; " in said(made_for(state, published, 0.0, 1.0))[0]
    # A file that says itself how its pixels were normalised, be it wrongly.
    facts = weights.header("simple_cnn", "cifar", data.classes, *data.normalisation)
    weights.save(tmp_path / "told", halves, facts)
    bring("simple_cnn", tmp_path / "told", data, CPU, folder)
    assert capsys.readouterr().err == ""
    # Classes in another order: no normalisation fits, and none is named.
    turned = {key: state[key].roll(1, 0) for key in ("11.weight", "11.bias")}
    assert said({**state, **turned})[0] == ""


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def run(
    tmp_path: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    monkeypatch.setenv(store.MODELS_VARIABLE, str(tmp_path / "models"))
    monkeypatch.setenv(find.DATA_VARIABLE, str(pictures))

    return command_line(monkeypatch, capsys)


@pytest.fixture
def their(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    torch.save(architectures.build("simple_cnn").state_dict(), tmp_path / "their.pth")
    return tmp_path / "their.pth"


def test_from_another_program_to_a_judged_file(run: Run, their: Path, tmp_path: Path) -> None:
    status, out, err = run("import", "simple_cnn", their, "--mean", "0.5", "--std", "0.2,0.3,0.4")
    assert status == 0
    assert "of 60 test images" in out
    assert "mean 0.5,0.5,0.5 and std 0.2,0.3,0.4" in out
    assert "hardly more than chance" in err  # they are weights of chance
    card = cards.read_card(ModelFolder(tmp_path / "models" / "simple_cnn"))
    assert card["command"].startswith("cifar-deploy import simple_cnn ")
    assert card["imported"] == {"from": "their.pth", "sha256": disk.sha256_of(their)}
    assert f"{100 * card['test_accuracy']:.2f} % (imported)" in run("models")[1]
    assert run("export", "simple_cnn")[0] == 0
    status, out, _ = run("validate", "simple_cnn", "--no-latency", "--max-drop", "10")
    assert (status, "PASS" in out) == (0, True)


def test_nothing_is_written_over(run: Run, their: Path) -> None:
    assert run("import", "simple_cnn", their)[0] == 0
    status, _, err = run("import", "simple_cnn", their)
    assert (status, err.count("\n")) == (2, 1)
    assert "is there already; write elsewhere with --out" in err
    status, out, _ = run("import", "simple_cnn", their, "--out", their.parent / "b", "--json")
    assert (status, json.loads(out)["network"]) == (0, "simple_cnn")
    assert json.loads(out)["weights"]["path"] == str(their.parent / "b" / "model.safetensors")


def test_weights_written_here_bring_their_own_normalisation(
    run: Run, their: Path, pictures: Path, tmp_path: Path
) -> None:
    """A model.safetensors that someone was given, without the card."""
    assert run("import", "simple_cnn", their, "--mean", "0.4", "--std", "0.3,0.2,0.1")[0] == 0
    lone = ModelFolder(tmp_path / "models" / "simple_cnn").weights.rename(tmp_path / "lone")
    status, out, _ = run("import", "simple_cnn", lone, "--out", tmp_path / "b", "--mean", "0.5")
    assert status == 0
    assert "mean 0.5,0.5,0.5 and std 0.3,0.2,0.1" in out
    others = shutil.copytree(pictures, tmp_path / "others")
    for split in ("train", "test"):
        (others / split / "class0").rename(others / split / "zero")
    to = ("--out", tmp_path / "c", "--data-dir", others)
    status, _, err = run("import", "simple_cnn", lone, *to)
    assert (status, err.count("\n")) == (2, 1)
    assert "lone was trained on the classes class0, class1" in err
    assert err.count(": name its data set with --data-dir") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--mean", "1,2"), "--mean 1,2: three numbers as"),
        (("--mean", "nan"), "--mean nan: three numbers as"),
        (("--std", "0.2,0,0.2"), "--std 0.2,0,0.2: three positive numbers"),
        (("--mean", "125.3,123,113.9"), "those of pixels in 0..255 are divided by 255"),
        (("--std", "63,62.1,66.7"), "those of pixels in 0..255 are divided by 255"),
        (("--std", "1e-300"), "of pixels in 0..1, from 0.001 to 10"),
    ],
)
def test_normalisation_that_is_none(
    run: Run, their: Path, given: tuple[str, ...], message: str
) -> None:
    status, _, err = run("import", "simple_cnn", their, *given)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def test_chance_is_of_the_number_of_classes(
    run: Run, their: Path, pictures: Path, tmp_path: Path
) -> None:
    """Two thirds right is something with two classes that lie 2 to 1, and no alarm."""
    for split in ("train", "test"):
        for name, source in (("a", "class0"), ("b", "class1")):
            shutil.copytree(pictures / split / source, tmp_path / "two" / split / name)
    state = torch.load(their)
    head = [key for key in state if state[key].shape[:1] == (10,)]
    state |= {key: state[key][:2] for key in head}
    torch.save(state, their)
    status, out, err = run("import", "simple_cnn", their, "--data-dir", tmp_path / "two", "--json")
    right = json.loads(out)["test_accuracy"]
    assert (status, "hardly more than chance" in err) == (0, right < 0.55)


def test_a_card_is_not_written_over(run: Run, their: Path, tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "models" / "simple_cnn")
    disk.write_json(folder.card, {"command": "cifar-deploy train simple_cnn"})
    status, _, err = run("import", "simple_cnn", their)
    assert (status, "card.json is there already" in err) == (2, True)
    assert not folder.weights.exists()


def test_init_names_the_way_for_such_weights(run: Run, their: Path) -> None:
    status, _, err = run("train", "simple_cnn", "--init", their, "--device", "cpu")
    assert status == 2
    assert f"cifar-deploy import NETWORK {their}" in err
