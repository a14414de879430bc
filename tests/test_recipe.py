import dataclasses
import json
import math
import re
import tomllib
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Run, command_line, refusing

import cifar_deploy
from cifar_deploy import architectures, recipe
from cifar_deploy.errors import UserError
from cifar_deploy.recipe import Recipe, load, parse
from cifar_deploy.store import MODELS_VARIABLE, ModelFolder

ROOT = Path(cifar_deploy.__file__).parents[1]
FIELDS = [
    pytest.param(section.name, spec, id=f"{section.name}.{spec.name}")
    for section in fields(Recipe)
    for spec in fields(type(section.default))  # type: ignore[arg-type]
]


def refusal(table: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse(table, "recipe.toml")
    text = str(caught.value)
    assert len(text.splitlines()) <= 2
    return text


def bad_values(spec: Field[Any]) -> list[Any]:
    default: Any = spec.default
    if spec.type is bool:
        return [1, 0, "true", None, 0.0]
    if "words" in spec.metadata:
        return ["nonsense", default.upper(), "", 1, True, [default]]
    if "either" in spec.metadata:
        return ["nonsense", default.upper(), "", 1, True, [], [""], ["a", 1], [["a"]], None]
    low, high = spec.metadata["low"], spec.metadata["high"]
    wrong = [low - 1, high + 1, -1e-9, math.nan, math.inf, -math.inf, "1", True, False, [1], None]
    if spec.type is int:
        return [*wrong, float(default), low + 0.5]
    return [*wrong, math.nextafter(low, -math.inf), math.nextafter(high, math.inf), 10**400]


def good_values(spec: Field[Any]) -> list[Any]:
    if spec.type is bool:
        return [True, False]
    if "words" in spec.metadata:
        return list(spec.metadata["words"])
    if "either" in spec.metadata:
        return [*spec.metadata["either"], ["layer1", "features.0*"]]
    return [spec.metadata["low"], spec.metadata["high"], spec.default]


def test_the_sections_hold_the_fields_that_are_tested() -> None:
    assert [section.name for section in fields(Recipe)] == [
        *("model", "data", "augment", "train", "optimizer", "schedule", "finetune", "distill")
    ]
    assert len(FIELDS) >= 26


@pytest.mark.parametrize(("section", "spec"), FIELDS)
def test_every_field_is_checked(section: str, spec: Field[Any]) -> None:
    for value in bad_values(spec):
        text = refusal({section: {spec.name: value}})
        assert text.startswith(f"recipe.toml: {section}.{spec.name} is ")
        if "low" in spec.metadata and isinstance(value, int) and not isinstance(value, bool):
            assert f"between {spec.metadata['low']:g} and {spec.metadata['high']:g}" in text
        for word in spec.metadata.get("words", ()):
            assert word in text


@pytest.mark.parametrize(("section", "spec"), FIELDS)
def test_every_field_takes_the_ends_of_its_range(section: str, spec: Field[Any]) -> None:
    for value in good_values(spec):
        kept = getattr(getattr(parse({section: {spec.name: value}}, "here"), section), spec.name)
        assert kept == (tuple(value) if isinstance(value, list) else value)
        kind = type(value) if "either" in spec.metadata else spec.type
        assert type(kept) is (tuple if kind is list else kind)


@pytest.mark.parametrize(("section", "spec"), FIELDS)
def test_every_field_is_overridable(section: str, spec: Field[Any]) -> None:
    for value in good_values(spec):
        found = load(None, [f"{section}.{spec.name}={json.dumps(value)}"])
        kept = getattr(getattr(found, section), spec.name)
        assert kept == (tuple(value) if isinstance(value, list) else value)
        others = dataclasses.replace(found, **{section: getattr(Recipe(), section)})
        assert others == Recipe()


def test_a_recipe_survives_json() -> None:
    options = ["train.epochs=3", "optimizer.lr=0.123456789", "augment.flip=false"]
    changed = load(None, [*options, 'finetune.freeze=["layer1", "bn*"]'])
    assert parse(json.loads(json.dumps(changed.to_dict())), "card") == changed


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"optimiser": {"lr": 0.1}}, r"no section \[optimiser\]; did you mean optimizer\?"),
        ({"trian": {}}, r"no section \[trian\]; did you mean train\?"),
        ({"xyz": {}}, r"no section \[xyz\]; there are model, data, augment, train"),
        ({"train": {"epoch": 3}}, r"no key train.epoch; did you mean epochs\?"),
        ({"optimizer": {"learning": 3}}, "no key optimizer.learning; there are name, lr"),
        ({"train": 3}, r"train must be a section, \[train\]"),
        ({"schedule": [{"warmup": 0.1}]}, "schedule must be a section"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(table: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(table, "recipe.toml")


# --- overrides ----------------------------------------------------------------------------------


def test_overrides_win_over_the_file_and_later_ones_over_earlier(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[train]\nepochs = 7\nseed = 5\n")
    found = load(file, ["train.epochs=8", " train.epochs = 9 "])
    assert (found.train.epochs, found.train.seed) == (9, 5)


def test_an_override_may_be_a_bare_word() -> None:
    found = load(None, ["train.precision=fp32", "train.compile=on", 'schedule.name="cosine"'])
    assert (found.train.precision, found.train.compile) == ("fp32", "on")
    assert found.schedule.name == "cosine"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs=3", "write it as section.key=value"),
        ("train.epochs", "write it as section.key=value"),
        ("train.=3", "write it as section.key=value"),
        ("", "write it as section.key=value"),
        ("train.epochs=0", "--set train.epochs=0: train.epochs is 0; it lies between 1 and 10000"),
        ("train.epochs=2.5", "it is a whole number"),
        ("train.epochs=", "it is a whole number"),
        ("train.epochs=many", "'many'; it is a whole number"),
        ("train.epochs=" + "9" * 5000, "it is a whole number"),
        ("train.epochs=1\nx=2", "it is a whole number"),
        ("optimizer.lr=nan", "lies between"),
        ("optimizer.lr=inf", "lies between"),
        ("augment.flip=yes", "'yes'; it is true or false"),
        ("train.epoch=3", "did you mean epochs"),
        ("tran.epochs=3", "did you mean train"),
        ("train.epochs.x=3", r"no key train.epochs.x; did you mean epochs"),
    ],
)
def test_bad_overrides_are_refused_by_name(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(None, [override])
    assert str(caught.value).startswith(f"--set {override}"[:20])


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"[train\nepochs = 3",
        b"[train]\nepochs = ",
        b"[train]\nepochs = 3\nepochs = 4",
        b"\xff\xfe",
        b"[train]\nepochs = " + b"9" * 5000,
        b"[train]\nepochs = " + b"[" * 100_000,
    ],
)
def test_what_is_no_toml_is_refused(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "recipe.toml"
    file.write_bytes(raw)
    with pytest.raises(UserError, match=r"recipe\.toml is not valid TOML"):
        load(file)


def test_a_value_out_of_range_is_told_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[train]\nbatch_size = 0\n")
    with pytest.raises(UserError) as caught:
        load(file)
    said = f"{file}: train.batch_size is 0; it lies between 1 and 65536"
    assert str(caught.value) == said


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent\.toml: No such file"):
        load(tmp_path / "absent.toml")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        load(tmp_path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.touch()
    assert load(file) == Recipe() == load(None)


@pytest.mark.parametrize("name", architectures.NETWORKS)
def test_every_network_has_a_recipe_that_builds_it(name: str) -> None:
    file = ROOT / "models" / name / "recipe.toml"
    found = load(file)
    assert found != Recipe()
    with torch.device("meta"):
        architectures.build(name, 10, found.model.stem)


EVERY = sorted((ROOT / "models").glob("*/*.toml"))
SECOND = [file for file in EVERY if file.name != "recipe.toml"]


@pytest.mark.parametrize("file", SECOND, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_second_recipe_is_found_by_its_word(file: Path, tmp_path: Path) -> None:
    network = file.parent.name
    found_at = recipe.find(file.stem, ModelFolder(tmp_path), network)
    assert found_at
    assert found_at.resolve() == file.resolve()
    found = load(file)
    assert found not in (Recipe(), load(file.parent / "recipe.toml"))
    with torch.device("meta"):
        architectures.build(network, 10, found.model.stem)
    own = ModelFolder(tmp_path / "mine")
    own.path.mkdir()
    mine = own.path / file.name
    mine.touch()
    assert recipe.find(file.stem, own, network) == mine


def test_a_recipe_may_be_asked_for_by_path_or_word(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path)
    assert {file.stem for file in SECOND} >= {"speed", "short", "finetune"}
    assert recipe.find("some/file.toml", folder, "vgg19") == Path("some/file.toml")
    own = recipe.find(None, folder, "vgg19")
    assert own
    assert own.samefile(ROOT / "models" / "vgg19" / "recipe.toml")
    with pytest.raises(UserError, match=r"vgg19 has no fast\.toml; .* \(finetune, short, taught\)"):
        recipe.find("fast", folder, "vgg19")


def test_every_recipe_in_the_repository_is_a_networks() -> None:
    there = {file.parent.name for file in (ROOT / "models").glob("*/recipe.toml")}
    assert there == set(architectures.NETWORKS)


# --- cards --------------------------------------------------------------------------------------

CARDS = [*(ROOT / "models").glob("*/card.json"), *(ROOT / "benchmarks").rglob("cards/*.json")]


def test_the_recipe_of_every_card_here_is_taken() -> None:
    assert len(CARDS) > len(architectures.NETWORKS)
    for card in CARDS:
        there = json.loads(card.read_text())["recipe"]
        found = load(card).to_dict()
        for section, values in there.items():
            assert values.items() <= found[section].items(), card
        # What its version did not know is as it was then.
        assert load(card) == parse(there, "there")
    assert load(CARDS[0], ["train.epochs=3"]).train.epochs == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train]\nepochs = 3\n", r"card\.JSON is not JSON \("),
        ("[3]", r"card\.JSON does not hold a JSON object"),
        ('{"network": "cnn9"}', r"card\.JSON has no recipe; name a card that `cifar-deploy train`"),
        ('{"recipe": null}', r"card\.JSON has no recipe"),
        ('{"recipe": {"train": null}}', r"card\.JSON: train must be a section"),
        (
            '{"recipe": {"train": {"epochs": 0}}}',
            r"card\.JSON: train\.epochs is 0; it lies between",
        ),
        ('{"recipe": {"train": {"ema": NaN}}}', r"card\.JSON: train\.ema is nan"),
        (
            '{"recipe": {"train": {"swa": true}}}',
            r"card\.JSON: no key train\.swa; there are epochs",
        ),
    ],
)
def test_a_card_without_a_whole_recipe_is_told(tmp_path: Path, text: str, said: str) -> None:
    card = tmp_path / "card.JSON"
    card.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        load(card)
    assert len(str(caught.value).splitlines()) == 1


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(MODELS_VARIABLE, raising=False)
    return command_line(monkeypatch, capsys)


@pytest.mark.parametrize("file", EVERY, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_printed_recipe_is_the_same_recipe(file: Path, run: Run) -> None:
    network = file.parent.name
    word = () if file.stem == "recipe" else ("--recipe", file.stem)
    answer = run("recipe", network, *word)
    assert (answer.status, answer.err) == (0, "")
    Path("mine.toml").write_text(answer.out)
    assert load(Path("mine.toml")) == load(file)
    assert tomllib.loads(answer.out) == load(file).to_dict()  # no key is missing
    words = [path.stem for path in SECOND if path.parent == file.parent]
    last = answer.out.splitlines()[-1]
    assert last == f"# recipes of {network}: {', '.join(words) or 'only its own'}"
    again = run("recipe", network, "--recipe", "mine.toml")
    assert again.out == answer.out


@pytest.mark.parametrize(("section", "spec"), FIELDS)
def test_every_key_is_printed_with_what_it_can_be(section: str, spec: Field[Any]) -> None:
    other = next(value for value in good_values(spec) if value != spec.default)
    for value, default in ((spec.default, False), (other, True)):
        text = parse({section: {spec.name: value}}, "here").to_toml()
        body = text[text.index(f"[{section}]") :]
        match = re.search(rf"^{spec.name} = (.*?) +# (.*)$", body, re.M)
        assert match
        assert json.loads(match[1]) == value
        said = match[2]
        assert (f" (default {json.dumps(spec.default)})" in said) == default
        assert said.endswith(spec.metadata["help"])
        if spec.type is bool:
            allowed = "true or false"
        elif "low" in spec.metadata:
            ends = re.match(r"(\S+) to ([^ ;]+)", said)
            assert ends
            assert [json.loads(end) for end in ends.groups()] == [
                spec.metadata["low"],
                spec.metadata["high"],
            ]
            continue
        else:
            allowed = ", ".join(spec.metadata.get("words") or spec.metadata["either"])
        assert said.startswith(allowed)


def test_a_printed_recipe_has_any_name_and_what_was_set(run: Run) -> None:
    teachers = ["größer", 'a "b"\\n', "\N{SNOWMAN}\N{GRINNING FACE}", "# no comment\n"]
    options = [f"distill.teachers={json.dumps(teachers, ensure_ascii=False)}", "optimizer.lr=1e-8"]
    answer = run("recipe", "resnet9", *(part for option in options for part in ("--set", option)))
    assert answer.status == 0
    Path("mine.toml").write_text(answer.out)
    found = load(Path("mine.toml"))
    assert found == load(ROOT / "models" / "custom_resnet" / "recipe.toml", options)
    assert (found.distill.teachers, found.optimizer.lr) == (tuple(teachers), 1e-8)


def test_a_recipe_for_programs_is_one_for_training(run: Run) -> None:
    answer = run("recipe", "cnn9", "--set", "train.epochs=3", "--json")
    value = json.loads(answer.out)
    assert (value["network"], value["recipes"]) == ("cnn9", ["short"])
    Path("mine.json").write_text(answer.out)
    expected = load(ROOT / "models" / "cnn9" / "recipe.toml", ["train.epochs=3"])
    assert load(Path("mine.json")) == expected == parse(value["recipe"], "here")


def test_a_folders_own_recipes_are_printed(run: Run) -> None:
    Path("models/cnn9").mkdir(parents=True)
    Path("models/cnn9/recipe.toml").write_text("[train]\nepochs = 7\n")
    Path("models/cnn9/mine.toml").write_text("[train]\nepochs = 8\n")
    for word, epochs in (((), 7), (("--recipe", "mine"), 8)):
        answer = run("recipe", "cnn9", *word)
        assert tomllib.loads(answer.out)["train"]["epochs"] == epochs
        assert answer.out.endswith("# recipes of cnn9: mine, short\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("resnet19x",), "no network is called 'resnet19x'; did you mean resnet"),
        (("cnn9", "--recipe", "fast"), "cnn9 has no fast.toml; name a file or another recipe (sh"),
        (("cnn9", "--recipe", "absent.toml"), "cannot read absent.toml: No such file"),
        (("cnn9", "--recipe", "absent.json"), "cannot read absent.json: No such file"),
        (("cnn9", "--set", "train.epoch=3"), "no key train.epoch; did you mean epochs?"),
    ],
)
def test_a_recipe_that_is_not_there_is_not_printed(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    assert said in refusing(run)("recipe", *arguments)


# --- folders ------------------------------------------------------------------------------------


def test_a_folders_own_recipe_comes_before_the_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "models"))
    folder = ModelFolder(tmp_path / "mine")
    packaged = recipe.recipe_path(folder, "vgg19")
    assert packaged == ROOT / "models" / "vgg19" / "recipe.toml"
    folder.path.mkdir()
    folder.recipe.touch()
    edited = tmp_path / "models" / "vgg19" / "recipe.toml"
    edited.parent.mkdir(parents=True)
    edited.touch()
    assert recipe.recipe_path(folder, "vgg19") == folder.recipe
    folder.recipe.unlink()  # as with --out
    assert recipe.recipe_path(folder, "vgg19") == edited
    assert recipe.recipe_path(ModelFolder(tmp_path), "no_such_network") is None


def test_a_name_with_what_a_terminal_obeys_is_none() -> None:
    with pytest.raises(UserError, match=r"distill\.teachers is \['a\\x00b'\]; it is"):
        load(None, ['distill.teachers=["a\\u0000b"]'])
