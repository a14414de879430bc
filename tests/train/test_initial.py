"""Weights from elsewhere: what fits, what stays new, what is frozen, and how fast it learns."""

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from cifar_deploy import architectures, disk, recipe
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.stages import classifier, freeze, stages
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.data.folder import VERIFIED
from cifar_deploy.disk import Json
from cifar_deploy.errors import UserError
from cifar_deploy.recipe import Finetune
from cifar_deploy.train import initial, remarks
from cifar_deploy.train.loop import Job, Trainer

MakeJob = Callable[..., Job]
State = dict[str, torch.Tensor]
TEN = [f"class {i}" for i in range(10)]


def vgg19() -> State:
    """torchvision's, but for the 120 million parameters of a classifier that is not used."""
    features = models.vgg.make_layers(models.vgg.cfgs["E"], batch_norm=True)
    state = {f"features.{key}": value for key, value in features.state_dict().items()}
    return {**state, "classifier.0.weight": torch.zeros(2, 2), "classifier.6.bias": torch.zeros(2)}


THEIRS: dict[str, Callable[[], State]] = {
    "resnet18": lambda: models.resnet18().state_dict(),
    "resnet50": lambda: models.resnet50().state_dict(),
    "vgg19": vgg19,
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small().state_dict(),
}


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's ResNet-18 as it would be downloaded, with weights of chance."""
    torch.manual_seed(1)
    network = models.resnet18()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return path


