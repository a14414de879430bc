"""What is published: the README's table, the commands of the cards, the size of models/."""

import re
from pathlib import Path

import pytest

from cifar_deploy import architectures, cards, disk, store
from cifar_deploy.models.overview import overview
from cifar_deploy.train import loop

ROOT = Path(__file__).parents[1]
FILES = ("model.safetensors", "card.json", "log.jsonl", "curves.png", "validation.json", "*.toml")
MIB = 2**20


def card(name: str) -> disk.Json:
    return disk.read_json(ROOT / "models" / name / "card.json")


def test_the_published_models_take_30_mib_at_most() -> None:
    files = [path for kind in FILES for path in ROOT.glob(f"models/*/{kind}")]
    assert {path.parent.name for path in files} >= set(architectures.NETWORKS)
    assert sum(path.stat().st_size for path in files) <= 30 * MIB


def test_the_readmes_table_is_that_of_the_cards() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    rows = {}
    for line in lines:
        if found := re.match(r"\| `(\w+)`[^|]*\| ([\d,]+) \|[^|]*\| ([\d.± ]+) % \|", line):
            rows[found[1]] = found[2], found[3]
    assert set(rows) == set(architectures.NETWORKS)
    for name, (parameters, accuracy) in rows.items():
        facts = card(name)
        assert parameters == f"{facts['parameters']:,}"
        mean = facts.get("test_accuracy_mean", facts["test_accuracy"])
        spread = facts.get("test_accuracy_std")
        assert accuracy == f"{100 * mean:.2f}" + (f" ± {100 * spread:.2f}" if spread else "")


def test_the_commands_of_the_cards_name_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names alone others would be taken: those that the run made, say."""
    monkeypatch.setenv(store.MODELS_VARIABLE, str(ROOT / "models"))
    told = {entry["model"]: entry["command"] for entry in overview()}
    seen = 0
    for name in architectures.NETWORKS:
        facts, words = card(name), told[name].split()
        begun = [words[at + 1] for at, word in enumerate(words) if word == "--init"]
        taught = [words[at + 1] for at, word in enumerate(words) if word == "--teacher"]
        sha256 = facts.get("init", {}).get("sha256")
        assert [one.rpartition("@")[2] for one in begun] == ([sha256[:12]] if sha256 else [])
        teachers = facts.get("teachers", [])
        assert taught == [f"{one['model']}@{one['sha256'][:12]}" for one in teachers]
        seen += len(begun) + len(taught)
    assert seen >= 10


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (
            "train a --init=b --lr 0.1",
            "train a --init=b@0123456789ab --lr 0.1 --teacher t@ba9876543210",
        ),
        ("train a --init b@01234567", "train a --init b@01234567 --teacher t@ba9876543210"),
        ("train a --init imagenet", "train a --init imagenet --teacher t@ba9876543210"),
        (
            "train 'a b' --teacher t --teacher other",
            "train 'a b' --teacher t@ba9876543210",
        ),
        ("train 'a", "train 'a"),
    ],
)
def test_a_command_is_pinned(command: str, wanted: str) -> None:
    teachers = [{"model": "t", "sha256": "ba9876543210fedc"}]
    assert cards.pinned(command, "0123456789abcdef", teachers) == wanted
    assert cards.pinned(wanted, "0123456789abcdef", teachers) == wanted


def test_a_checkpoint_is_never_older_than_five_minutes() -> None:
    assert loop.CHECKPOINT_SECONDS <= 300
