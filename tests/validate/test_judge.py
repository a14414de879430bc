"""A trained network and its exported files, judged as `validate` judges them."""

import copy
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from judgements import MakeJudgement, mistaken, mistakes
from onnx import numpy_helper

from cifar_deploy import watch
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.disk import sha256_of
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.load import OPENVINO
from cifar_deploy.runtimes.protocol import Logits, unanswered
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.store import ModelFolder, proof_path, write_manifest
from cifar_deploy.validate import proof, table
from cifar_deploy.validate.judge import Options, Reference, _largest_difference, judge
from cifar_deploy.validate.judgement import REFERENCE, UNUSABLE, Judgement, to_json
from cifar_deploy.validate.noninferiority import FAIL, INCONCLUSIVE, PASS, compare

Damage = Callable[[Path, Path], Path]
CPU = torch.device("cpu")
UNTIMED = Options(seconds=0)


def judged(
    trained: Trained,
    files: list[Path],
    data: Dataset,
    options: Options = UNTIMED,
    images: int | None = None,
) -> Judgement:
    return judge(Reference.of_model(trained), files, data, CPU, options, images)


def strict(value: object) -> object:
    """`value` through JSON, which has neither NaN nor infinity."""
    return json.loads(json.dumps(value, allow_nan=False))


def test_exported_files_pass(trained: Trained, folder: ModelFolder, judged_data: Dataset) -> None:
    said: list[str] = []
    files = folder.exported()
    judgement = judge(
        Reference.of_model(trained), files, judged_data, CPU, UNTIMED, say=said.append
    )
    reference, fp16, fp32 = judgement.rows
    assert judgement.passed
    assert not judgement.unusable
    assert (reference.verdict, fp16.verdict, fp32.verdict) == (REFERENCE, PASS, PASS)
    assert [Path(row.file) for row in (fp16, fp32)] == files
    assert (fp16.precision, fp32.precision) == ("fp16", "fp32")
    assert {row.provider for row in (fp16, fp32)} == {"CPUExecutionProvider"}
    assert reference.provider == "CPU"
    # The same test set that the training ended with, through the same graph.
    assert reference.accuracy == trained.card["test_accuracy"] > 0.3
    for row in (fp16, fp32):
        assert row.comparison
        assert row.comparison.margin == {"fp32": 0.0005, "fp16": 0.001}[row.precision]
        assert row.bytes == Path(row.file).stat().st_size
        assert row.accuracy == np.mean(row.predictions == judgement.split.labels)
        assert row.agreement == np.mean(row.predictions == reference.predictions)
        assert row.largest_difference == np.abs(row.logits - reference.logits).max()
        differ = judgement.disagreements(row)
        assert len(differ) == round((1 - row.agreement) * len(judgement.split))
        assert (row.predictions[differ] != reference.predictions[differ]).all()
    assert fp32.largest_difference < 1e-3 < fp16.largest_difference < 1
    assert any(files[0].name in line for line in said)


def test_a_damaged_file_fails(
    trained: Trained, folder: ModelFolder, judged_data: Dataset, damage: Damage, tmp_path: Path
) -> None:
    wrong = damage(folder.onnx("fp32"), tmp_path / "wrong.onnx")
    judgement = judged(trained, [folder.onnx("fp32"), wrong], judged_data)
    assert [row.verdict for row in judgement.rows] == [REFERENCE, PASS, FAIL]
    assert not judgement.passed
    comparison = judgement.rows[2].comparison
    assert comparison
    assert comparison.difference < -0.1
    assert comparison.images_needed is None


