"""`cifar-deploy package`: what it writes, the same every time, and what it refuses."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gpus import supported
from processes import Answer, Refused, Run, python
from workshop import NAME, write_model

from cifar_deploy import load
from cifar_deploy.architectures import weights
from cifar_deploy.data.cifar10 import UNVERIFIED
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.device import pick
from cifar_deploy.disk import Json, read_json, sha256_of
from cifar_deploy.engines.flavour import AUTO, choose
from cifar_deploy.errors import UserError
from cifar_deploy.package import source, vectors, write
from cifar_deploy.runtimes import load as runtimes_load
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime
from cifar_deploy.store import ModelFolder, manifest_path, proof_path, read_proofs, write_manifest
from cifar_deploy.validate.judge import Options, Reference, judge

OURS = {
    *("manifest.txt", "manifest.json", "proof.json", "labels.txt", "model.onnx"),
    *("vectors/images.rgb", "vectors/logits.f32"),
    *("CMakeLists.txt", "classify.cpp", "README.md", "LICENSE", "NOTICE"),
}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def proof_of(file: Path) -> Json:
    """The only proof beside an exported file."""
    (proof,) = read_proofs(file, sha256_of(file))
    return proof


def write_proofs(file: Path, *proofs: Json) -> None:
    proof_path(file).write_text(json.dumps({"proofs": proofs}))


def entries(package: Path) -> list[tuple[str, str]]:
    lines = (package / "manifest.txt").read_text().splitlines()
    return [(key, value) for key, _, value in (line.partition(" ") for line in lines)]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- what is written ----------------------------------------------------------------------------


def test_the_cpp_package(run: Run, model: ModelFolder, dataset: Dataset) -> None:
    answer = run("package", NAME)
    assert answer.status == 0, answer
    assert "NOT PROVED" not in answer.err
    package = Path("simple_cnn-package")
    found = files(package)
    library = {name for name in found if name.startswith(("include/", "cmake/"))}
    assert found.keys() - library == OURS
    assert "include/cifar_deploy/classifier.hpp" in library
    source = model.onnx("fp32").read_bytes()
    assert found["model.onnx"] == source
    assert found["labels.txt"].decode().splitlines() == list(dataset.classes)
    manifest = json.loads(found["manifest.json"])
    assert manifest == json.loads(Path(f"{model.onnx('fp32')}.json").read_text())
    assert json.loads(found["proof.json"]) == proof_of(model.onnx("fp32"))
    assert entries(package) == [
        ("format", "1"),
        ("model", "simple_cnn"),
        ("network", "simple_cnn"),
        ("precision", "fp32"),
        ("backend", "onnx"),
        ("file", "model.onnx"),
        ("bytes", str(len(source))),
        ("sha256", sha256(source)),
        ("input", "images"),
        ("output", "logits"),
        ("height", "32"),
        ("width", "32"),
        ("classes", "10"),
        ("labels", "labels.txt"),
        ("labels_sha256", sha256(found["labels.txt"])),
        ("min_batch", "1"),
        ("max_batch", "0"),
        ("fixed_batch", "0"),
        ("vectors_from", f"ONNX Runtime {onnxruntime.__version__} CPUExecutionProvider"),
        ("vectors_count", "64"),
        (
            "vectors_sha256",
            f"{sha256(found['vectors/images.rgb'])} {sha256(found['vectors/logits.f32'])}",
        ),
        ("test_count", str(len(dataset.test))),
        ("test_right", str(round(proof_of(model.onnx("fp32"))["accuracy"] * len(dataset.test)))),
        ("test_margin", str(len(dataset.test) // 100)),  # --max-drop 1
        ("test_from", f"ONNX Runtime {onnxruntime.__version__} CPUExecutionProvider"),
        ("test_sha256", dataset.test.set_sha256),
    ]
    assert b"\r" not in found["manifest.txt"]


def test_only_what_is_proved_says_what_a_target_has_to_reach(
    run: Run, model: ModelFolder, dataset: Dataset
) -> None:
    said = "With the "

    def told(*options: str, **changed: Any) -> tuple[dict[str, str], bool]:
        path = Path(f"{model.onnx('fp32')}.proof.json")
        (proof,) = json.loads(path.read_text())["proofs"]
        path.write_text(json.dumps({"proofs": [{**proof, **changed}]}))
        shutil.rmtree("it", ignore_errors=True)
        assert run("package", NAME, "--out", "it", *options).status == 0
        found = {key: value for key, value in entries(Path("it")) if key.startswith("test_")}
        return found, said in Path("it/README.md").read_text()

    found, in_readme = told()
    assert found
    assert in_readme
    # Of 10,000 images 0.57 points are 57, though 0.57 / 100 * 10,000 is 56.99...
    data = {**proof_of(model.onnx("fp32"))["data"], "images": 10_000}
    found, _ = told(data=data, margin_points=0.57, accuracy=0.9)
    assert (found["test_margin"], found["test_right"]) == ("57", "9000")
    before = {key: value for key, value in data.items() if key != "test_set_sha256"}
    assert told(data=before) == ({}, False)  # a proof of an earlier version
    assert told("--unproved", data=data, verdict="FAIL") == ({}, False)


def test_the_vectors_are_test_images_and_what_the_file_answers(run: Run, dataset: Dataset) -> None:
    assert run("package", NAME, "--precision", "fp16").status == 0
    package = Path("simple_cnn-package")
    raw = (package / "vectors/images.rgb").read_bytes()
    images = np.frombuffer(raw, np.uint8).reshape(64, 32, 32, 3)
    wanted = [i * len(dataset.test) // 64 for i in range(64)]
    assert np.array_equal(images, dataset.test.images[wanted])
    logits = np.frombuffer((package / "vectors/logits.f32").read_bytes(), "<f4").reshape(64, 10)
    session = onnxruntime.InferenceSession(package / "model.onnx")
    assert np.abs(logits - session.run(["logits"], {"images": images})[0]).max() < 2e-3
    assert np.ptp(logits, axis=0).min() > 0
    assert dict(entries(package))["precision"] == "fp16"


def test_vectors_of_a_file_that_was_replaced_meanwhile_are_refused(
    run: Run, model: ModelFolder, dataset: Dataset
) -> None:
    path = model.onnx("fp32")
    found = source.find(model, path)
    write_model(model, dataset, seed=2)
    assert run("export", NAME).status == 0
    with pytest.raises(UserError, match=r"fp32\.onnx was changed while it was read; try again"):
        vectors.make(found, dataset)


def test_the_texts_say_what_is_proved_and_where_things_come_from(run: Run) -> None:
    assert run("package", NAME).status == 0
    package = Path("simple_cnn-package")
    readme, notice = (package / "README.md").read_text(), (package / "NOTICE").read_text()
    proof = json.loads((package / "proof.json").read_text())
    assert proof["verdict"] == "PASS"
    assert f"{100 * proof['accuracy']:.2f} % of 500 test images" in readme
    assert "where 1 are allowed" in readme
    assert "unproved" not in readme
    assert "PyTorch's 60-minute blitz" in notice
    assert "64 test images" in notice
    assert (package / "LICENSE").read_text().lstrip().startswith("Apache License")


def test_the_notice_says_who_trained(run: Run, model: ModelFolder) -> None:
    card = json.loads(model.card.read_text())
    data = card["data"]["name"]
    for more, said in (
        ({}, f"Weights: trained with cifar-deploy on {data};"),
        (
            {"imported": {"from": "their.pth"}},
            f"Weights: imported from their.pth, which another program trained; measured on {data};",
        ),
        (
            {"init": {"from": "imagenet"}},
            f"Weights: begun from imagenet, trained with cifar-deploy on {data};",
        ),
        (
            {"init": {"from": "model.safetensors", "init": {"from": "imagenet"}}},
            f"Weights: begun from imagenet, trained with cifar-deploy on {data};",
        ),
        (
            {"init": {"from": "model.safetensors", "command": "cifar-deploy train"}},
            f"Weights: trained with cifar-deploy on {data};",
        ),
        (
            {
                "teachers": [{"model": "one"}],
                "init": {
                    **{"from": "model.safetensors", "command": "cifar-deploy import"},
                    "imported": {"from": "their.pth"},
                    **{"teachers": [{"model": "two"}], "teachers_from": ["imagenet"]},
                },
            },
            f"Weights: begun from their.pth, trained with cifar-deploy on {data};\n"
            "taught by one, two;\ntheir teachers go back to imagenet;",
        ),
    ):
        model.card.write_text(json.dumps(card | more))
        assert run("package", NAME, "--force").status == 0
        assert f"\n{said}\nsha256 of" in Path("simple_cnn-package/NOTICE").read_text()


def test_the_same_inputs_give_the_same_bytes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in ("cpp", "triton"):
        places = [tmp_path / "a" / target, tmp_path / "b" / f"{target}-again"]
        for place, mask in zip(places, (0o022, 0o077), strict=True):
            before = os.umask(mask)
            try:
                run("package", NAME, "--target", target, "--out", place)
                answer = run("package", NAME, "--target", target, "--out", f"{place}.tar.gz")
            finally:
                os.umask(before)
            assert answer.status == 0
        assert files(places[0]) == files(places[1])
        archives = [Path(f"{place}.tar.gz").read_bytes() for place in places]
        assert archives[0] == archives[1]


def test_the_archive_is_safe_and_holds_the_same(run: Run, tmp_path: Path) -> None:
    assert run("package", NAME, "--out", "folder").status == 0
    assert run("package", NAME, "--out", "some.tar.gz").status == 0
    with tarfile.open("some.tar.gz") as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path / "out", filter="data")
    names = [member.name for member in members]
    assert names == sorted(names)
    for member in members:
        assert member.isfile()
        assert member.name.startswith("simple_cnn-package/")
        assert ".." not in member.name.split("/")
        facts = (member.uid, member.gid, member.uname, member.gname, member.mode)
        assert facts == (0, 0, "", "", 0o644)
        assert member.mtime == members[0].mtime in write.TIMES
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["simple_cnn-package"]
    assert files(tmp_path / "out" / "simple_cnn-package") == files(Path("folder"))
    head = Path("some.tar.gz").read_bytes()[:10]
    assert head[3] == 0  # no name in the gzip header
    assert int.from_bytes(head[4:8], "little") == members[0].mtime


def test_archives_of_other_contents_have_another_time(tmp_path: Path) -> None:
    # rsync and `cmake --install` leave alone what has the same size and time.
    found = set[float]()
    for model in (b"one", b"two"):
        write.write({"model.onnx": model, "README.md": b""}, tmp_path / "a.tar.gz", "a")
        with tarfile.open(tmp_path / "a.tar.gz") as archive:
            found |= {member.mtime for member in archive}
    assert len(found) == 2


def test_json_tells_a_program(run: Run) -> None:
    said = json.loads(run("package", NAME, "--target", "triton", "--json").out)
    assert said["package"] == "simple_cnn-triton"
    assert said["proved"] is True
    assert said["contents"] == sorted(files(Path("simple_cnn-triton")))


# --- the proof ----------------------------------------------------------------------------------


def test_validate_leaves_a_proof_only_of_the_whole_test_set(run: Run, model: ModelFolder) -> None:
    paths = [proof_path(model.onnx(precision)) for precision in ("fp32", "fp16")]
    proof = proof_of(model.onnx("fp32"))
    assert proof["verdict"] == "PASS"
    assert proof["data"]["images"] == 500
    assert proof["margin_points"] == pytest.approx(1)
    assert proof["runtime"].startswith("ONNX Runtime ")
    for path in paths:
        path.unlink()
    run("validate", NAME, "--max-drop", "1", "--no-latency", "--images", "499")
    assert not any(path.exists() for path in paths)
    run("validate", model.onnx("fp16"), "--max-drop", "1", "--no-latency")
    assert [path.exists() for path in paths] == [False, True]


def test_a_proof_that_cannot_be_written_keeps_no_verdict_back(run: Run, model: ModelFolder) -> None:
    for precision in ("fp32", "fp16"):
        path = proof_path(model.onnx(precision))
        path.unlink()
        path.mkdir()
    answer = run("validate", NAME, "--max-drop", "1", "--no-latency")
    assert answer.status == 0
    assert answer.out.count("PASS") == 2
    assert "no proof was left beside the files: cannot write" in answer.err


def test_a_proof_that_is_none(refused: Refused, model: ModelFolder) -> None:
    path = model.onnx("fp32")
    proof = proof_of(path)
    told = f"is no whole proof; run: cifar-deploy validate {path}"
    for key in (
        *("sha256", "verdict", "runtime", "provider", "device", "data"),
        *("accuracy", "reference_accuracy", "upper_bound_of_loss_points", "margin_points"),
    ):
        for value in (None, True, 10**400, float("inf"), float("nan")):
            write_proofs(path, proof, {**proof, key: value})
            assert told in refused("package", NAME)
    for text in ("{}", '{"proofs": {}}', '{"proofs": [1]}'):
        proof_path(path).write_text(text)
        assert told in refused("package", NAME)


def test_the_bound_is_rounded_up_wherever_it_stands(run: Run, model: ModelFolder) -> None:
    path = model.onnx("fp32")
    write_proofs(path, {**proof_of(path), "upper_bound_of_loss_points": 0.23012})
    for target in ("cpp", "triton"):
        answer = run("package", NAME, "--target", target, "--out", target)
        assert "at most 0.231 points (95 %)" in answer.err
        assert "at most 0.231 points lost (95 %)" in Path(target, "README.md").read_text()


def test_the_readme_says_what_the_self_test_takes(run: Run) -> None:
    for precision, tolerance in (("fp32", "0.001"), ("fp16", "5 % of its size")):
        assert run("package", NAME, "--precision", precision, "--out", precision).status == 0
        readme = " ".join(Path(precision, "README.md").read_text().split())
        assert f"Every logit has to be within {tolerance}" in readme
        assert "or one whose logit was within that of the best." in readme


def test_what_another_runtime_found_is_kept(run: Run, refused: Refused, model: ModelFolder) -> None:
    path = model.onnx("fp32")
    proof = proof_of(path)
    command = ("validate", path, "--max-drop", "1", "--no-latency", "--runtime")
    assert run(*command, "openvino").status == 0
    assert run(*command, "openvino").status == 0  # in the place of the one before
    runtimes = [p["runtime"].split()[0] for p in read_proofs(path, sha256_of(path))]
    assert runtimes == ["ONNX", "OpenVINO"]
    said = run("models", path).out
    assert said.count("PASS (margin 1 points)") == 2
    triton = run("package", NAME, "--target", "triton")
    assert triton.err.endswith("points (95 %), 1 allowed\n")
    assert "proved by ONNX Runtime" in triton.err
    assert "proved by OpenVINO" in run("package", NAME).err  # the latest of those that count
    # A later verdict is not hidden by an earlier one, of another runtime or number of threads.
    again = ("onnxruntime", "--max-drop", "0", "--threads")
    before = torch.get_num_threads()
    for threads in ("1", "2"):
        assert run(*command, *again, threads).status == 1
    torch.set_num_threads(before)
    assert len(read_proofs(path, sha256_of(path))) == 2
    for target in ("cpp", "triton"):
        said = refused("package", NAME, "--target", target, "--force")
        assert f"did not pass: INCONCLUSIVE; see `cifar-deploy validate {path}`" in said
    assert run(*command, "openvino").status == 0
    assert run("package", NAME, "--force").status == 0
    assert "did not pass" in refused("package", NAME, "--target", "triton", "--force")
    proof_path(path).write_text(json.dumps(proof))  # as earlier versions left it
    assert proof_of(path) == proof
    proof_path(path).write_text("damaged")
    assert run(*command, "onnxruntime").status == 0
    assert proof_of(path)["runtime"].startswith("ONNX Runtime")


def test_a_file_that_gives_no_answers_loses_its_proof(
    run: Run, model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = proof_path(model.onnx("fp16"))
    assert path.exists()
    whole = OnnxRuntime.logits
    # As a GPU answers where values in between are too large for fp16: this CPU takes fp32.
    monkeypatch.setattr(OnnxRuntime, "logits", lambda self, images: whole(self, images) * np.nan)
    answer = run("validate", model.onnx("fp16"), "--max-drop", "1", "--no-latency")
    assert answer.status == 1
    assert "no number for an answer to 500 of 500 images" in answer.out
    assert not path.exists()


def test_weights_that_are_replaced_while_files_are_checked_judge_nothing(
    run: Run, model: ModelFolder, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(path: Path, *more: Any) -> None:
        checked(path, *more)
        write_model(model, dataset, seed=2)

    checked = runtimes_load.check_file
    monkeypatch.setattr(runtimes_load, "check_file", check)
    answer = run("validate", model.onnx("fp32"), "--no-latency", "--device", "cpu")
    assert answer.status == 2
    assert f"error: {model.weights} was replaced since its files were checked" in answer.err


def test_a_file_without_its_manifest_says_itself_of_which_weights_it_is(
    refused: Refused, model: ModelFolder, dataset: Dataset
) -> None:
    path = model.onnx("fp32")
    manifest_path(path).unlink()
    write_model(model, dataset, seed=2)
    assert "was exported from other weights" in refused("validate", path, "--device", "cpu")


def test_a_proof_against_other_weights_is_none(refused: Refused, model: ModelFolder) -> None:
    path = model.onnx("fp32")
    write_proofs(path, {**proof_of(path), "weights_sha256": "0" * 64})
    assert f"run: cifar-deploy validate {path}" in refused("package", path)


def test_the_weights_that_are_loaded_are_those_that_the_card_names(
    model: ModelFolder, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, read_card = weights.load(model).network.state_dict(), weights.read_card

    def read_before_another(folder: ModelFolder, *raw: bytes) -> Json:
        card = read_card(folder, *raw)
        write_model(folder, dataset, seed=2)
        return card

    monkeypatch.setattr(weights, "read_card", read_before_another)
    found = weights.load(model).network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in before.items())


def test_a_reference_that_is_not_what_was_trained_proves_nothing(
    run: Run, model: ModelFolder
) -> None:
    path = proof_path(model.onnx("fp32"))
    accuracy = proof_of(model.onnx("fp32"))["reference_accuracy"]
    card = json.loads(model.card.read_text())
    quick = ("validate", NAME, "--max-drop", "1", "--no-latency", "--device", "cpu")
    for points, status in ((0.1, 0), (0.4, 1), (-0.4, 1)):
        path.unlink()
        card["test_accuracy"] = accuracy + points / 100
        model.card.write_text(json.dumps(card))
        answer = run(*quick, "--json", "judged.json")
        assert (answer.status, path.exists()) == (status, not status)
        strayed = f"and got {100 * card['test_accuracy']:.2f} % when its training ended"
        assert (strayed in answer.out) == bool(status)
        assert ("simple_cnn is not what its card says" in answer.err) == bool(status)
        path.touch()
    (judged,) = json.loads(Path("judged.json").read_text())["models"]
    assert judged["card_accuracy"] == card["test_accuracy"]
    assert run(*quick, "--images", "499").status == 0  # of fewer it may be another


def test_a_proof_counts_where_the_file_will_run(
    run: Run, refused: Refused, model: ModelFolder
) -> None:
    def proved_by(precision: str, **how: str) -> None:
        path = model.onnx(precision)
        write_proofs(path, {**proof, "sha256": sha256_of(path), **how})

    proof = proof_of(model.onnx("fp32"))

    triton = ("package", NAME, "--target", "triton", "--force", "--precision")
    assert "was proved on a CPU, which computes fp16 in fp32" in refused(*triton, "fp16")
    assert run(*triton, "fp16", "--unproved").err.endswith("NOT PROVED\n")
    readme = Path("simple_cnn-triton/README.md").read_text()
    assert "**This file is not proved for where it is to run.**" in readme
    proved_by("fp16", provider="CUDAExecutionProvider", device="NVIDIA H200")
    assert run(*triton, "fp16").err.endswith("points (95 %), 1 allowed\n")
    assert "CUDAExecutionProvider, NVIDIA H200" in Path("simple_cnn-triton/README.md").read_text()
    proved_by("fp32", runtime="OpenVINO 2026.4.1", provider="CPU")
    assert "was proved by OpenVINO 2026.4.1, and Triton" in refused(*triton, "fp32")
    assert run("package", NAME).status == 0  # C++ has OpenVINO too
    assert run("export", NAME, "--precision", "int8", "--calibration-images", "8").status == 0
    proved_by("int8", provider="CUDAExecutionProvider", device="NVIDIA H200")
    for command in (triton, ("package", NAME, "--force", "--precision")):
        assert "int8.onnx --device cpu" in refused(*command, "int8")


def test_another_file_under_the_name_is_refused(refused: Refused, model: ModelFolder) -> None:
    for suffix in ("", ".json", ".proof.json"):
        shutil.copy(f"{model.onnx('fp16')}{suffix}", f"{model.onnx('fp32')}{suffix}")
    said = refused("package", NAME)
    assert "fp32.onnx was exported as simple_cnn.fp16.onnx in fp16, by its manifest" in said


def test_data_other_than_the_trainings_proves_nothing(run: Run, model: ModelFolder) -> None:
    card = json.loads(model.card.read_text())
    card["data"]["sha256"] = "0" * 64
    model.card.write_text(json.dumps(card))
    for path in model.path.glob("*.proof.json"):
        path.unlink()
    answer = run("validate", NAME, "--max-drop", "1", "--no-latency")
    assert not list(model.path.glob("*.proof.json"))
    assert "no proof was left beside the files: simple_cnn was trained on other data" in answer.err


def test_one_release_of_cifar10_proves_what_was_trained_on_another(
    run: Run, model: ModelFolder, real_data: Dataset
) -> None:
    card = json.loads(model.card.read_text())
    card["data"] |= {"sha256": "0" * 64, "verified": "official: every checksum matches"}
    model.card.write_text(json.dumps(card))
    trained = weights.load(model)
    few = real_data.test.first(100)
    dataset = dataclasses.replace(real_data, test=few, classes=trained.classes)
    judgement = judge(Reference.of_model(trained), [], dataset, pick("cpu"), Options(seconds=0.0))
    assert judgement.facts["data"]["same_as_training"] is False
    assert judgement.facts["data"]["test_set_of_training"] is True
    strange = dataclasses.replace(dataset, verified=UNVERIFIED)
    judgement = judge(Reference.of_model(trained), [], strange, pick("cpu"), Options(seconds=0.0))
    assert judgement.facts["data"]["test_set_of_training"] is False


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_report_that_cannot_be_written_keeps_neither_table_nor_json_back(run: Run) -> None:
    command = ("validate", NAME, "--max-drop", "1", "--no-latency", "--json", "found.json")
    answer = run(*command, "--report", "/dev/full")
    assert answer.status == 2
    assert answer.out.count("PASS") == 2
    assert "error: cannot write /dev/full" in answer.err
    assert json.loads(Path("found.json").read_text())["models"][0]["passed"] is True


def test_a_models_own_file_by_another_path_is_its_own(run: Run, model: ModelFolder) -> None:
    path = proof_path(model.onnx("fp32"))
    path.unlink()
    Path("elsewhere").symlink_to(model.path.absolute())
    file = Path("elsewhere", model.onnx("fp32").name).absolute()
    command = ("validate", file, "--reference", NAME, "--max-drop", "1", "--no-latency")
    assert run(*command).status == 0
    assert proof_of(model.onnx("fp32"))["verdict"] == "PASS"


def test_files_of_two_models_are_not_judged_by_one(
    run: Run, refused: Refused, model: ModelFolder
) -> None:
    other = model.path.with_name("other")
    shutil.copytree(model.path, other)
    said = refused("validate", model.onnx("fp32"), other / model.onnx("fp32").name)
    assert "are of two models" in said


def test_a_model_called_dot_has_the_name_of_its_folder(
    run: Run, model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.path)
    answer = run("package", ".", "--unproved", "--out", "packed")
    assert answer.status == 0, answer
    assert dict(entries(Path("packed")))["model"] == "simple_cnn"


def test_an_unproved_file_is_refused(run: Run, refused: Refused, model: ModelFolder) -> None:
    proof_path(model.onnx("fp32")).unlink()
    for target in ("cpp", "triton"):
        said = refused("package", NAME, "--target", target)
        assert f"run: cifar-deploy validate {model.onnx('fp32')}" in said
        assert "--unproved" in said
    answer = run("package", NAME, "--unproved")
    assert answer.status == 0
    assert "NOT PROVED" in answer.err
    assert "**This file is not proved.**" in Path("simple_cnn-package/README.md").read_text()
    assert not Path("simple_cnn-package/proof.json").exists()


def test_a_file_that_did_not_pass_is_refused(
    run: Run, refused: Refused, model: ModelFolder
) -> None:
    assert run("validate", NAME, "--no-latency").status == 1  # 500 images prove no 0.05 points
    assert "did not pass: INCONCLUSIVE" in refused("package", NAME)
    assert run("package", NAME, "--unproved").status == 0
    assert "**This file did not pass.**" in Path("simple_cnn-package/README.md").read_text()


def test_a_proof_is_of_one_files_bytes(
    refused: Refused, run: Run, model: ModelFolder, dataset: Dataset
) -> None:
    write_model(model, dataset, seed=2)
    answer = run("package", NAME)
    assert answer.status == 2
    assert "MB" in answer.err  # exported anew: the weights have changed
    assert "exported anew since it was judged" in answer.err
    assert not Path("simple_cnn-package").exists()
    assert "exported anew since it was judged" in refused("package", NAME)
    assert run("validate", NAME, "--max-drop", "1", "--no-latency").status == 2  # fp16 is old
    assert run("validate", model.onnx("fp32"), "--max-drop", "1", "--no-latency").status == 0
    assert run("package", NAME).status == 0


def test_one_of_a_models_files_is_packaged_by_its_name(
    run: Run, refused: Refused, model: ModelFolder
) -> None:
    assert run("export", NAME, "--batch", "8").status == 0
    file = model.onnx("fp32", batch=8)
    assert f"is not proved on the whole test set; run: cifar-deploy validate {file}" in refused(
        "package", file
    )
    assert run("validate", file, "--max-drop", "1", "--no-latency").status == 0
    assert run("package", file).status == 0
    package = Path("simple_cnn-package")
    assert dict(entries(package))["fixed_batch"] == "8"
    assert (package / "model.onnx").read_bytes() == file.read_bytes()
    said = refused("package", file, "--precision", "fp16")
    assert "--format, --precision and --flavour choose a model's file" in said
    lost = model.path / "lost.onnx"
    assert f"{lost} does not exist; run: " in refused("package", lost, "--target", "triton")
    assert "--batch" in refused("export", NAME, "--batch", str(10**20))
    shutil.copy(file, "stray.onnx")
    said = refused("package", "stray.onnx", "--target", "triton")
    assert "stray.onnx has no trained model beside it" in said
    assert run("package", package / ".." / file, "--out", "by-another-path").status == 0
    assert files(Path("by-another-path")) == files(package)
    said = refused("export", NAME, "--format", "trt", "--batch", "8")
    assert "an engine's is --batch-profile 8" in said


def test_what_is_missing_is_exported(run: Run, model: ModelFolder) -> None:
    for path in model.path.glob("*.onnx*"):
        path.unlink()
    assert "is not proved" in run("package", NAME, "--precision", "fp16").err
    assert [path.name for path in model.exported()] == ["simple_cnn.fp16.onnx"]


@pytest.mark.parametrize(
    ("precision", "options"), [("int8", ("--calibration-images", "8")), ("fp16", ())]
)
def test_what_is_of_other_weights_is_made_as_it_was(
    run: Run, model: ModelFolder, dataset: Dataset, precision: str, options: tuple[str, ...]
) -> None:
    asked = ("--precision", precision, *options, "--keep-fp32", "node_conv2d_1")
    assert run("export", NAME, *asked).status == 0
    before = read_json(manifest_path(model.onnx(precision)))
    write_model(model, dataset, seed=2)
    assert "node_conv2d_1 in fp32" in run("package", NAME, "--precision", precision).err
    made = read_json(manifest_path(model.onnx(precision)))
    assert made["weights_sha256"] != before["weights_sha256"]
    assert made["calibration"] == before["calibration"]
    assert made["calibration"].get("images") == (8 if options else None)
    assert made["calibration"]["kept_fp32"] == ["node_conv2d_1"]


# --- what is refused ----------------------------------------------------------------------------


def test_a_place_that_is_taken(refused: Refused, run: Run) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("all I have")
    Path("mine/manifest.json").write_text("{}")
    Path("file").write_text("")
    Path("odd.tar.gz").mkdir()
    assert "mine exists" in refused("package", NAME, "--out", "mine")
    assert "mine is no package" in refused("package", NAME, "--out", "mine", "--force")
    assert "file is a file" in refused("package", NAME, "--out", "file", "--force")
    assert "name the folder" in refused("package", NAME, "--out", ".", "--force")
    assert "name the folder" in refused("package", NAME, "--out", "..")
    assert "is a folder" in refused("package", NAME, "--out", "odd.tar.gz", "--force")
    assert "ends in .tar.gz" in refused("package", NAME, "--out", "other.zip")
    assert "File name too long" in refused("package", NAME, "--out", "x" * 300)
    Path("empty").mkdir()
    assert run("package", NAME, "--out", "empty", "--target", "triton").status == 0
    assert "empty exists" in refused("package", NAME, "--out", "empty", "--target", "triton")
    Path("empty/README.md").write_text("changed")
    Path("empty/build").mkdir()
    again = ("package", NAME, "--out", "empty", "--target", "triton", "--force")
    assert run(*again).status == 0
    assert "Triton" in Path("empty/README.md").read_text()
    assert not Path("empty/build").exists()


def test_a_model_that_is_not_there(refused: Refused, model: ModelFolder) -> None:
    assert "did you mean resnet18?" in refused("package", "resnet81")
    assert "run: cifar-deploy train vgg19" in refused("package", "vgg19")
    with model.onnx("fp32").open("ab") as out:
        out.write(b"\0")
    assert "does not match its manifest" in refused("package", NAME)
    Path(f"{model.onnx('fp16')}.json").unlink()
    assert "has no manifest" in refused("package", NAME, "--precision", "fp16")


def test_a_package_is_no_model(run: Run, refused: Refused) -> None:
    for target, place in (("cpp", "model.onnx"), ("triton", "simple_cnn/1/model.onnx")):
        folder = f"made-for-{target}"
        assert run("package", NAME, "--target", target, "--out", folder).status == 0
        for command in ("validate", "benchmark", "models"):
            for named in (folder, f"./{folder}/"):
                said = refused(command, named)
                assert f"error: {folder} is what `cifar-deploy package` wrote" in said
                assert said.endswith(f"or the file in it: {folder}/{place}\n")
    file = Path(folder, place)
    file.rename(file.with_suffix(".plan"))
    assert "name the model that it was made of" in refused("validate", folder)
    Path(folder).rename(NAME)  # a model's name is the model's
    quick = ("--no-latency", "--images", "20")
    assert run("validate", NAME, "--format", "onnx", *quick).status in (0, 1)


def test_a_manifest_without_what_is_needed(refused: Refused, model: ModelFolder) -> None:
    file = Path(f"{model.onnx('fp32')}.json")
    manifest = json.loads(file.read_text())
    for change in ({"classes": ["cat"]}, {"classes": None}):
        file.write_text(json.dumps({**manifest, **change}))
        assert "lacks what a package needs" in refused("package", NAME)
    file.write_text(json.dumps({**manifest, "classes": [*manifest["classes"][:9], "a\nb"]}))
    for target in ("cpp", "triton"):
        assert "can hold no such name" in refused("package", NAME, "--target", target)
    proof_path(model.onnx("fp16")).write_text("[]")
    assert "proof.json" in refused("package", NAME, "--precision", "fp16")


def test_no_data_for_the_vectors(
    refused: Refused, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_DEPLOY_DATA", "nowhere")
    assert "nowhere does not exist" in refused("package", NAME)
    assert run("package", NAME, "--target", "triton").status == 0  # which needs none


def test_a_disk_that_refuses_leaves_nothing(tmp_path: Path) -> None:
    contents = {"a.txt": b"first", "b" * 300: b"a name that no file system takes"}
    with pytest.raises(UserError, match=r"cannot write .*new: File name too long"):
        write.write(contents, tmp_path / "new", "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for name in ("new", "new.tar.gz"):
        with pytest.raises(UserError, match="cannot write"):
            write.write({"a.txt": b""}, tmp_path / "file" / name, "new")


def test_a_replaced_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "package"
    write.write({"a.txt": b"old"}, out, "package")
    with pytest.raises(UserError):
        write.write({"a.txt": b"new", "b" * 300: b""}, out, "package")
    assert files(out) == {"a.txt": b"old"}
    killed = tmp_path / ".package.999999999.part" / "new"  # of a process that is gone
    killed.mkdir(parents=True)
    write.write({"b.txt": b"new"}, out, "package")
    assert files(out) == {"b.txt": b"new"}
    assert list(tmp_path.iterdir()) == [out]


# --- engines ------------------------------------------------------------------------------------


def test_an_engine_is_packaged_as_its_manifest_says(
    run: Run, refused: Refused, engine: Callable[..., Path], model: ModelFolder
) -> None:
    command = ("package", NAME, "--format", "trt", "--precision", "fp16")
    said = refused(*command)
    assert "cifar-deploy export simple_cnn --format trt --precision fp16" in said
    path = engine(system="Linux aarch64")
    assert "is not proved" in refused(*command)
    answer = run(*command, "--unproved")
    assert answer.status == 0, answer
    package = Path("simple_cnn-package")
    assert (package / "model.engine").read_bytes() == path.read_bytes()
    found = dict(entries(package))
    assert found["backend"] == "tensorrt"
    assert found["file"] == "model.engine"
    assert found["tensorrt"] == "10.13.3.9"
    assert found["compute_capability"] == "9.0"
    assert found["system"] == "Linux aarch64"
    assert found["profiles"] == "1:128:1024"
    assert (found["min_batch"], found["max_batch"]) == ("1", "1024")
    assert found["vectors_from"].startswith("PyTorch ")  # no GPU, and no engine in truth
    # Python opens it as its own manifest says, and not as rubbish.
    with pytest.raises(UserError, match="runs on a CUDA GPU; none is here"):
        load(package, "cpu")
    (package / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"not the manifest of model\.engine"):
        load(package, "cpu")
    assert "10.13.3.9" in (package / "README.md").read_text()


def test_the_gpus_of_an_engine(run: Run, engine: Callable[..., Path]) -> None:
    cases = [
        ("tensorrt-rtx", {"targets": ["8.6", "8.9"]}, "8.6 8.9", None, "8.6, 8.9"),
        ("tensorrt-rtx", {"gpu": None}, "any", None, "GPUs that TensorRT for RTX"),
        ("tensorrt", {"hardware_compatibility": "ampere+"}, "any", None, "Ampere and later"),
        ("tensorrt", {"hardware_compatibility": "same-compute-capability"}, "9.0", None, "9.0"),
        ("tensorrt", {}, "9.0", "NVIDIA H100", "NVIDIA H100"),
    ]
    for flavour, facts, wanted, only, said in cases:
        path = engine(flavour, **facts)
        command = ("package", NAME, "--format", "trt", "--precision", "fp16", "--unproved")
        assert run(*command, "--force").status == 0
        found = dict(entries(Path("simple_cnn-package")))
        assert (found["backend"], found["compute_capability"]) == (flavour, wanted)
        assert found.get("gpu") == only
        readme = Path("simple_cnn-package/README.md").read_text()
        assert re.search(rf"here on: .*{said}", readme)
        path.unlink()


def test_engines_that_cannot_be_packaged(refused: Refused, engine: Callable[..., Path]) -> None:
    command = ("package", NAME, "--format", "trt", "--precision", "fp16", "--unproved")
    assert "--flavour" in refused("package", NAME, "--flavour", "tensorrt")
    engine("tensorrt-rtx")
    assert "no engines of TensorRT for RTX" in refused(*command, "--target", "triton")
    path = engine("tensorrt", profiles=[{"min": 2, "opt": 8, "max": 16}])
    assert "name one: --flavour" in refused(*command)
    ours = (*command, "--flavour", "tensorrt")
    assert "whose profile begins at 1" in refused(*ours, "--target", "triton")
    for facts in ({"profiles": []}, {"profiles": [{"min": 4, "opt": 1, "max": 8}]}, {"gpu": None}):
        engine("tensorrt", **facts)
        assert "lacks what a package needs" in refused(*ours)
    assert "it can be auto, tensorrt" in refused(*command, "--flavour", "rtx")
    engine("tensorrt", version_compatible=True)
    assert "without --version-compatible" in refused(*ours)
    engine("tensorrt", stripped=True)
    assert "without --strip-weights" in refused(*ours)
    engine("tensorrt", weights_sha256="0" * 64)
    assert "other weights" in refused(*ours)
    engine("tensorrt")
    path.write_bytes(b"another")
    assert "does not match its manifest" in refused(*ours)


# --- a batch that is fixed ----------------------------------------------------------------------


def fix_batch(model: ModelFolder, batch: int) -> None:
    path = model.onnx("fp32")
    manifest = json.loads(Path(f"{path}.json").read_text())
    graph = onnx.load(path)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(graph, path)
    del manifest["file"], manifest["bytes"], manifest["sha256"]
    write_manifest(path, manifest)


def test_a_fixed_batch_is_told_to_the_reader(run: Run, model: ModelFolder) -> None:
    fix_batch(model, 24)
    answer = run("package", NAME, "--unproved")
    assert answer.status == 0, answer
    package = Path("simple_cnn-package")
    found = dict(entries(package))
    assert (found["min_batch"], found["max_batch"], found["fixed_batch"]) == ("24", "24", "24")
    assert len((package / "vectors/logits.f32").read_bytes()) == 64 * 10 * 4


def done_here(answer: Answer) -> None:
    """The program ended well; skipped where the flavour does not support this GPU."""
    with supported():
        if answer.status:
            raise UserError(" ".join(f"{answer.out} {answer.err}".split()))


@pytest.mark.gpu
def test_an_engine_is_proved_and_packaged_where_there_is_a_gpu(
    run: Run, model: ModelFolder, dataset: Dataset
) -> None:
    try:
        choose(AUTO, gpu=True)
    except UserError as error:
        pytest.skip(str(error))
    done_here(run("export", NAME, "--format", "trt", "--precision", "fp16"))
    (path,) = model.path.glob("*.engine")
    done_here(run("validate", path, "--max-drop", "1", "--no-latency"))
    assert proof_of(path)["runtime"].startswith("TensorRT")
    answer = run("package", NAME, "--format", "trt", "--precision", "fp16")
    assert answer.status == 0, answer
    package = Path("simple_cnn-package")
    assert dict(entries(package))["vectors_from"].startswith("TensorRT")
    wanted = np.frombuffer((package / "vectors/logits.f32").read_bytes(), "<f4").reshape(64, 10)
    images = np.frombuffer((package / "vectors/images.rgb").read_bytes(), np.uint8)
    loaded = load(package)
    assert loaded.classes == dataset.classes
    assert np.abs(loaded.logits(images.reshape(64, 32, 32, 3)) - wanted).max() < 1e-2


def test_an_engine_takes_the_batches_of_all_its_profiles(
    run: Run, engine: Callable[..., Path]
) -> None:
    sizes = [{"min": 8, "opt": 8, "max": 16}, {"min": 1, "opt": 1, "max": 1}]
    engine(profiles=[*sizes, {"min": 2, "opt": 32, "max": 64}])
    run("package", NAME, "--format", "trt", "--precision", "fp16", "--unproved", "--out", "all")
    told = dict(entries(Path("all")))
    assert (told["min_batch"], told["max_batch"]) == ("1", "64")
    assert told["profiles"] == "8:8:16 1:1:1 2:32:64"


def test_where_a_network_comes_from_is_known_without_docstrings() -> None:
    script = (
        "from cifar_deploy.architectures import NETWORKS\n"
        "from cifar_deploy.package.texts import _docstring\n"
        "for name in sorted(NETWORKS): print(_docstring(NETWORKS[name]).splitlines()[0])"
    )
    said = python("-c", script).stdout
    assert said.count("torchvision's") == 4
    assert python("-OO", "-c", script).stdout == said
