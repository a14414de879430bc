"""The printed table and the lines under it."""

import dataclasses
import io
import math
from functools import partial

import numpy as np
import pytest
import torch
from judgements import MakeJudgement
from processes import lines_in_terminal
from rich.console import Console

from cifar_deploy.architectures.weights import Trained
from cifar_deploy.cli.options import show
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.store import ModelFolder
from cifar_deploy.validate import table
from cifar_deploy.validate.judge import Options, Reference, judge
from cifar_deploy.validate.judgement import Judged, Judgement, to_json
from cifar_deploy.validate.latency import Speed
from cifar_deploy.validate.noninferiority import INCONCLUSIVE, compare


def printed(judgements: list[Judgement], width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table.table(judgements))
    return stream.getvalue()


@pytest.fixture
def judgements(make_judgement: MakeJudgement, small_data: Dataset) -> list[Judgement]:
    labels = small_data.test.labels
    wrong = (labels + 1) % 10
    few = np.where(np.arange(len(labels)) < 3, wrong, labels)
    return [
        make_judgement(
            {
                "models/mobilenet_v3_small/mobilenet_v3_small.fp16.onnx": few,
                "models/mobilenet_v3_small/mobilenet_v3_small.fp32.onnx": labels,
            },
            model="mobilenet_v3_small",
        ),
        make_judgement(
            {"models/simple_cnn/simple_cnn.fp32.onnx": wrong},
            unusable={"models/simple_cnn/cut.onnx": "cut.onnx is truncated; export it again"},
        ),
    ]


def line(text: str, name: str) -> str:
    (found,) = (line for line in text.splitlines() if name in line)
    return found


def test_names_and_verdicts(judgements: list[Judgement]) -> None:
    text = printed(judgements, 140)
    assert "REFERENCE" in line(text, "mobilenet_v3_small (fp32)")
    assert "PASS" in line(text, "mobilenet_v3_small.fp32.onnx")
    assert "INCONCLUSIVE" in line(text, "mobilenet_v3_small.fp16.onnx")
    assert "FAIL" in line(text, "simple_cnn.fp32.onnx")
    assert "UNUSABLE" in line(text, "cut.onnx")
    order = [text.index(name) for name in ("small (fp32)", "small.fp16", "cnn (fp32)", "cut.onnx")]
    assert order == sorted(order)


def test_a_class_that_loses_more_than_all_may_is_named(
    make_judgement: MakeJudgement, small_data: Dataset
) -> None:
    labels, name = small_data.test.labels, small_data.classes[3]
    third = np.flatnonzero(labels == 3)
    some = labels.copy()
    some[third[:8]] = 5
    evenly = np.where(np.arange(len(labels)) % 63 == 0, (labels + 1) % 10, labels)
    said = table.remarks([make_judgement({"some.onnx": some, "evenly.onnx": evenly})])
    share = f"{100 * 8 / len(third):.2g} points of {len(third)} {name} images (8 lost, 0 gained)"
    assert f"some.onnx loses most in one class: {share}." in said
    assert not any("evenly.onnx loses most" in line for line in said)


def test_figures(judgements: list[Judgement]) -> None:
    reference, file, _ = judgements[0].rows
    headings = [heading.replace("\n", " ") for heading in table.HEADINGS]
    cells = dict(zip(headings, table.cells(judgements[0], file), strict=True))
    assert cells["top-1 %"] == "99.40"  # 3 of 500 wrong
    assert cells["diff"] == "-0.60"
    assert cells["same top-1 %"] == "99.40"
    assert cells["p50 ms"] == "0.20"
    assert cells["p99 ms"] == "0.24"
    assert cells["images/s (batch)"] == "10,000 (32)"
    assert cells["runtime, provider"] == "ONNX Runtime 1.31.1,\nCPUExecutionProvider"
    cells = dict(zip(headings, table.cells(judgements[0], reference), strict=True))
    assert cells["diff"] == cells["same top-1 %"] == cells["max logit diff"] == ""
    assert cells["top-1 %"] == "100.00"