def test_a_truncated_file_is_told_and_the_rest_judged(
    trained: Trained, folder: ModelFolder, judged_data: Dataset, tmp_path: Path
) -> None:
    whole = folder.onnx("fp32")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole.read_bytes()[:-5_000])
    changed = tmp_path / "changed.onnx"
    shutil.copy(whole, changed)
    write_manifest(changed, {})
    changed.write_bytes(changed.read_bytes() + b"\0")
    absent = tmp_path / "absent.onnx"
    judgement = judged(trained, [cut, changed, absent, whole], judged_data, images=200)
    assert [row.file for row in judgement.rows[1:]] == [str(whole)]
    assert [file.file for file in judgement.unusable] == [str(cut), str(changed), str(absent)]
    for file, said in zip(judgement.unusable, ("truncated", "manifest", "No such"), strict=True):
        assert file.verdict == UNUSABLE
        assert said in file.reason
        assert file.file in file.reason
    assert not judgement.passed
    known = [(row["precision"], row["bytes"]) for row in to_json(judgement)["rows"][2:]]
    assert known == [(None, cut.stat().st_size), (None, changed.stat().st_size), (None, None)]
    shutil.copy(folder.onnx("fp16"), changed)  # whole, but not what its manifest speaks of
    (row,) = to_json(judged(trained, [changed], judged_data, images=20))["rows"][1:]
    assert (row["precision"], row["bytes"]) == ("fp16", changed.stat().st_size)


def test_a_file_with_other_classes_is_unusable(
    trained: Trained, folder: ModelFolder, judged_data: Dataset
) -> None:
    fewer = dataclasses.replace(trained, network=torch.nn.Sequential(*trained.network, Three()))
    judgement = judged(fewer, [folder.onnx("fp32")], judged_data, images=50)
    assert [file.file for file in judgement.unusable] == [str(folder.onnx("fp32"))]
    assert "10 classes" in judgement.unusable[0].reason
    (row,) = to_json(judgement)["rows"][1:]
    assert row["runtime"].startswith("ONNX Runtime ")
    assert (row["precision"], row["bytes"]) == ("fp32", folder.onnx("fp32").stat().st_size)


class Three(torch.nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, :3]


def test_no_file_is_no_pass(trained: Trained, judged_data: Dataset) -> None:
    assert not judged(trained, [], judged_data, images=50).passed


def test_other_classes_are_refused(
    trained: Trained, folder: ModelFolder, judged_data: Dataset
) -> None:
    other = dataclasses.replace(judged_data, classes=(*judged_data.classes[:-1], "zebra"))
    with pytest.raises(UserError, match="zebra"):
        judged(trained, folder.exported(), other)


def test_few_images_are_inconclusive_with_how_many_would_do(
    trained: Trained, folder: ModelFolder, judged_data: Dataset
) -> None:
    judgement = judged(trained, [folder.onnx("fp32")], judged_data, images=300)
    row = judgement.rows[1]
    assert len(judgement.split) == judgement.facts["data"]["images"] == len(row.predictions) == 300
    assert row.verdict == INCONCLUSIVE
    assert row.comparison
    assert row.comparison.images_needed
    assert row.comparison.images_needed > 300
    assert not judgement.passed


@pytest.mark.parametrize(("max_drop", "verdict"), [(5.0, PASS), (0.5, INCONCLUSIVE)])
def test_max_drop_is_the_margin(
    trained: Trained, folder: ModelFolder, judged_data: Dataset, max_drop: float, verdict: str
) -> None:
    options = Options(max_drop=max_drop, seconds=0)
    row = judged(trained, [folder.onnx("fp16")], judged_data, options, images=300).rows[1]
    assert row.comparison
    assert row.comparison.margin == pytest.approx(max_drop / 100)
    assert row.verdict == verdict


def test_max_drop_of_everything_passes_a_damaged_file(
    trained: Trained, folder: ModelFolder, judged_data: Dataset, damage: Damage, tmp_path: Path
) -> None:
    wrong = damage(folder.onnx("fp32"), tmp_path / "wrong.onnx")
    options = Options(max_drop=100, seconds=0)
    assert judged(trained, [wrong], judged_data, options, images=300).passed