# --- torchvision's ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THEIRS)
def test_all_but_the_classifier_is_torchvisions(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    theirs = {key: value.clone() for key, value in THEIRS[name]().items()}
    save_file(theirs, tmp_path / "weights.safetensors")
    network = architectures.build(name, 3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    start = initial.load(network, name, "imagenet", tmp_path / "weights.safetensors", "abc")
    head = classifier(network)
    for key, value in network.state_dict().items():
        if key.startswith(f"{head}."):
            assert torch.equal(value, before[key])
        elif value.shape == theirs[key].shape:
            assert torch.equal(value, theirs[key])
        else:
            assert key == "conv1.weight"
            assert torch.equal(value, initial.smaller_stem(theirs[key]))
    assert set(start.pretrained) == {
        key for key, _ in network.named_parameters() if not key.startswith(f"{head}.")
    }
    assert (start.mean, start.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert start.sha256 is not None


def test_files_from_before_batch_norms_counted_are_taken(resnet18: Path, tmp_path: Path) -> None:
    # So are those that torchvision gives out of ResNet-18 and VGG-19.
    old = {
        key: value.clone()
        for key, value in torch.load(resnet18, weights_only=True).items()
        if not key.endswith("num_batches_tracked")
    }
    save_file(old, tmp_path / "old.safetensors")
    network = architectures.build("resnet18", 10)
    initial.load(network, "resnet18", "imagenet", tmp_path / "old.safetensors", TEN)
    assert torch.equal(network.get_buffer("bn1.running_mean"), old["bn1.running_mean"])


def test_every_name_of_torchvisions_weights_is_one() -> None:
    for name, (kind, _) in initial.PRETRAINED.items():
        assert getattr(models, kind).DEFAULT.url.startswith("https://download.pytorch.org/")
        assert name in architectures.NETWORKS


def test_the_published_stem_is_kept_as_it_is(resnet18: Path) -> None:
    network = architectures.build("resnet18", 10, "imagenet")
    initial.load(network, "resnet18", "imagenet", resnet18, TEN)
    theirs = torch.load(resnet18, weights_only=True)
    assert torch.equal(network.get_parameter("conv1.weight"), theirs["conv1.weight"])


def test_a_smaller_stem_answers_a_plain_area_as_before() -> None:
    torch.manual_seed(3)
    filters = torch.randn(64, 3, 7, 7)
    small = initial.smaller_stem(filters)
    assert small.shape == (64, 3, 3, 3)
    torch.testing.assert_close(small.sum((2, 3)), filters.sum((2, 3)), rtol=1e-4, atol=1e-4)
    edge = torch.zeros(1, 3, 7, 7)
    edge[..., :, 4:] = 1.0  # its right three columns
    found = initial.smaller_stem(edge)[0, 0]
    assert found[0].tolist() == pytest.approx([0, 7 / 3 * 2 / 3, 7 / 3 * 7 / 3])
    mirrored = initial.smaller_stem(filters.flip(-1))
    torch.testing.assert_close(mirrored, small.flip(-1), rtol=1e-4, atol=1e-5)


def test_weights_of_another_network_are_told_with_what_is_missing_and_extra(
    resnet18: Path,
) -> None:
    network = architectures.build("vgg19", 10)
    with pytest.raises(UserError) as caught:
        initial.load(network, "vgg19", "imagenet", resnet18, TEN)
    said = str(caught.value)
    wanted = {name for name in network.state_dict() if not name.startswith("classifier.")}
    there = set(torch.load(resnet18, weights_only=True))
    missing, extra = sorted(wanted - there), sorted(there - wanted)
    assert f"missing {len(missing)}: {', '.join(missing[:8])} and {len(missing) - 8} more" in said
    assert f"extra {len(extra)}: {', '.join(extra[:8])} and {len(extra) - 8} more" in said
    assert len(said.splitlines()) == 1


def test_what_torchvision_does_not_have_is_told() -> None:
    with pytest.raises(UserError, match="no weights of cnn9; it has those of resnet18, resnet50"):
        initial.load(architectures.build("cnn9"), "cnn9", "imagenet", None, TEN)


class Evil:
    """A pickle that would write a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_that_runs_something_is_not_opened(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    for name in ("evil.pth", "raw.pth"):
        with pytest.raises(UserError, match=rf"{name} (holds more|cannot be read)"):
            weights.read_state(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_holds_itself_is_no_state_dict(tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    state["state_dict"] = state
    torch.save(state, tmp_path / "loop.pth")
    with pytest.raises(UserError, match=r"loop\.pth is not a state dict of tensors: it holds"):
        weights.read_state(tmp_path / "loop.pth")


@pytest.mark.parametrize(
    "header",
    ["null", '{"classes": null}', '{"classes": [["a"]]}', '{"mean": [NaN]}', "[" * 200_000],
)
def test_a_header_of_another_kind_is_told(tmp_path: Path, header: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, path, {weights.HEADER: header})
    for raw in (None, path.read_bytes()):
        with pytest.raises(UserError, match=r"model\.safetensors is damaged or was not written by"):
            weights.read_tensors(path, raw)
    assert weights.own_facts(path) == {}


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "empty.pth", "list.pth"])
def test_a_damaged_file_is_told(resnet18: Path, tmp_path: Path, name: str) -> None:
    raw = {"cut.pth": resnet18.read_bytes()[:100_000], "cut.safetensors": b"\x10" + b"\0" * 20}
    if name == "list.pth":
        torch.save([torch.zeros(2)], tmp_path / name)
    else:
        (tmp_path / name).write_bytes(raw.get(name, b""))
    with pytest.raises(UserError, match=rf"--weights-file: .*{name}"):
        initial.load(architectures.build("resnet18"), "resnet18", "imagenet", tmp_path / name, TEN)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    absent = tmp_path / "absent.pth"
    with pytest.raises(UserError, match=r"--weights-file: .*absent\.pth does not exist"):
        initial.load(architectures.build("resnet18"), "resnet18", "imagenet", absent, TEN)


# --- ours ---------------------------------------------------------------------------------------


def test_a_trained_model_is_a_beginning(make_job: MakeJob, recorder: Any, few: Dataset) -> None:
    first = make_job("train.epochs=1", folder="first")
    Trainer(first).run(recorder)
    for origin in (first.folder.path, first.folder.weights):
        trainer = Trainer(dataclasses.replace(make_job(folder="second"), init=str(origin)))
        stored = initial.weights.read_tensors(first.folder.weights)[0]
        state = trainer.network.state_dict()
        assert all(torch.equal(state[key], stored[key]) for key in stored)
    # As many classes, but others: what the last layer knows is of no use.
    others = dataclasses.replace(few, classes=tuple(reversed(few.classes)))
    job = dataclasses.replace(make_job(dataset=others, folder="other"), init=str(origin))
    state = Trainer(job).network.state_dict()
    assert not torch.equal(state["11.weight"], stored["11.weight"])
    assert torch.equal(state["9.weight"], stored["9.weight"])
    # Other classes: the last layer is new, the rest is not.
    two = dataclasses.replace(
        few,
        classes=("even", "odd"),
        train=type(few.train)(few.train.images, few.train.labels % 2),
        test=type(few.test)(few.test.images, few.test.labels % 2),
    )
    job = make_job("train.epochs=1", dataset=two, folder="two")
    trainer = Trainer(dataclasses.replace(job, init=str(first.folder.path)))
    state = trainer.network.state_dict()
    assert state["11.weight"].shape == (2, 84)
    assert torch.equal(state["9.weight"], stored["9.weight"])
    card = trainer.run(recorder)
    assert card["init"]["from"] == "model.safetensors"
    assert card["init"]["sha256"] == initial.sha256_of(first.folder.weights)


def test_the_card_tells_all_the_runs_that_led_to_the_weights(
    make_job: MakeJob, recorder: Any
) -> None:
    def run(folder: str, epochs: int, init: Path | None = None, stop: bool = False) -> Json:
        job = dataclasses.replace(
            make_job(f"train.epochs={epochs}", folder=folder),
            init=str(init) if init else None,
            command=f"made {folder}",
        )
        if stop:  # the checkpoint knows it, too
            half = Trainer(job)
            half.step()
            half._save()
            job = dataclasses.replace(job, init=None, resume=True)
        return Trainer(job).run(recorder)

    def told(card: Json) -> Json:
        keys = ("command", "epochs", "wall_seconds", "device", "test_accuracy")
        return {key: card[key] for key in keys}

    first = run("first", 1)
    place = make_job(folder="first").folder
    second = run("second", 2, place.path)
    third = run("third", 1, make_job(folder="second").folder.weights, stop=True)
    assert second["init"] | told(first) == second["init"]
    assert third["init"] == {
        **{"from": "model.safetensors", "sha256": second["weights"]["sha256"]},
        "trained_parameters": third["parameters"],
        **told(second),
        "init": second["init"],
    }
    assert [first["epochs"], second["epochs"], third["epochs"]] == [1, 2, 1]
    # By the card of other weights nothing is known, nor without one.
    disk.write_json(place.card, {**first, "weights": {"sha256": "0" * 64}})
    assert set(run("of others", 1, place.path)["init"]) == {"from", "sha256", "trained_parameters"}
    place.card.unlink()
    assert set(run("without", 1, place.path)["init"]) == {"from", "sha256", "trained_parameters"}


def test_the_published_cards_tell_their_chains() -> None:
    root = Path(__file__).parents[2]
    others = [disk.read_json(path) for path in root.glob("benchmarks/results/*/cards/*.json")]
    made = {other["weights"]["sha256"]: other for other in others}
    lengths = {}
    for path in root.glob("models/*/card.json"):
        init, lengths[path.parent.name] = disk.read_json(path).get("init"), 1
        while init:
            before = made[init["sha256"]]
            wanted = {key: before[key] for key in ("command", "epochs", "wall_seconds", "device")}
            assert init | wanted | {"test_accuracy": before["test_accuracy"]} == init
            assert ("init" in init) == ("init" in before)
            init = init.get("init")
            lengths[path.parent.name] += 1
    assert lengths["custom_resnet"] == 3
    assert lengths["mobilenet_v3_small"] == 2


def test_a_beginning_has_not_seen_what_is_held_out(
    make_job: MakeJob,
    recorder: Any,
    few: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = make_job("data.holdout=50", "data.test=false", folder="first")
    half = make_job("data.holdout=50", "data.test=false", folder="half")
    trainer = Trainer(half)
    trainer.step()
    trainer._save()
    Trainer(first).run(recorder)
    for origin in (first.folder.path, first.folder.weights, half.folder.checkpoint):
        job = dataclasses.replace(make_job("data.holdout=51", folder="next"), init=str(origin))
        said = f"^{origin} may have seen the images that are held out"
        with pytest.raises(UserError, match=said):
            Trainer(job)
        Trainer(dataclasses.replace(make_job("data.holdout=50", folder="next"), init=str(origin)))
    # Of other images, or by weights whose card is another's, nothing is known.
    other = dataclasses.replace(few, train=few.train.first(599))
    job = make_job("data.holdout=51", dataset=other, folder="next")
    begun = dataclasses.replace(job, init=str(first.folder.path))
    assert remarks._unknown(Trainer(begun)) == ""
    monkeypatch.chdir(tmp_path)
    Path("bare").mkdir()
    shutil.copy(first.folder.weights, "bare")
    bare = dataclasses.replace(make_job("data.holdout=51", folder="next"), init="bare")
    assert remarks._unknown(Trainer(bare)).startswith(
        "what bare was trained on is not known: if on the"
    )
    assert remarks._unknown(Trainer(dataclasses.replace(make_job(), init="bare"))) == ""


def test_a_beginning_may_have_seen_an_earlier_state_of_ones_own_images(
    make_job: MakeJob, recorder: Any, few: Dataset
) -> None:
    own = dataclasses.replace(few, verified=VERIFIED)
    more = dataclasses.replace(own, train=few.train.first(599))
    first = make_job("data.holdout=50", "train.epochs=1", dataset=own, folder="first")
    half = make_job("data.holdout=50", dataset=own, folder="half")
    trainer = Trainer(half)
    trainer.step()
    trainer._save()
    Trainer(first).run(recorder)

    def begin(origin: Path, dataset: Dataset = more, holdout: int = 40) -> Trainer:
        job = make_job(f"data.holdout={holdout}", dataset=dataset, folder="next")
        return Trainer(dataclasses.replace(job, init=str(origin)))

    for origin in (first.folder.path, half.folder.checkpoint):
        with pytest.raises(UserError, match=r"perhaps an earlier state of those in the first of"):
            begin(origin)
        begin(origin, own)
        begin(origin, holdout=0)
    other = dataclasses.replace(more, classes=(*few.classes[:9], "another"))
    begin(first.folder.path, dataclasses.replace(other, origin="elsewhere"))
    with pytest.raises(UserError, match="perhaps an earlier state"):  # it has another class now
        begin(first.folder.path, other)
    teacher = f"distill.teachers={json.dumps([str(first.folder.path)])}"
    with pytest.raises(UserError, match="leave --hold-out out: the test images judge then"):
        Trainer(make_job(teacher, "data.holdout=40", dataset=more))
    assert Trainer(make_job(teacher, dataset=more)).teachers
    judging = dataclasses.replace(own, val=lambda: few.test)
    for dataset in (judging, dataclasses.replace(more, val=lambda: few.test)):
        job = make_job("data.val=true", dataset=dataset, folder="next")
        job = dataclasses.replace(job, init=str(first.folder.path))
        if dataset is judging:  # of the same training images: in val there are others
            Trainer(job)
            continue
        with pytest.raises(UserError, match="Train it on these, with --hold-out val, too"):
            Trainer(job)
    # What is no folder of images is known to be another set.
    Trainer(make_job(teacher, "data.holdout=40", dataset=dataclasses.replace(more, verified="-")))


PARTS = """
from torch import nn


class Parts(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.Flatten())
        self.head = nn.Linear(512, num_classes)

    def forward(self, x):
        return self.head(self.network(x))


build = Parts
"""


def test_a_part_may_be_called_as_a_checkpoints_is(
    make_job: MakeJob, recorder: Any, register: Callable[[str, str], str]
) -> None:
    name = register("parts", PARTS)
    first = make_job("train.epochs=1", network=name, folder="first")
    Trainer(first).run(recorder)
    job = make_job(network=name, folder="next")
    begun = Trainer(dataclasses.replace(job, init=str(first.folder.path))).network.state_dict()
    there = weights.load(first.folder).network.state_dict()
    assert all(torch.equal(begun[key], value) for key, value in there.items())


def test_another_network_is_no_beginning(make_job: MakeJob, recorder: Any, normed: str) -> None:
    first = make_job("train.epochs=1", folder="first")
    Trainer(first).run(recorder)
    job = dataclasses.replace(make_job(network=normed), init=str(first.folder.path))
    with pytest.raises(UserError, match=r"missing \d: 1\.bias, 1\.num_batches.*; extra \d: "):
        Trainer(job)
    with pytest.raises(UserError, match="absent does not exist"):
        Trainer(dataclasses.replace(make_job(), init="absent"))
    with pytest.raises(UserError, match="--weights-file goes with --init imagenet"):
        Trainer(dataclasses.replace(make_job(), weights_file=first.folder.weights))


def test_other_weights_than_those_of_the_sha256_are_no_beginning(
    make_job: MakeJob, recorder: Any
) -> None:
    first = make_job("train.epochs=1", folder="first").folder
    sha256 = Trainer(make_job("train.epochs=1", folder="first")).run(recorder)["weights"]["sha256"]

    def begun(init: str, resume: bool = False) -> Trainer:
        job = make_job("train.epochs=1", folder="next", resume=resume)
        command = f"cifar-deploy train simple_cnn --init {init}"
        return Trainer(dataclasses.replace(job, init=init, command=command))

    pinned = f"{first.path}@{sha256[:12]}"
    upper = f"{first.path}@{sha256[:8].upper()}"
    for init in (str(first.path), pinned, f"{first.weights}@{sha256}", upper):
        trainer = begun(init)
        assert trainer.start is not None
        assert trainer.start.sha256 == sha256
        again = pinned if init == str(first.path) else init
        assert trainer.command == f"cifar-deploy train simple_cnn --init {again}"
    trainer.step()
    trainer._save()
    other = f"{first.path}@{'0' * 8}"
    said = rf"^--init {other}: {first.weights} holds other weights, of sha256 {sha256[:12]}….*"
    with pytest.raises(UserError, match=rf"{said} --init {first.path}$"):
        begun(other)
    with pytest.raises(UserError, match=r"does not exist; .* behind an @ go 8 or more digits"):
        begun(f"{first.path}@{sha256[:7]}")
    with pytest.raises(UserError, match="did not begin from this --init"):
        begun(other, resume=True)
    # What is called so is a path.
    first.path.rename(other)
    assert begun(other).command.endswith(f" --init {other}@{sha256[:12]}")
    begun(f"{other}@{sha256[:12]}")
    begun(pinned, resume=True)  # gone, but it began from them


def test_fine_tuning_moves_what_it_may_and_can_be_resumed(
    make_job: MakeJob, recorder: Any, resnet18: Path, few: Dataset
) -> None:
    small = dataclasses.replace(few, train=few.train.first(60), test=few.test.first(20))
    options = (
        *("model.stem=imagenet", "train.epochs=2", "train.batch_size=20", "train.ema=0"),
        *("finetune.freeze=all-but-last-block", "finetune.lr_factor=0.5"),
        "finetune.depth_factor=0.5",
    )

    def job(folder: str) -> Job:
        made = make_job(*options, network="resnet18", dataset=small, folder=folder)
        return dataclasses.replace(made, init="imagenet", weights_file=resnet18)

    trainer = Trainer(job("whole"))
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    card = trainer.run(recorder)
    moved = {
        key
        for key, value in trainer.network.state_dict().items()
        if not torch.equal(value, before[key])
    }
    # Also the running statistics of what is frozen stay.
    assert {key.split(".")[0] for key in moved} == {"layer4", "fc"}
    assert {"layer4.0.conv1.weight", "layer4.0.bn1.running_mean", "fc.weight"} <= moved
    assert card["init"]["from"] == "imagenet"
    assert card["init"]["trained_parameters"] == 8_393_728 + 5_130
    assert card["data"]["mean"] == [0.485, 0.456, 0.406]

    class Stopped(Trainer):
        def step(self) -> None:
            super().step()
            if self.state.step == 3:
                self._save()
                raise KeyboardInterrupt

    half = job("half")
    with pytest.raises(KeyboardInterrupt):
        Stopped(half).run(recorder)
    # --init may be left out then, the checkpoint knows; it may not be another.
    again = dataclasses.replace(half, resume=True, init=None, weights_file=None)
    with pytest.raises(UserError, match=r"did not begin from this --init but from imagenet"):
        Trainer(dataclasses.replace(again, init=str(half.folder.checkpoint)))
    assert not initial.differs(
        initial.Start("checkpoint.safetensors", [], [], sha256="of the first one"),
        *(str(half.folder.checkpoint), None, half.folder.path),
    )  # which the run has written over since
    other = resnet18.with_name("other.pth")
    other.write_bytes(resnet18.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"did not begin from this --init"):
        Trainer(dataclasses.replace(half, resume=True, weights_file=other))
    Trainer(again).run(recorder)
    assert half.folder.weights.read_bytes() == trainer.job.folder.weights.read_bytes()


# --- what stays, and what learns slowly ---------------------------------------------------------


@pytest.mark.parametrize("name", architectures.NETWORKS)
def test_stages_hold_every_parameter_once(name: str) -> None:
    network = architectures.build(name).train()
    parts = stages(network)
    assert all(module.training for module in network.modules())
    names = [unit for part in parts for unit in part]
    found = [p for unit in names for p in network.get_submodule(unit).parameters()]
    assert sorted(map(id, found)) == sorted(map(id, network.parameters()))
    assert classifier(network) == parts[-1][-1]
    assert len(parts) >= 3


FROZEN = {
    "all-but-classifier": {"features.0", "features.1", "features.2", "features.3"}
    | {"features.4", "features.5"},
    "all-but-last-block": {"features.0", "features.1", "features.2", "features.3"},
    ("features.0", "features.2.*"): {"features.0", "features.2"},
}


@pytest.mark.parametrize("what", FROZEN, ids=str)
def test_what_is_frozen(what: str | tuple[str, ...]) -> None:
    network = architectures.build("custom_resnet")
    modules = freeze(network, what)
    held = {key for key, p in network.named_parameters() if not p.requires_grad}
    assert {".".join(key.split(".")[:2]) for key in held} == FROZEN[what]
    inside = {id(p) for module in modules for p in module.parameters()}
    assert {key for key, p in network.named_parameters() if id(p) in inside} == held


def test_a_name_that_freezes_nothing_is_told() -> None:
    network = architectures.build("resnet18")
    with pytest.raises(UserError, match="'layer5' matches no module with weights; there are conv1"):
        freeze(network, ("layer1", "layer5"))
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(architectures.build("resnet18"), ("*",))


def test_the_rates_fall_with_the_way_from_the_end(resnet18: Path) -> None:
    network = architectures.build("resnet18")
    start = initial.load(network, "resnet18", "imagenet", resnet18, TEN)
    factors = initial.rates(network, start, Finetune("none", 0.5, 0.1))
    wanted = {"conv1": 0.0005, "layer1": 0.0005, "layer2": 0.005, "layer3": 0.05, "layer4": 0.5}
    for key, factor in factors.items():
        top = key.split(".")[0].replace("bn1", "conv1")
        assert factor == pytest.approx(wanted[top])
    assert not [key for key in factors if key.startswith("fc")]  # new: at full speed
    with pytest.raises(UserError, match=r"\[finetune\] is for pretrained weights.* --init"):
        initial.rates(network, None, Finetune("all-but-classifier"))


def test_the_optimiser_keeps_to_the_rates(make_job: MakeJob, resnet18: Path, few: Dataset) -> None:
    options = ("finetune.lr_factor=0.25", "optimizer.lr=0.08", "finetune.depth_factor=0.5")
    job = make_job(*options, network="resnet18")
    trainer = Trainer(dataclasses.replace(job, init="imagenet", weights_file=resnet18))
    peaks = {
        id(p): group["peak"] for group in trainer.optimizer.param_groups for p in group["params"]
    }
    found = {key: peaks[id(p)] for key, p in trainer.network.named_parameters()}
    assert found["fc.weight"] == found["fc.bias"] == 0.08
    assert found["layer4.0.conv1.weight"] == found["layer4.0.bn1.bias"] == 0.02
    assert found["conv1.weight"] == pytest.approx(0.08 * 0.25 / 8)


# --- chance with structure ----------------------------------------------------------------------


def test_dirac_passes_the_first_channels_on() -> None:
    network = architectures.build("custom_resnet")
    initial.dirac(network)
    convolution = network.get_submodule("features.2.pair.0.0")
    x = torch.randn(2, 128, 8, 8)
    torch.testing.assert_close(convolution(x), x)
    first = network.get_parameter("features.0.0.weight")
    assert first[:, :, 1, 1].abs().max() < 1  # three pixels are no features to pass on


@pytest.mark.parametrize(("name", "block"), [("resnet18", "layer2.0"), ("resnet50", "layer3.0")])
def test_with_zero_gamma_a_block_passes_its_shortcut_on(
    make_job: MakeJob, name: str, block: str
) -> None:
    network = Trainer(make_job("model.init=zero-gamma", network=name)).network
    first, second = network.get_submodule(block), network.get_submodule(f"{block[:-1]}1")
    x = torch.randn(2, network.get_parameter(f"{block}.conv1.weight").shape[1], 8, 8)
    y = first(x)
    torch.testing.assert_close(y, first.get_submodule("downsample")(x).relu())
    torch.testing.assert_close(second(y), y)
    y.sum().backward()
    last = network.get_parameter(f"{block}.bn{2 if name == 'resnet18' else 3}.weight")
    assert last.grad is not None
    assert last.grad.abs().max() > 0  # it does not stay so


def test_zero_gamma_is_refused_where_no_block_has_one(make_job: MakeJob) -> None:
    with pytest.raises(UserError, match="zero-gamma is for resnet18 and resnet50"):
        Trainer(make_job("model.init=zero-gamma", network="custom_resnet"))


def test_whitened_patches_are_uncorrelated(small_data: Dataset) -> None:
    mean, std = small_data.normalisation
    network = architectures.build("custom_resnet")
    usual = network.get_parameter("features.0.0.weight").flatten(1).norm(dim=1).mean().item()
    initial.whiten(network, small_data.train.images, mean, std, torch.device("cpu"))
    filters = network.get_parameter("features.0.0.weight").detach()
    assert torch.equal(filters[0:54:2], -filters[1:54:2])
    assert filters[:54].flatten(1).norm(dim=1).mean().item() == pytest.approx(usual, rel=1e-4)
    pixels = torch.from_numpy(small_data.train.images[:500]).permute(0, 3, 1, 2).float() / 255
    x = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    answers = nn.functional.conv2d(x, filters[0:54:2]).permute(1, 0, 2, 3).flatten(1)
    found = np.corrcoef(answers.numpy())
    assert abs(found - np.eye(27)).max() < 0.2
    spread = answers.std(1)
    assert spread[:10].max() / spread[:10].min() < 1.3


def test_what_the_recipe_says_is_done(make_job: MakeJob) -> None:
    plain = Trainer(make_job(network="custom_resnet")).network.state_dict()
    made = Trainer(
        make_job("model.init=dirac", "model.whiten=true", network="custom_resnet")
    ).network.state_dict()
    changed = {key for key in plain if not torch.equal(plain[key], made[key])}
    assert "features.0.0.weight" in changed
    assert "features.5.pair.1.0.weight" in changed
    assert all(key.endswith(".0.weight") for key in changed)
    assert recipe.Recipe().model.init == "default"