def test_a_batch_that_is_not_1_stands_beside_its_latency(judgements: list[Judgement]) -> None:
    file = judgements[0].rows[1]
    assert file.speed
    of_24 = dataclasses.replace(file.speed.smallest, batch=24)
    row = dataclasses.replace(file, speed=Speed(of_24, of_24, (of_24,)))
    assert table.cells(judgements[0], row)[6:8] == ["0.20 (24)", "0.24 (24)"]


@pytest.mark.parametrize("width", [120, 140])
def test_nothing_is_cut(judgements: list[Judgement], width: int) -> None:
    text = printed(judgements, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for word in ("INCONCLUSIVE", "CPUExecutionProvider", "10,000", "UNUSABLE", "99.40", "-0.60"):
        assert word in text


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_numbers_and_verdicts_are_whole_at_any_width(
    trained: Trained,
    folder: ModelFolder,
    judged_data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    width: int,
) -> None:
    reference, options = Reference.of_model(trained), Options(seconds=0.01)
    cpu = torch.device("cpu")
    judgement = judge(reference, folder.exported(), judged_data, cpu, options, images=300)
    printing = partial(show, table.table([judgement]), [], {}, None, 140)
    lines = lines_in_terminal(monkeypatch, capsys, width, printing)
    for row in to_json(judgement)["rows"]:
        first = row["latency"][0]["latency"]
        words = [f"{100 * row['accuracy']:.2f}", row["verdict"]]
        digits = 2 if first["p50"] >= 0.1 else 3
        words += [f"{first[key]:.{digits}f}" for key in ("p50", "p99")]
        if row["verdict"] != "REFERENCE":
            words += [f"{row['difference_points']:+.2f}", f"{100 * row['same_top1']:.2f}"]
            words.append(f"{row['largest_logit_difference']:.2g}")
        speeds = [[f"{t['images_per_second']:,.0f}", f"({t['batch']})"] for t in row["latency"]]
        assert any({*words, *speed} <= set(line) for speed in speeds for line in lines), lines


def test_at_80_columns_names_are_folded_not_cut(judgements: list[Judgement]) -> None:
    text = printed(judgements, 80)
    assert "…" not in text


def test_names_are_no_markup(make_judgement: MakeJudgement, small_data: Dataset) -> None:
    files = dict.fromkeys(("models/a/[red]b.onnx", "[c].onnx"), small_data.test.labels)
    text = printed([make_judgement(files, unusable={"[bold]d.onnx": "broken"})], 140)
    for name in ("[red]b.onnx", "[c].onnx", "[bold]d.onnx"):
        assert name in text


def test_notes(judgements: list[Judgement]) -> None:
    conditions, *remarks = table.notes(judgements)
    assert "500 test images of synthetic" in conditions
    assert "Some CPU, 2 threads" in conditions
    assert "onnxruntime-gpu 1.31.1" in conditions
    inconclusive, fail, unusable = remarks
    assert inconclusive.startswith("mobilenet_v3_small.fp16.onnx: INCONCLUSIVE: 3 images lost")
    needed = judgements[0].rows[1].comparison
    assert needed
    there = "images would tell every second time, and there are 500"
    assert f"{needed.images_needed:,} {there}" in inconclusive
    upper = 100 * needed.upper
    said = inconclusive.rpartition("; it would pass with --max-drop ")[2]
    enough = float(said.split("; `cifar-deploy layers")[0])  # which is told where the files are
    assert upper <= enough < upper + 0.01
    least = math.ceil(1000 * upper) / 1000
    assert f"; the loss is at most {least:.3f} points (95 %), the margin 1; " in inconclusive
    assert fail.startswith("simple_cnn.fp32.onnx: FAIL: 500 images lost and 0 gained")
    assert unusable == "cut.onnx: cut.onnx is truncated; export it again"


@pytest.mark.parametrize(("lost", "whole", "told"), [(3, True, 1), (6, True, 0), (3, False, 0)])
def test_what_it_would_pass_with_is_told_where_no_more_images_are_to_be_had(
    make_judgement: MakeJudgement, small_data: Dataset, lost: int, whole: bool, told: int
) -> None:
    answers = small_data.test.labels.copy()
    answers[:lost] = (answers[:lost] + 1) % 10
    judgement = make_judgement({"some.onnx": answers})
    judgement.facts["data"]["whole_test_set"] = whole
    row = judgement.rows[1]
    assert row.verdict == INCONCLUSIVE  # of 500 images 6 are over the margin of 1 point
    assert table.evidence(judgement, row).count("--max-drop") == told


def test_the_quickest_of_several_proved_files_is_named(
    make_judgement: MakeJudgement, small_data: Dataset
) -> None:
    labels = small_data.test.labels
    judgement = make_judgement(dict.fromkeys(("a.onnx", "b.onnx", "c.onnx"), labels))
    assert judgement.rows[1].speed
    slow, quick, _ = judgement.rows[1:]
    speed = judgement.rows[1].speed
    smallest = dataclasses.replace(
        speed.smallest, latency=dataclasses.replace(speed.smallest.latency, p50=0.05)
    )
    quick = dataclasses.replace(
        quick, bytes=2_000_000, speed=dataclasses.replace(speed, smallest=smallest)
    )
    best = dataclasses.replace(speed.best, images_per_second=20_000.0)
    slow = dataclasses.replace(slow, bytes=3_000_000, speed=dataclasses.replace(speed, best=best))
    failed = make_judgement({"c.onnx": (labels + 1) % 10}).rows[1]
    wrong = dataclasses.replace(failed, speed=dataclasses.replace(speed, smallest=smallest))

    def firsts(*files: Judged) -> str:
        rows = (judgement.rows[0], *files)
        said = table.notes([dataclasses.replace(judgement, rows=rows)])
        (line,) = [one for one in said if "Of the proved files" in one]
        return line

    assert firsts(slow, quick, wrong) == (
        "Of the proved files b.onnx has the lowest latency, 0.05 ms of batch 1, and the fewest "
        f"bytes, 2 MB; a.onnx has the most images/s within 2 %, 20,000 in batches of {best.batch}."
    )
    # As the README has it: the quickest is quicker in large batches, too, and another one smaller.
    assert quick.speed
    quick = dataclasses.replace(
        quick, bytes=26_000_000, speed=dataclasses.replace(quick.speed, best=best)
    )
    slow = dataclasses.replace(slow, bytes=13_100_000, speed=speed)
    both = (
        "Of the proved files b.onnx has the lowest latency, 0.05 ms of batch 1, and the most "
        f"images/s within 2 %, 20,000 in batches of {best.batch}"
    )
    assert firsts(slow, quick) == f"{both}; a.onnx has the fewest bytes, 13.1 MB."
    # One that is all of it, and three of which each is something.
    slow, other = (dataclasses.replace(slow, bytes=size) for size in (27_000_000, 28_000_000))
    all_of_it = f"{both.replace(', and', ',')}, and the fewest bytes, 26 MB."
    assert firsts(slow, quick) == all_of_it
    other = dataclasses.replace(other, file="c.onnx", speed=dataclasses.replace(speed, best=best))
    small = dataclasses.replace(slow, bytes=1_000_000)
    quick = dataclasses.replace(quick, speed=dataclasses.replace(speed, smallest=smallest))
    assert firsts(small, quick, other) == (
        "Of the proved files b.onnx has the lowest latency, 0.05 ms of batch 1; c.onnx has the "
        f"most images/s within 2 %, 20,000 in batches of {best.batch}; a.onnx has the fewest "
        "bytes, 1 MB."
    )
    alone = table.notes([make_judgement({"a.onnx": labels})])
    assert not any("Of the proved files" in line for line in alone)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.0123"), (2.5064, "2.51"), (99.94, "99.9"), (99.96, "100"), (1_812.6, "1,813")],
)
def test_milliseconds(value: float, text: str) -> None:
    assert table.milliseconds(value) == f"{text} ms"