def test_json(
    trained: Trained, folder: ModelFolder, judged_data: Dataset, damage: Damage, tmp_path: Path
) -> None:
    wrong = damage(folder.onnx("fp32"), tmp_path / "wrong.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(b"no onnx")
    files = [folder.onnx("fp32"), wrong, cut]
    judgement = judged(trained, files, judged_data, Options(seconds=0.02), images=600)
    value = to_json(judgement)
    assert strict(value) == value
    assert (value["model"], value["passed"]) == ("simple_cnn", False)
    assert value["data"]["sha256"] == judged_data.sha256
    assert value["data"]["same_as_training"] is True
    assert value["data"]["images"] == 600
    assert value["weights_sha256"] == trained.card["weights"]["sha256"]
    assert value["threads"] == torch.get_num_threads()
    assert value["versions"]["torch"]
    assert value["device"]
    reference, exact, worse, unusable = value["rows"]
    assert reference["verdict"] == REFERENCE
    assert (exact["verdict"], worse["verdict"]) == (INCONCLUSIVE, FAIL)
    assert exact["images_needed"] > 600
    assert "images_needed" not in worse
    right = [row.predictions == judgement.split.labels for row in judgement.rows]
    comparison = compare(right[0], right[2], 0.0005)
    assert worse["upper_bound_of_loss_points"] == 100 * comparison.upper
    assert worse["difference_points"] == 100 * comparison.difference
    assert worse["margin_points"] == pytest.approx(0.05)
    assert (worse["lost"], worse["gained"]) == (comparison.lost, comparison.gained)
    assert worse["accuracy"] == right[2].mean()
    assert worse["same_top1"] < 1
    for row in (reference, exact, worse):
        assert row["bytes"] > 0
        assert [timing["batch"] for timing in row["latency"]][:2] == [1, 8]
        assert all(
            timing["latency"]["p50"] <= timing["latency"]["p99"] for timing in row["latency"]
        )
        assert all(timing["images_per_second"] > 0 for timing in row["latency"])
    assert unusable["file"] == str(cut)
    assert unusable["verdict"] == UNUSABLE
    assert str(cut) in unusable["reason"]
    assert [unusable[key] for key in ("runtime", "precision", "bytes")] == [None, None, 7]


def test_json_where_a_logit_is_not_finite(
    trained: Trained, folder: ModelFolder, judged_data: Dataset
) -> None:
    judgement = judged(trained, [folder.onnx("fp32")], judged_data, images=50)
    reference, row = judgement.rows
    for value in (float("nan"), float("inf")):
        broken = dataclasses.replace(row, largest_difference=value)
        rows = to_json(dataclasses.replace(judgement, rows=(reference, broken)))["rows"]
        assert rows[1]["largest_logit_difference"] is None
        strict(rows)


def test_latency_may_be_left_out(
    trained: Trained, folder: ModelFolder, judged_data: Dataset
) -> None:
    judgement = judged(trained, [folder.onnx("fp32")], judged_data, images=50)
    assert all(row.speed is None for row in judgement.rows)
    assert all("latency" not in row for row in to_json(judgement)["rows"])


def test_who_else_used_the_processor_while_it_was_timed_is_told(
    trained: Trained,
    folder: ModelFolder,
    judged_data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings = iter([(0.0, 0.0, 0.0), (20.0, 18.0, 8.0)] * 2)
    monkeypatch.setattr(watch, "_processor_times", lambda: next(readings))
    files = [folder.onnx("fp32")]
    timed = judged(trained, files, judged_data, Options(seconds=0.01), images=20)
    assert to_json(timed)["remarks"] == ["the processor was busy: others used 50 % of it"]
    untimed = judged(trained, files, judged_data, Options(seconds=0.0), images=20)
    assert to_json(untimed)["remarks"] == []


@pytest.mark.gpu
def test_what_the_card_did_meanwhile_stands_in_the_json(
    trained: Trained, folder: ModelFolder, judged_data: Dataset
) -> None:
    cuda = torch.device("cuda", 0)
    options = Options(seconds=0.2)
    value = to_json(judge(Reference.of_model(trained), [], judged_data, cuda, options, images=64))
    assert value["gpu"]["name"] == torch.cuda.get_device_name(0)
    assert value["rows"][0]["card"]["clock_mhz"]["max"] > 0


def bent(source: Path, target: Path, value: float) -> Path:
    """A copy of an ONNX file in which one weight is `value`."""
    model = onnx.load(source)
    tensor = model.graph.initializer[0]
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, target)
    return target


def test_what_is_too_small_for_fp16_never_passes_on_a_cpu(
    exported_cnn: Path, small_data: Dataset, tmp_path: Path
) -> None:
    """Its numbers sink in the middle, and the CPU, which computes it in fp32, has them again."""
    trained = weights.load(ModelFolder(exported_cnn))
    logits = PyTorch(trained, CPU).logits(small_data.test.images)
    known = dataclasses.replace(small_data.test, labels=logits.argmax(1))
    data = dataclasses.replace(small_data, test=known, classes=trained.classes)
    model = onnx.load(exported_cnn / "simple_cnn.fp16.onnx")
    factors = {"0": (-12, -12), "3": (-12, -24), "7": (12, -12), "9": (12, 0)}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer, (weight, bias) in factors.items():
        for part, power in (("weight", weight), ("bias", bias)):
            tensor = tensors[f"network.{layer}.{part}"]
            array = (numpy_helper.to_array(tensor) * 2.0**power).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    sunken = tmp_path / "sunken.onnx"
    onnx.save(model, sunken)
    sound = exported_cnn / "simple_cnn.fp16.onnx"
    judgement = judged(trained, [sound, sunken], data)
    assert [row.file for row in judgement.rows[1:]] == [str(sound)]
    (row,) = judgement.unusable
    assert re.search(r"gets \d+ of 128 images right, and the reference 128, where fp16", row.reason)
    assert "--max-drop 0.1` keeps layers in fp32" in row.reason


def test_what_answers_with_no_number_never_passes(
    trained: Trained, folder: ModelFolder, judged_data: Dataset, tmp_path: Path
) -> None:
    nan = bent(folder.onnx("fp32"), tmp_path / "nan.onnx", float("nan"))
    judgement = judged(trained, [nan], judged_data, images=50)
    (row,) = judgement.unusable
    assert "no number for an answer to 50 of 50 images" in row.reason
    assert not judgement.passed
    broken = copy.deepcopy(trained)
    with torch.no_grad():
        next(broken.network.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"^PyTorch \(reference\) has no number for an answer"):
        judged(broken, [folder.onnx("fp32")], judged_data, images=50)


def test_an_answer_that_depends_on_the_batch_is_none(
    trained: Trained, folder: ModelFolder, judged_data: Dataset, tmp_path: Path
) -> None:
    """As of a network that was exported in training mode: in large batches it hardly shows."""
    model = onnx.load(folder.onnx("fp32"))
    (answer,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["own" if name == answer.name else name for name in node.output]
    axes = numpy_helper.from_array(np.array([0]), "axes")
    model.graph.initializer.append(axes)
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["own", "axes"], ["mean"]))
    model.graph.node.append(onnx.helper.make_node("Sub", ["own", "mean"], [answer.name]))
    file = tmp_path / "dependent.onnx"
    onnx.save(model, file)
    (row,) = judged(trained, [file], judged_data, Options(seconds=0)).unusable
    assert row.ran
    assert "dependent.onnx answers otherwise in batches of 1, by up to " in row.reason


