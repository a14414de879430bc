"""Which proofs are written, kept and taken away."""

import dataclasses
import math
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from judgements import MakeJudgement

from cifar_deploy.data.dataset import Dataset
from cifar_deploy.disk import Json, sha256_of, write_json
from cifar_deploy.store import proof_path, read_proofs
from cifar_deploy.validate import proof
from cifar_deploy.validate.judgement import Unusable


def test_a_proof_is_of_what_was_judged_and_the_latest_of_its_place(
    make_judgement: MakeJudgement, small_data: Dataset, tmp_path: Path
) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"judged")
    judgement = make_judgement({str(file): small_data.test.labels})
    judgement.facts["data"]["test_set_of_training"] = True
    own = {file: sha256_of(file)}
    assert proof.write(judgement, {file: "0" * 64}) == []  # another file by now
    assert proof.write(judgement, own) == [proof_path(file)]
    (found,) = read_proofs(file, own[file])
    before, there = found | {"runtime": "ONNX Runtime 1.9.0"}, found | {"provider": "other"}
    again, elsewhere = (found | {"device": name} for name in ("Some CPU, 8 threads", "Other CPU"))
    write_json(proof_path(file), {"proofs": [before, again, there, elsewhere]})
    proof.write(judgement, own)
    *others, latest = read_proofs(file, own[file])
    assert others == [there, elsewhere]
    assert latest["runtime"] == found["runtime"]
    # One that could not be run here keeps what was found elsewhere; one without answers does not.
    for ran in (False, True):
        lost = (Unusable(str(file), "why", ran=ran),)
        without = dataclasses.replace(judgement, rows=judgement.rows[:1], unusable=lost)
        proof.write(without, {})  # of another model's it is not said
        assert proof_path(file).exists()
        proof.write(without, own)
        assert proof_path(file).exists() is not ran


def test_two_at_once_lose_no_proof(
    make_judgement: MakeJudgement,
    small_data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"judged")
    own = {file: sha256_of(file)}
    first = make_judgement({str(file): small_data.test.labels})
    first.facts["data"]["test_set_of_training"] = True
    reference, row = first.rows
    second = dataclasses.replace(first, rows=(reference, dataclasses.replace(row, provider="b")))
    began: list[Future[list[Path]]] = []

    def read_while_the_other_writes(path: Path, sha256: str) -> list[Json]:
        found = read_proofs(path, sha256)
        if not began:
            began.append(pool.submit(proof.write, second, own))
            wait(began, timeout=0.5)
        return found

    monkeypatch.setattr(proof, "read_proofs", read_while_the_other_writes)
    with ThreadPoolExecutor() as pool:
        proof.write(first, own)
    assert began[0].result() == [proof_path(file)]
    assert [kept["provider"] for kept in read_proofs(file, own[file])] == [row.provider, "b"]


def test_a_proof_has_the_figures_of_its_own_file_and_of_nothing_put_before_it(
    make_judgement: MakeJudgement, small_data: Dataset, tmp_path: Path
) -> None:
    file, other = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for path in (file, other):
        path.write_bytes(b"judged")
    own = {file: sha256_of(file)}
    answers = small_data.test.labels.copy()
    answers[:2] = (answers[:2] + 1) % 10
    judgement = make_judgement(dict.fromkeys(map(str, (file, other)), answers))
    judgement.facts["data"]["test_set_of_training"] = True
    reference, row, more = judgement.rows
    assert row.comparison
    row = dataclasses.replace(row, largest_difference=math.inf)
    before = dataclasses.replace(row, addition="takes float32: here a mean is put before it")
    assert proof.write(dataclasses.replace(judgement, rows=(reference, before)), own) == []
    assert proof.write(dataclasses.replace(judgement, rows=(reference, row, more)), own) == [
        proof_path(file)
    ]
    (found,) = read_proofs(file, own[file])
    assert (found["lost"], found["gained"], found["largest_logit_difference"]) == (2, 0, None)
    assert (found["accuracy"], found["reference_accuracy"]) == (0.996, 1.0)
    assert found["margin_points"] == 1
    assert found["upper_bound_of_loss_points"] == pytest.approx(100 * row.comparison.upper)