def test_times_are_explained_only_where_there_are_some(
    make_judgement: MakeJudgement, small_data: Dataset
) -> None:
    judgement = make_judgement({"a.onnx": small_data.test.labels})
    assert "p50, p99" in table.notes([judgement])[0]
    rows = tuple(dataclasses.replace(row, speed=None) for row in judgement.rows)
    assert "p50" not in table.notes([dataclasses.replace(judgement, rows=rows)])[0]


def test_other_data_is_told(make_judgement: MakeJudgement, small_data: Dataset) -> None:
    judgement = make_judgement({"a.onnx": small_data.test.labels})
    data = judgement.facts["data"]
    assert len(table.notes([judgement])) == 1
    data["same_as_training"] = False
    assert "other training images, and has these test images" in table.notes([judgement])[1]
    data["verified"] = "official: every checksum matches"
    assert "another copy of the data" in table.notes([judgement])[1]
    data["test_set_of_training"] = False
    assert table.notes([judgement])[1] == (
        "simple_cnn: the images are not those it was trained on: it may have seen some of these "
        "test images, and its accuracy here may be too high."
    )


def test_what_disturbed_the_times_is_told_once(judgements: list[Judgement]) -> None:
    for judgement in judgements:
        judgement.facts["remarks"].append("the card was throttled: power limit (9 % ...)")
    assert [line for line in table.notes(judgements) if "throttled" in line] == [
        "the card was throttled: power limit (9 % ...)."
    ]