def test_infinity_is_no_answer_and_minus_infinity_rules_a_class_out() -> None:
    logits = np.zeros((4, 10), np.float32)
    logits[0, 0], logits[1, 1], logits[2, 2] = np.nan, np.inf, -np.inf
    assert unanswered(logits).sum() == 2


def test_a_class_that_both_rule_out_is_no_difference() -> None:
    reference = np.array([[1, 2, -np.inf], [0, 4, -np.inf]], np.float32)
    assert _largest_difference(reference, reference) == 0
    assert _largest_difference(3 * reference, reference) == 8
    assert _largest_difference(np.zeros_like(reference), reference) == np.inf


@pytest.mark.parametrize("wrong", [0, 1, 8])
def test_every_range_of_batches_is_looked_at(
    trained: Trained,
    folder: ModelFolder,
    judged_data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    wrong: int,
) -> None:
    exact = PyTorch(trained, CPU)

    class Engine:
        """Two profiles, one of which answers otherwise in its smallest batch."""

        runtime, provider, device, precision, addition = "R 1", "P", "cpu", "bf16", ""
        batches = (range(1, 2), range(8, 1_025))

        def logits(self, images: Images) -> Logits:
            return exact.logits(images) + np.float32(len(images) == wrong) * np.arange(10)

    monkeypatch.setattr("cifar_deploy.validate.judge.open_runtime", lambda *_, **how: Engine())
    judgement = judged(trained, [folder.onnx("fp32")], judged_data)
    if wrong:
        assert (
            f"answers otherwise in batches of {wrong}, by up to 9" in judgement.unusable[0].reason
        )
    else:
        assert judgement.rows[1].comparison
        assert judgement.rows[1].comparison.margin == 0.001  # of a precision without its own


