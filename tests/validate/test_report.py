"""The page: whole, alone, right, and harmless whatever names it is given."""

import base64
import dataclasses
import datetime
import io
import itertools
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from judgements import Answers, MakeJudgement, judgement_of, mistaken, mistakes
from PIL import Image

from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.dataset import Dataset, Images, Split
from cifar_deploy.errors import UserError
from cifar_deploy.store import ModelFolder
from cifar_deploy.validate import report
from cifar_deploy.validate.judge import Options, Reference, judge
from cifar_deploy.validate.judgement import Judgement
from cifar_deploy.validate.latency import Speed

TIME = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
VOID = {"meta", "img", "br", "hr", "link", "input"}
MINUS = "\N{MINUS SIGN}"


class Page(HTMLParser):
    """Reads a page, and fails where a tag is closed that is not open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []  # the tag around it, and the text
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    @property
    def text(self) -> str:
        return "\n".join(text for tag, text in self.texts if tag != "style")

    def all(self, tag: str, style: str = "") -> list[dict[str, str]]:
        found = (attributes for name, attributes in self.tags if name == tag)
        return [a for a in found if style in a.get("class", "").split() or not style]


def rendered(judgements: Sequence[Judgement]) -> str:
    return report.render(judgements, TIME)


def after(html: str, start: str, end: str) -> str:
    return html.partition(start)[2].partition(end)[0]


@pytest.fixture
def few_wrong(small_data: Dataset) -> Answers:
    """Right but for every fiftieth image."""
    labels = small_data.test.labels
    return np.where(np.arange(len(labels)) % 50 == 7, (labels + 1) % 10, labels)


@pytest.fixture
def judgement(make_judgement: MakeJudgement, small_data: Dataset, few_wrong: Answers) -> Judgement:
    labels = small_data.test.labels
    return make_judgement(
        {
            "models/simple_cnn/simple_cnn.fp16.onnx": few_wrong,
            "models/simple_cnn/simple_cnn.fp32.onnx": labels,
            "elsewhere/other.onnx": (labels + 1) % 10,
        },
        unusable={"models/simple_cnn/cut.onnx": "cut.onnx is truncated; export it again"},
    )


def test_the_page_needs_nothing_else(judgement: Judgement) -> None:
    html = rendered([judgement])
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "srcset", "poster", "action", "data"):
            value = attributes.get(key, "#")
            assert value.startswith(("#", "data:image/png;base64,")), value
        assert not [key for key in attributes if key.startswith("on")]
    assert not re.search(r"https?:|@import|url\(", html)
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {a["href"][1:] for a in page.all("a")} <= ids


def test_headings_skip_no_level_and_those_of_tables_say_what_they_head(
    judgement: Judgement,
) -> None:
    page = Page(rendered([judgement]))
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert max(b - a for a, b in itertools.pairwise(levels)) == 1
    assert {cell.get("scope") for cell in page.all("th")} == {"col", "row"}


def test_headings_break_as_they_are_written(judgement: Judgement) -> None:
    style = after(rendered([judgement]), "<style>", "</style>")
    assert re.search(r"\.results th \{[^}]*white-space: pre;", style)
    nowrap = re.findall(r"([^{}\n]*)\{[^}]*white-space: nowrap", style)
    assert [rule.strip() for rule in nowrap if ".results" in rule] == [".results td.number"]


def test_every_file_and_verdict(judgement: Judgement) -> None:
    html = rendered([judgement])
    table = after(html, '<table class="results">', "</table>")
    rows = [Page(f"<table>{row}</table>").text for row in re.findall(r"(?s)<tr>.*?</tr>", table)]
    expected = [
        ("simple_cnn (fp32)", "REFERENCE"),
        ("simple_cnn.fp16.onnx", "FAIL"),
        ("simple_cnn.fp32.onnx", "PASS"),
        ("other.onnx", "FAIL"),
        ("cut.onnx", "UNUSABLE"),
    ]
    assert len(rows) == 1 + len(expected)
    for row, (name, verdict) in zip(rows[1:], expected, strict=True):
        assert row.splitlines()[0] == name
        assert row.splitlines()[-1] == verdict
    assert f"{MINUS}2.00" in rows[2].splitlines()
    assert "cut.onnx is truncated; export it again" in Page(html).text


def test_the_conditions(judgement: Judgement, small_data: Dataset) -> None:
    text = Page(rendered([judgement])).text
    for said in (
        "synthetic, 500 test images (generated)",
        small_data.sha256,
        "Some CPU, 2 threads",
        "onnxruntime-gpu 1.31.1",
        "2026-01-02 03:04 UTC",
    ):
        assert said in text


def decoded(image: dict[str, str]) -> Images:
    """The pixels of an image on the page."""
    raw = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
    return np.asarray(Image.open(io.BytesIO(raw)))


def test_disagreements_are_the_right_images(
    judgement: Judgement, small_data: Dataset, few_wrong: Answers
) -> None:
    html = rendered([judgement])
    section = after(html, "<h3>Where fp16.onnx and PyTorch disagree</h3>", "<h3>")
    labels, names = small_data.test.labels, small_data.classes
    wanted = list(range(7, 500, 50))
    assert "10 of 500 images." in section
    page = Page(f"<div>{section}</div>")
    images = page.all("img")
    assert [image["alt"] for image in images] == [f"test image {i}" for i in wanted]
    for image, index in zip(images, wanted, strict=True):
        assert np.array_equal(decoded(image), small_data.test.images[index])
        caption = after(section, f"#{index}</span>", "</figcaption>")
        truth, reference, answer = re.findall(
            r">(?:true</i> |[^<>]*\">)?([a-z]+)</(?:b|span)>", caption
        )
        assert truth == reference == names[labels[index]]
        assert answer == names[few_wrong[index]]
        assert 'class="right"' in caption
        assert 'class="wrong"' in caption


def test_many_disagreements_are_counted_and_some_shown(judgement: Judgement) -> None:
    html = rendered([judgement])
    section = after(html, "<h3>Where other.onnx and PyTorch disagree</h3>", "</section>")
    assert "500 of 500 images; the first 48 are shown." in section
    assert len(Page(f"<div>{section}</div>").all("img")) == report.MOST_IMAGES == 48


def test_no_disagreement_is_said(judgement: Judgement) -> None:
    section = after(rendered([judgement]), "<h3>Where fp32.onnx and PyTorch disagree</h3>", "<h3>")
    assert "None: the same answer on every image." in section
    assert "<img" not in section


@pytest.mark.parametrize("count", [30, 5])
def test_the_surest_mistakes_are_shown(
    make_judgement: MakeJudgement, small_data: Dataset, count: int
) -> None:
    labels, names = small_data.test.labels, small_data.classes
    logits = mistakes(labels, count)
    html = rendered([mistaken(make_judgement({"a.onnx": labels}), logits)])
    section = after(html, "<h3>What PyTorch gets wrong</h3>", "<h3>")
    shown = "; the 24 of which it is most certain are shown" if count > 24 else ""
    assert f"{count} of 500 images{shown}, the most certain first." in section
    shares, answers = torch.from_numpy(logits).double().softmax(1).max(1)
    order = [i for i in (-shares).argsort().tolist() if answers[i] != labels[i]][:24]
    images = Page(f"<div>{section}</div>").all("img")
    assert [image["alt"] for image in images] == [f"test image {i}" for i in order]
    for image, index in zip(images, order, strict=True):
        assert np.array_equal(decoded(image), small_data.test.images[index])
        caption = after(section, f"#{index}</span>", "</figcaption>")
        truth, answer = names[labels[index]], names[answers[index]]
        share = f"{100 * shares[index]:.2f} %"
        assert re.findall(r">\s*([^<>\s][^<>]*)<", caption) == [
            *("true", truth, "ref", answer, "sure", share)
        ]
        assert caption.count('class="wrong"') == 1
        assert image["title"] == f"test image {index}: {truth}; PyTorch {answer} with {share}"


def test_files_are_named_where_images_have_their_own(
    make_judgement: MakeJudgement, small_data: Dataset
) -> None:
    labels = small_data.test.labels
    judgement = mistaken(make_judgement({"a.onnx": (labels + 1) % 10}), mistakes(labels, 2))
    wrong, other = np.flatnonzero(judgement.rows[0].predictions != labels).tolist()
    named = tuple(f"a&b/{i}.png" for i in range(len(labels)))
    split = dataclasses.replace(judgement.split, names=named)
    html = rendered([dataclasses.replace(judgement, split=split)])
    section = after(html, "<h3>What PyTorch gets wrong</h3>", "<h3>")
    assert f">a&amp;b/{wrong}.png<" in section
    assert f">a&amp;b/{other}.png<" in section
    assert ">a&amp;b/0.png<" in after(html, "<h3>Where a.onnx and PyTorch disagree</h3>", "<h3>")


def test_no_mistake_is_said(judgement: Judgement) -> None:
    section = after(rendered([judgement]), "<h3>What PyTorch gets wrong</h3>", "<h3>")
    assert "Nothing: the right answer to every image." in section
    assert "<img" not in section


def test_differences_by_class(judgement: Judgement, small_data: Dataset) -> None:
    chart = after(rendered([judgement]), '<div class="chart bars"', "</svg>")
    labels = small_data.test.labels
    lost = np.bincount(labels[7::50], minlength=10)
    titles = re.findall(r"<title>fp16\.onnx: (\d+) of 50 (\w+) right, the reference 50<", chart)
    assert titles == [(str(50 - n), name) for n, name in zip(lost, small_data.classes, strict=True)]
    written = re.findall(rf">([+{MINUS}][0-9.]+|0)</text>", chart)
    points = [f"{MINUS}{2 * n:.1f}" if n else "0" for n in lost.tolist()]
    assert written == [cell for value in points for cell in (value, "0", f"{MINUS}100.0")]


def test_a_class_without_images_is_said(make_judgement: MakeJudgement, small_data: Dataset) -> None:
    classes = (*small_data.classes, "zebra")
    html = rendered([make_judgement({"a.onnx": small_data.test.labels}, classes=classes)])
    assert "no images" in after(html, '<div class="chart bars"', "</svg>")


def test_confusion(judgement: Judgement, small_data: Dataset, few_wrong: Answers) -> None:
    matrices = re.findall(r'(?s)<table class="matrix">.*?</table>', rendered([judgement]))
    reference, fp16, _ = (
        [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr>.*?</tr>", matrix)]
        for matrix in matrices
    )
    assert reference[1:] == [["50" if i == j else "" for j in range(10)] for i in range(10)]
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (small_data.test.labels, few_wrong), 1)
    counts -= 50 * np.eye(10, dtype=int)
    assert fp16[1:] == [
        [f"{n:+d}".replace("-", MINUS) if n else "" for n in row] for row in counts.tolist()
    ]
    assert "No cell differs." in rendered([judgement])


def of_classes(count: int, small_data: Dataset, wrong: int = 0) -> Judgement:
    """By a reference that takes the last class but one for the last one in all its images.

    A file is right there, and wrong in `wrong` images more of the first class.
    """
    labels = np.arange(3 * count) % count
    images = np.zeros((len(labels), 32, 32, 3), np.uint8)
    classes = tuple(f"c{i}" for i in range(count))
    data = dataclasses.replace(small_data, classes=classes, test=Split(images, labels))
    answers = labels.copy()
    answers[np.flatnonzero(labels == 0)[:wrong]] = 7
    logits = np.eye(count, dtype=np.float32)[np.where(labels == count - 2, count - 1, labels)]
    return mistaken(judgement_of(data, {"a.onnx": answers}), logits)


def test_of_many_classes_the_most_frequent_confusions_are_listed(small_data: Dataset) -> None:
    html = rendered([of_classes(report.MOST_CLASSES + 1, small_data, wrong=2)])
    assert '<table class="matrix">' not in html
    reference, file, worst = (
        [
            re.findall(r"<td[^>]*>([^<]*)</td>", row)
            for row in re.findall(r"<tr><td>.*?</tr>", table)
        ]
        for table in re.findall(r'(?s)<table class="pairs">.*?</table>', html)
    )
    assert reference == [["c49", "c50", "3"]]
    assert file == [["c49", "c50", f"{MINUS}3"], ["c0", "c7", "+2"]]
    assert worst == [["c49", "0 of 3"]]
    chart = after(html, '<div class="chart bars"', "</svg>")
    titles = re.findall(r"<title>a\.onnx: (\d+) of 3 (\w+) right, the reference (\d)<", chart)
    assert titles[:3] == [("3", "c49", "0"), ("1", "c0", "3"), ("3", "c1", "3")]
    assert len(titles) == report.MOST_CLASSES
    assert "Of 51 classes the 50 that differ most." in html
    assert '<table class="matrix">' in rendered([of_classes(report.MOST_CLASSES, small_data)])


def test_a_page_of_a_thousand_classes_is_small(small_data: Dataset) -> None:
    judgement = of_classes(1_000, small_data)
    again = np.roll(judgement.rows[1].predictions, 1)  # all wrong, and no two alike
    file = dataclasses.replace(judgement.rows[1], predictions=again)
    html = rendered([dataclasses.replace(judgement, rows=(judgement.rows[0], file))])
    Page(html)
    assert len(html) < 200_000
    assert "and 951 more pairs" in html


def test_charts(judgement: Judgement) -> None:
    page = Page(rendered([judgement]))
    titles = [text for tag, text in page.texts if tag == "title"]
    latency = [title for title in titles if title.startswith("simple_cnn ")]
    assert latency == [
        "simple_cnn PyTorch: 100.00 %, 0.5 ms",
        "simple_cnn fp16.onnx: 98.00 %, 0.2 ms",
        "simple_cnn fp32.onnx: 100.00 %, 1.2 ms",
        "simple_cnn other.onnx: 0.00 %, 2.2 ms",
    ]
    sweep = [title for title in titles if ", batch " in title]
    assert len(sweep) == 4 * 3
    assert sweep[0] == "PyTorch, batch 1: 2,000 images/s (0.5 ms a call)"


def test_long_times_are_whole_numbers(judgement: Judgement) -> None:
    reference, *others = judgement.rows
    assert reference.speed
    first = reference.speed.smallest
    slow = dataclasses.replace(first, latency=dataclasses.replace(first.latency, p50=1_812.6))
    rows = (dataclasses.replace(reference, speed=Speed(slow, slow, (slow,))), *others)
    page = Page(rendered([dataclasses.replace(judgement, rows=rows)]))
    titles = [text for tag, text in page.texts if tag == "title"]
    assert "simple_cnn PyTorch: 100.00 %, 1,813 ms" in titles
    assert "PyTorch, batch 1: 2,000 images/s (1,813 ms a call)" in titles


def test_a_file_of_larger_batches_is_named_below_the_chart(judgement: Judgement) -> None:
    *others, last = judgement.rows
    assert last.speed
    first, *sweep = last.speed.sweep
    later = dataclasses.replace(last.speed, smallest=sweep[0], sweep=tuple(sweep))
    rows = (*others, dataclasses.replace(last, speed=later))
    page = Page(rendered([dataclasses.replace(judgement, rows=rows)]))
    assert first.batch == 1
    assert "Not shown, since they take no single image: " in page.text
    titles = [text for tag, text in page.texts if tag == "title"]
    assert len([title for title in titles if title.startswith("simple_cnn ")]) == 3
    assert "Not shown" not in Page(rendered([judgement])).text


def test_files_of_larger_batches_alone_have_their_chart(judgement: Judgement) -> None:
    rows = []
    for row in judgement.rows:
        assert row.speed
        later = row.speed.sweep[1:]
        speed = dataclasses.replace(row.speed, smallest=later[0], sweep=later)
        rows.append(dataclasses.replace(row, speed=speed))
    text = Page(rendered([dataclasses.replace(judgement, rows=tuple(rows))])).text
    assert "Latency was not measured." not in text
    assert "Accuracy against latency" not in text
    assert "Images a second" in text
    assert "latency of batch 1" not in text
    assert "p50, p99: latency of the batch in brackets" in text
    assert "p50, p99: latency of batch 1," in Page(rendered([judgement])).text


def test_without_latency(make_judgement: MakeJudgement, small_data: Dataset) -> None:
    html = rendered([make_judgement({"a.onnx": small_data.test.labels}, timed=False)])
    assert "Latency was not measured." in html
    assert "Images a second" not in html
    assert "latency of" not in html
    Page(html)


def test_a_model_without_a_usable_file(make_judgement: MakeJudgement) -> None:
    text = Page(rendered([make_judgement({}, unusable={"a.onnx": "it is damaged"})])).text
    assert "it is damaged" in text
    assert "disagree" not in text


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}&amp;"]
)
def test_hostile_names_are_text(
    make_judgement: MakeJudgement, small_data: Dataset, few_wrong: Answers, name: str
) -> None:
    plain = make_judgement({"a.onnx": few_wrong}, unusable={"b.onnx": "c"})
    named = make_judgement(
        {f"{name}.onnx": few_wrong},
        model=name,
        classes=(name, *small_data.classes[1:]),
        unusable={f"b{name}.onnx": name},
    )
    named.facts["device"] = named.facts["data"]["name"] = name
    plain, named = (mistaken(one, mistakes(small_data.test.labels, 30)) for one in (plain, named))
    before, page = Page(rendered([plain])), Page(rendered([named]))
    # The same elements with the same attributes, apart from their values.
    shape = [(tag, sorted(attributes)) for tag, attributes in page.tags]
    assert shape == [(tag, sorted(attributes)) for tag, attributes in before.tags]
    assert page.text.count(name) > 15


def test_seven_models_stay_small(make_judgement: MakeJudgement, small_data: Dataset) -> None:
    wrong = (small_data.test.labels + 1) % 10
    judgements = [
        make_judgement({f"m{i}.fp16.onnx": wrong, f"m{i}.fp32.onnx": wrong}, model=f"m{i}")
        for i in range(7)
    ]
    html = rendered(judgements)
    page = Page(html)
    assert len(page.all("img")) == 14 * 48
    assert [a["href"] for a in page.all("a")] == [f"#model-{i}" for i in range(1, 8)]
    assert len(html.encode()) < 3_000_000


def test_a_real_judgement(
    trained: Trained, folder: ModelFolder, judged_data: Dataset, tmp_path: Path
) -> None:
    options = Options(seconds=0.02)
    found = judge(
        Reference.of_model(trained),
        folder.exported(),
        judged_data,
        torch.device("cpu"),
        options,
        images=300,
    )
    target = tmp_path / "new" / "report.html"
    report.write(target, [found])
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    page = Page(target.read_text(encoding="utf-8"))
    for row in found.rows[1:]:
        assert Path(row.file).name in page.text
    assert page.all("circle", "s0")


def test_a_refusing_disk_is_a_user_error(judgement: Judgement, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        report.write(tmp_path / "file" / "report.html", [judgement])