def test_what_disturbed_several_models_is_told_with_the_highest_percentage(
    judgements: list[Judgement],
) -> None:
    busy = "the processor was busy: others used {} % of it"
    for judgement, share in zip(judgements, (9, 34), strict=True):
        judgement.facts["remarks"] += [busy.format(share), "the clocks were chosen"]
    said = [line for line in table.notes(judgements) if "busy" in line or "clocks" in line]
    assert said == [f"{busy.format(34)}, with one of the models.", "the clocks were chosen."]


def test_a_pass_with_other_logits_is_told(
    make_judgement: MakeJudgement, small_data: Dataset
) -> None:
    judgement = make_judgement({"a.onnx": small_data.test.labels}, model="m")
    reference, row = judgement.rows
    assert row.verdict == "PASS"
    assert table.remarks([judgement]) == []
    softmax = dataclasses.replace(row, largest_difference=7.2)
    (said,) = table.remarks([dataclasses.replace(judgement, rows=(reference, softmax))])
    assert said.startswith(
        "a.onnx: its classes are the reference's, its logits differ by up to 7.2"
    )
    better = dataclasses.replace(softmax, agreement=0.75)
    (said,) = table.remarks([dataclasses.replace(judgement, rows=(reference, better))])
    assert said.startswith("a.onnx: it answers 25 % of the images otherwise, its logits differ by")
    eight = dataclasses.replace(softmax, precision="int8")  # which always has others
    assert table.remarks([dataclasses.replace(judgement, rows=(reference, eight))]) == []


def test_without_latency(make_judgement: MakeJudgement, small_data: Dataset) -> None:
    text = printed([make_judgement({"a.onnx": small_data.test.labels}, timed=False)], 140)
    assert "PASS" in line(text, "a.onnx")


def test_files_of_one_name_are_told_apart(
    make_judgement: MakeJudgement, small_data: Dataset
) -> None:
    labels = small_data.test.labels
    files = dict.fromkeys(("a/one/m.onnx", "a/two/m.onnx", "a/two/n.onnx"), labels)
    judgement = make_judgement(files, unusable={"b/two/n.onnx": "cut"})
    names = [table.cells(judgement, row)[0] for row in judgement.rows[1:]]
    assert names == ["one/m.onnx", "two/m.onnx", "a/two/n.onnx"]
    assert table.notes([judgement])[-1] == "b/two/n.onnx: cut"