def test_a_release_is_that_of_the_training_only_where_that_was_one(
    trained: Trained, judged_data: Dataset
) -> None:
    official = dataclasses.replace(judged_data, verified="official: every checksum matches")
    for verified, same in (("generated", False), (official.verified, True)):
        other = dict.fromkeys(("sha256", "test_sha256"), "0" * 64)
        trained.card["data"] |= {**other, "verified": verified}
        facts = judged(trained, [], official, images=20).facts["data"]
        assert (facts["same_as_training"], facts["test_set_of_training"]) == (False, same)


def test_openvino_may_judge(trained: Trained, folder: ModelFolder, judged_data: Dataset) -> None:
    pytest.importorskip("openvino")
    judgement = judged(trained, folder.exported(), judged_data, Options(seconds=0, onnx=OPENVINO))
    assert judgement.passed
    assert all(row.runtime.startswith("OpenVINO ") for row in judgement.rows[1:])


# --- files of other programs --------------------------------------------------------------------


def test_a_file_that_normalises_nothing_is_judged_as_the_reference_sees(
    trained: Trained, floats: Path, judged_data: Dataset
) -> None:
    judgement = judged(trained, [floats], judged_data)
    assert judgement.passed
    row = judgement.rows[1]
    assert row.largest_difference < 1e-3
    said = "floats.onnx takes float32 [batch, 3, 32, 32] and gives float32: here mean "
    assert any(line.startswith(said) for line in table.remarks([judgement]))
    rows: Any = to_json(judgement)["rows"]
    assert rows[1]["addition"] == row.addition


def test_a_file_may_be_the_reference(
    folder: ModelFolder, floats: Path, judged_data: Dataset, damage: Damage, tmp_path: Path
) -> None:
    source, fp16 = folder.onnx("fp32"), folder.onnx("fp16")
    wrong = damage(source, tmp_path / "wrong.onnx")
    own = judge(Reference.of_file(source, judged_data), [fp16, wrong], judged_data, CPU, UNTIMED)
    # Its pixels are normalised as the training images are: so were those of this network.
    others = judge(Reference.of_file(floats, judged_data), [fp16, wrong], judged_data, CPU, UNTIMED)
    for judgement, file in ((own, source), (others, floats)):
        first, *rows = judgement.rows
        assert (judgement.reference, first.file, first.verdict) == (file.name, str(file), REFERENCE)
        assert [row.verdict for row in rows] == [PASS, FAIL]
        assert judgement.facts["reference_sha256"] == sha256_of(file)
        assert not judgement.facts["data"]["test_set_of_training"]
        assert proof.write(judgement, {fp16: sha256_of(fp16)}) == []
    assert own.rows[1].largest_difference == pytest.approx(
        others.rows[1].largest_difference, abs=1e-3
    )
    said = table.remarks([others])
    assert said[0].startswith("floats.onnx takes float32 [batch, 3, 32, 32] and gives float32: ")
    assert not any("it was trained on" in line for line in said)


