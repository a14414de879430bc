"""What differs between models, by cards that trainings left."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Run, command_line

from cifar_deploy import disk, store
from cifar_deploy.models.compare import _student, _welch, compare

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "benchmarks" / "results" / "cpu" / "cards"
SEEDS = ROOT / "models" / "simple_cnn" / "card.json"

Put = Callable[..., disk.Json]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Makes a model of a card that is published, changed by `change`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(store.MODELS_VARIABLE, raising=False)

    def put(
        name: str, card: Path, change: Callable[[disk.Json], object] | None = None
    ) -> disk.Json:
        value = disk.read_json(card)
        if change:
            change(value)
        disk.write_json(Path("models", name, "card.json"), value)
        return value

    return put


@pytest.fixture
def run(put: Put, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return command_line(monkeypatch, capsys)


def test_several_seeds_are_compared_by_their_means(put: Put, run: Run) -> None:
    cards = [put("a", SEEDS), put("b", CARDS / "custom_resnet_speed.json")]
    runs = [[one["test_accuracy"] for one in card["runs"]] for card in cards]
    found = compare(["a", "b"])
    (judgement,) = found["judgements"]
    means, spreads = (list(map(f, runs)) for f in (statistics.fmean, statistics.stdev))
    assert judgement["difference_points"] == pytest.approx(100 * (means[1] - means[0]))
    assert judgement["spread_points"] == pytest.approx([100 * spread for spread in spreads])
    # scipy.stats.ttest_ind of such samples, equal_var=False, has 2.0929 degrees of freedom.
    half = judgement["half_width_points"]
    error = math.sqrt(sum(spread**2 / 3 for spread in spreads))
    assert half / (100 * error) == pytest.approx(4.125, abs=0.02)
    assert judgement["seeds"] == [3, 3]
    assert "seeds" not in found["rows"]  # 0, 1, 2 in both
    said = run("models", "a", "b").out
    assert "94.13 ± 0.10 % (3 seeds)" in said
    means = ", of the means of 3 and 3 seeds, whose spreads are 0.10 and 0.65"
    assert f"+18.05 points, ± {half:.2f} (95 %, Welch){means}" in said


def test_students_quantiles_are_those_of_the_tables() -> None:
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 10: 2.2281, 100: 1.9840}
    for freedom, quantile in table.items():
        assert _student(freedom) == pytest.approx(quantile, rel=1e-3)
    assert _welch([0.2, 0.1], [5, 1]) is None
    assert _welch([0.0, 0.0], [3, 3]) is None
    # Of equal deviations and numbers it is Student's, of 2 (n - 1).
    assert _welch([0.1, 0.1], [6, 6]) == pytest.approx(2.2281 * 0.1 * math.sqrt(2 / 6), rel=1e-3)


def test_all_right_is_not_beyond_doubt(put: Put, run: Run) -> None:
    def perfect(card: disk.Json) -> None:
        card |= {"test_accuracy": 1.0, "test_images": 20}

    for name in ("a", "b"):
        put(name, CARDS / "cnn9.json", perfect)
    assert "+0.00 points, ± 12.3" in run("models", "a", "b").out


def test_three_models_are_compared_with_the_first_one(put: Put, run: Run) -> None:
    shares = {"a": 0.9403, "b": 0.9340, "c": 0.7673}
    put("a", CARDS / "cnn9.json")
    put("b", CARDS / "vgg19.json")
    put("c", SEEDS)
    found = compare(list(shares))
    assert [one["accuracy"] for one in found["rows"]["test_accuracy"]] == list(shares.values())
    for other, judgement in zip("bc", found["judgements"], strict=True):
        pair = [shares["a"], shares[other]]
        assert (judgement["model"], judgement["against"]) == (other, "a")
        assert judgement["difference_points"] == pytest.approx(100 * (pair[1] - pair[0]))
        more = [(10_000 * p + 1) / 10_002 for p in pair]  # Agresti and Caffo's
        half = 1.96 * math.sqrt(sum(p * (1 - p) / 10_002 for p in more))
        assert judgement["half_width_points"] == pytest.approx(100 * half, rel=1e-4)
    assert found["rows"]["test_accuracy_of_seeds"][:2] == [None, None]
    said = run("models", *shares).out
    assert max(map(len, said[: said.index("b against a")].splitlines())) <= 120
    assert "b against a: -0.63 points, ± 0.67 (95 %)" in said
    assert "; one seed of a: another would differ, too (the other's: ± 0.65)\n" in said
    assert json.loads(run("models", *shares, "--json").out)["rows"] == found["rows"]
    assert "image by image" not in said  # nothing is exported


def test_what_an_old_card_lacks_is_its_default(put: Put, run: Run) -> None:
    put("new", CARDS / "cnn9.json")

    def old(card: disk.Json) -> None:
        for key in ("train_seconds", "teachers", "compiled", "init_seconds"):
            card.pop(key, None)
        for section in ("distill", "finetune"):
            card["recipe"].pop(section, None)
        assert card["recipe"]["train"].pop("lookahead", 0) == 0

    put("old", CARDS / "cnn9.json", old)
    found = compare(["new", "old"])
    assert found["rows"].keys() == {"test_accuracy", "train_seconds", "compiled"}
    assert found["rows"]["compiled"] == [False, None]

    def cooler(card: disk.Json) -> None:
        card["recipe"]["distill"] = {"temperature": 2.0}

    put("new", CARDS / "cnn9.json", cooler)
    assert compare(["new", "old"])["rows"]["distill.temperature"] == [2.0, 4.0]
    assert "distill.temperature   2.0" in run("models", "new", "old").out

    def bare(card: disk.Json) -> None:
        accuracy = card["test_accuracy"]
        card.clear()
        card.update(network="cnn9", test_accuracy=accuracy, weights={"bytes": "many"}, runs=[])

    put("bare", CARDS / "cnn9.json", bare)
    said = run("models", "new", "bare").out
    assert "94.03 % of 10,000" in said
    assert "by their cards they were not judged by the same images" in said
    assert "optimizer.lr" not in said  # a card without recipe says nothing of it


def test_what_was_held_out_is_not_compared_with_the_test(put: Put, run: Run) -> None:
    put("held", CARDS / "custom_resnet_speed_held_out.json")
    put("tested", CARDS / "custom_resnet_speed.json")
    found = compare(["held", "tested"])
    assert found["rows"]["test_accuracy"][0] is None
    assert found["rows"]["holdout_accuracy"] == [{"accuracy": 0.9406, "images": 5000}, None]
    assert found["judgements"][0]["measure"] is None

    def other(card: disk.Json) -> None:
        card["holdout_accuracy"] = 0.95

    put("other", CARDS / "custom_resnet_speed_held_out.json", other)
    said = run("models", "held", "other").out
    assert "94.06 % of 5,000" in said
    assert "other against held: +0.94 points, ± 0.89 (95 %) if each had its own 5,000 held" in said
    assert "`validate`" not in said  # which judges by the test images

    def fewer(card: disk.Json) -> None:
        card["data"]["holdout_images"] = 1000

    put("other", CARDS / "custom_resnet_speed_held_out.json", fewer)
    assert compare(["held", "other"])["judgements"][0]["measure"] is None


def test_images_that_were_added_for_training_leave_the_test_images(put: Put) -> None:
    def other(card: disk.Json, **changed: str) -> None:
        card["data"] |= {"sha256": "1" * 64, "test_sha256": "2" * 64} | changed

    put("a", SEEDS, other)
    put("b", SEEDS, lambda card: other(card, sha256="3" * 64))
    put("c", SEEDS, lambda card: other(card, test_sha256="3" * 64))
    measures = [one["measure"] for one in compare(["a", "b", "c"])["judgements"]]
    assert measures == ["test_accuracy", None]