def test_every_data_set_is_named(make_judgement: MakeJudgement, small_data: Dataset) -> None:
    judgements = [make_judgement({"m.onnx": small_data.test.labels}) for _ in range(3)]
    judgements[2].facts["data"] |= {"name": "garden", "images": 30}
    said = table.notes(judgements)[0]
    assert said.startswith("500 test images of synthetic, 30 test images of garden; Some CPU")


def test_each_figure_is_of_its_own(judgements: list[Judgement]) -> None:
    file = judgements[0].rows[1]
    assert file.speed
    other = dataclasses.replace(file.speed.smallest.latency, p50=9.0, p99=9.0)
    smallest = dataclasses.replace(file.speed.smallest, compute=other, end_to_end=other)
    speed = dataclasses.replace(file.speed, smallest=smallest)
    row = dataclasses.replace(file, agreement=0.5, largest_difference=0.0625, speed=speed)
    cells = table.cells(judgements[0], row)
    assert cells[2:8] == ["99.40", "-0.60", "50.00", "0.062", "0.20", "0.24"]


def test_what_is_gained_in_a_class_counts_in_its_points(
    make_judgement: MakeJudgement, small_data: Dataset
) -> None:
    labels = small_data.test.labels
    third = np.flatnonzero(labels == 3)
    theirs, ours = labels.copy(), labels.copy()
    theirs[[third[0], *np.flatnonzero(labels == 4)[:8]]] = ours[third[1:13]] = 5
    judgement = make_judgement({"some.onnx": ours})
    reference, row = judgement.rows
    row = dataclasses.replace(row, comparison=compare(theirs == labels, ours == labels, 0.01))
    reference = dataclasses.replace(reference, predictions=theirs)
    judgement = dataclasses.replace(judgement, rows=(reference, row))
    (said,) = (line for line in table.remarks([judgement]) if "loses most in one class" in line)
    assert f"{100 * 11 / len(third):.2g} points of {len(third)}" in said
    assert "(12 lost, 1 gained)" in said


def test_the_lowest_latency_is_of_the_smallest_batch_and_the_most_images_of_the_best(
    make_judgement: MakeJudgement, small_data: Dataset
) -> None:
    judgement = make_judgement(dict.fromkeys(("a.onnx", "b.onnx"), small_data.test.labels))
    reference, one, eight = judgement.rows
    assert one.speed
    assert eight.speed
    fast = dataclasses.replace(one.speed.smallest.latency, p50=0.01)
    smallest = dataclasses.replace(
        eight.speed.smallest, batch=8, latency=fast, images_per_second=1e6
    )
    speed = dataclasses.replace(eight.speed, smallest=smallest)
    rows = (
        dataclasses.replace(reference, speed=None),
        one,
        dataclasses.replace(eight, speed=speed),
    )
    said = table.notes([dataclasses.replace(judgement, rows=rows)])[1]
    assert said.startswith("Of the proved files a.onnx has the lowest latency, 0.2 ms of batch 1, ")
    most = f"{one.speed.best.images_per_second:,.0f}"
    assert f" of batch 1, the most images/s within 2 %, {most} in batches of " in said


def test_what_was_put_around_a_file_or_not_timed_is_told(
    make_judgement: MakeJudgement, small_data: Dataset
) -> None:
    judgement = make_judgement({"a.onnx": small_data.test.labels})
    reference, row = judgement.rows
    row = dataclasses.replace(row, addition="takes float32: here mean 0", untimed="no batch 32")
    reference = dataclasses.replace(reference, addition="gives float16: here a cast")
    said = table.remarks([dataclasses.replace(judgement, rows=(reference, row))])
    assert "a.onnx takes float32: here mean 0." in said
    assert "a.onnx: no batch 32." in said
    assert f"{judgement.reference} gives float16: here a cast." in said