def test_a_reference_of_the_same_name_is_told_apart(
    folder: ModelFolder, judged_data: Dataset, damage: Damage, tmp_path: Path
) -> None:
    before, after = tmp_path / "old" / "m.onnx", tmp_path / "new one" / "m.onnx"
    for path in (before, after):
        path.parent.mkdir()
        shutil.copy(folder.onnx("fp32"), path)
    damage(before, after)
    judgement = judge(Reference.of_file(before, judged_data), [after], judged_data, CPU, UNTIMED)
    assert (judgement.reference, judgement.label(str(after))) == ("old/m.onnx", "new one/m.onnx")
    (said,) = table.remarks([judgement])
    assert said.startswith("new one/m.onnx: FAIL: ")
    command = f"cifar-deploy layers '{after}' --reference {before}"
    assert said.endswith(f"; `{command}` shows where")


def test_a_file_that_failed_is_to_be_looked_at_where_that_is_possible(
    folder: ModelFolder, judged_data: Dataset, damage: Damage, tmp_path: Path
) -> None:
    def said(wrong: Path) -> str:
        trained = weights.load(folder)
        judgement = judge(Reference.of_model(trained), [wrong], judged_data, CPU, UNTIMED)
        (remark,) = table.remarks([judgement])
        return remark

    own = tmp_path / "simple_cnn"
    shutil.copytree(folder.path, own)
    wrong = damage(folder.onnx("fp32"), own / "wrong.onnx")
    assert said(wrong).endswith(f"; `cifar-deploy layers {wrong}` shows where")
    # Nothing is looked for where nothing was lost and only the images are too few.
    few = dataclasses.replace(judged_data, test=judged_data.test.first(100))
    right = judge(
        Reference.of_model(weights.load(folder)), [own / "simple_cnn.fp32.onnx"], few, CPU, UNTIMED
    )
    assert right.rows[1].verdict == INCONCLUSIVE
    assert not any("cifar-deploy layers" in remark for remark in table.remarks([right]))
    (own / "simple_cnn.fp32.onnx").unlink()
    assert "cifar-deploy layers" not in said(wrong)


@pytest.mark.parametrize(
    ("network", "comparable"), [("simple_cnn", True), ("cnn9", False), (None, True)]
)
def test_only_files_of_one_network_have_layers_to_compare(
    folder: ModelFolder,
    judged_data: Dataset,
    damage: Damage,
    tmp_path: Path,
    network: str | None,
    comparable: bool,
) -> None:
    few = dataclasses.replace(judged_data, test=judged_data.test.first(500))
    wrong = damage(folder.onnx("fp32"), tmp_path / "wrong.onnx")
    model = onnx.load(folder.onnx("fp32"))
    (said,) = (entry for entry in model.metadata_props if entry.key == "network")
    assert said.value == "simple_cnn"
    if network:
        said.value = network
    else:  # another program's file
        model.metadata_props.remove(said)
    onnx.save(model, before := tmp_path / "before.onnx")
    judgement = judge(Reference.of_file(before, few), [wrong], few, CPU, UNTIMED)
    (remark,) = table.remarks([judgement])
    assert remark.startswith("wrong.onnx: FAIL: ")
    assert ("cifar-deploy layers" in remark) == comparable


def test_the_surest_mistakes_are_named(make_judgement: MakeJudgement, small_data: Dataset) -> None:
    labels, names = small_data.test.labels, small_data.classes
    logits = mistakes(labels, 30)
    found: Any = strict(to_json(mistaken(make_judgement({}), logits)))
    shares, answers = torch.from_numpy(logits).double().softmax(1).max(1)
    order = [i for i in (-shares).argsort().tolist() if answers[i] != labels[i]]
    assert (
        found["mistakes"]
        == [
            {
                "index": i,
                "file": None,  # it is a generated data set's
                "truth": names[labels[i]],
                "answer": names[answers[i]],
                "probability": pytest.approx(float(shares[i])),
            }
            for i in order[:24]
        ]
    )
    assert len(order) == 30
    more = dataclasses.replace(mistaken(make_judgement({}), logits), named=28)
    assert [mistake.index for mistake in more.mistakes] == order[:28]
    assert to_json(make_judgement({}))["mistakes"] == []
    none = np.full_like(logits, -np.inf)
    found = strict(to_json(mistaken(make_judgement({}), none)))
    assert [one["probability"] for one in found["mistakes"]] == pytest.approx([0.1] * 24)


