"""Which proofs are written, kept and taken away."""

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from judgements import MakeJudgement

from cifar_deploy.data.dataset import Dataset
from cifar_deploy.store import Json, proof_path, read_proofs, sha256_of, write_json
from cifar_deploy.validate import proof
from cifar_deploy.validate.judge import Unusable


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
    write_json(proof_path(file), {"proofs": [before, there]})
    proof.write(judgement, own)
    assert [kept["runtime"] for kept in read_proofs(file, own[file])] == 2 * [found["runtime"]]
    # One that could not be run here keeps what was found elsewhere; one without answers does not.
    for ran in (False, True):
        lost = (Unusable(str(file), "why", ran=ran),)
        proof.write(dataclasses.replace(judgement, rows=judgement.rows[:1], unusable=lost), own)
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
