"""Which proofs are written, kept and taken away."""

import dataclasses
from pathlib import Path

from judgements import MakeJudgement

from cifar_deploy.data.dataset import Dataset
from cifar_deploy.store import proof_path, read_proofs, sha256_of, write_json
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