def test_json_has_the_confusion(make_judgement: MakeJudgement, small_data: Dataset) -> None:
    labels = small_data.test.labels
    answers = np.where(np.arange(len(labels)) % 5, labels, (labels * labels + 3) % 10)
    found: Any = strict(to_json(make_judgement({"a.onnx": answers}, unusable={"b.onnx": "cut"})))
    reference, file, unusable = found["rows"]
    expected = [[0] * 10 for _ in range(10)]
    for truth, answer in zip(labels.tolist(), answers.tolist(), strict=True):
        expected[truth][answer] += 1
    assert file["confusion"] == expected != np.transpose(expected).tolist()
    assert reference["confusion"] == np.diag(np.bincount(labels)).tolist()
    for row in (reference, file):
        right = [row["confusion"][i][i] for i in range(10)]
        counts = [[n, sum(answered)] for n, answered in zip(right, row["confusion"], strict=True)]
        assert counts == list(row["classes"].values())
    assert "confusion" not in unusable
    for count, kept in ((200, True), (201, False)):
        many = tuple(f"class {i}" for i in range(count))
        rows = to_json(make_judgement({"a.onnx": answers}, classes=many))["rows"]
        assert [len(row.get("confusion", ())) for row in rows] == 2 * [count if kept else 0]


def test_class_names_that_are_none_are_the_data_sets(
    folder: ModelFolder, judged_data: Dataset, tmp_path: Path
) -> None:
    for names in (list(range(10)), ["only", "three", "names"], "airplane"):
        model = onnx.load(folder.onnx("fp32"))
        for entry in model.metadata_props:
            if entry.key == "classes":
                entry.value = json.dumps(names)
        onnx.save(model, path := tmp_path / "named.onnx")
        assert Reference.of_file(path, judged_data).classes == judged_data.classes


def test_a_reference_of_other_classes_is_refused(
    folder: ModelFolder, floats: Path, judged_data: Dataset
) -> None:
    others = dataclasses.replace(judged_data, classes=(*judged_data.classes[:9], "other"))
    with pytest.raises(UserError, match="was trained on the classes"):
        judge(Reference.of_file(folder.onnx("fp32"), others), [], others, CPU, UNTIMED)
    fewer = dataclasses.replace(judged_data, classes=judged_data.classes[:9])
    with pytest.raises(UserError, match=r"answers with 10 classes, and .* has 9; .* --data-dir"):
        Reference.of_file(floats, fewer)


def test_another_normalisation_is_anothers(
    trained: Trained, folder: ModelFolder, floats: Path, judged_data: Dataset
) -> None:
    options = Options(seconds=0, mean=[0.9, 0.1, 0.5], std=[0.05, 1.0, 0.3])
    judgement = judged(trained, [floats], judged_data, options)
    assert judgement.rows[1].verdict == FAIL
    assert "mean 0.9,0.1,0.5 and std 0.05,1,0.3" in judgement.rows[1].addition
    hint = "Use --mean and --std for another normalisation."
    assert hint not in table.remarks([judgement])
    assert table.remarks([judged(trained, [floats], judged_data, Options(seconds=0))]).count(hint)
    own = judged(trained, [folder.onnx("fp32")], judged_data, Options(seconds=0))
    assert hint not in table.remarks([own])


def test_what_was_put_before_a_file_is_no_proof_of_it(
    trained: Trained, folder: ModelFolder, floats: Path, judged_data: Dataset, tmp_path: Path
) -> None:
    own = shutil.copy(folder.onnx("fp32"), tmp_path / "own.onnx")
    judgement = judged(trained, [floats, own], judged_data)
    files = {file: sha256_of(file) for file in (floats, own)}
    assert proof.write(judgement, files) == [proof_path(own)]
