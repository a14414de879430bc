"""The proofs that stand beside an exported file: what was judged, on what, with which verdict."""

import contextlib
import math
from pathlib import Path

from cifar_deploy.device import any_threads
from cifar_deploy.disk import Json, in_turn, sha256_of, stamp, write_json
from cifar_deploy.errors import UserError, disk_errors
from cifar_deploy.runtimes.protocol import unversioned
from cifar_deploy.store import proof_path, read_proofs
from cifar_deploy.validate.judgement import Judged, Judgement


def write(judgement: Judgement, judged: dict[Path, str]) -> list[Path]:
    """Write `<file>.proof.json` beside every file of a model's own that was judged in full.

    `judged` has the files that lie beside the weights they were judged against, each with the
    sha256 it had before. Nothing is written unless all test images of the data set that the model
    was trained on were used (`validate --images` and other data prove nothing; one release of
    CIFAR-10 does for another, and the training images may have changed), nor where the reference
    is not what its card says, nor for a file that has changed meanwhile, could not be run here, or
    was judged with something put before it.
    What another runtime found, or the same on another device, is kept. Of a file that ran and gave
    no answers all earlier proofs are taken away.
    Returns what was written. Raises UserError where the disk refuses.
    """
    data = judgement.facts["data"]
    if not data["test_set_of_training"] or not data["whole_test_set"]:
        return []
    for lost in judgement.unusable:
        file = Path(lost.file)
        if lost.ran and file in judged:
            with disk_errors(proof_path(file), "remove"):
                proof_path(file).unlink(missing_ok=True)
    if judgement.strayed is not None:
        return []
    written = []
    for row in judgement.rows[1:]:
        file = Path(row.file)
        if file not in judged or row.addition:
            continue
        with in_turn(file):
            if sha256_of(file) != judged[file]:
                continue
            found = _proof(judgement, row, judged[file])
            earlier: list[Json] = []
            with contextlib.suppress(UserError):  # damaged: it is written anew
                earlier = read_proofs(file, judged[file])
            kept = [proof for proof in earlier if _place(proof) != _place(found)]
            write_json(proof_path(file), {"proofs": [*kept, found]})
            written.append(proof_path(file))
    return written


def _place(proof: Json) -> tuple[str, str, str]:
    """What judged: the runtime whatever its version, its provider, the device with any threads."""
    return unversioned(proof["runtime"]), proof["provider"], any_threads(proof["device"])


def _proof(judgement: Judgement, row: Judged, sha256: str) -> Json:
    """Accuracies as shares; bound and margin in percentage points, as in `validate --json`."""
    comparison, reference = row.comparison, judgement.rows[0]
    assert comparison
    return {
        "file": Path(row.file).name,
        "sha256": sha256,
        "verdict": row.verdict,
        "accuracy": row.accuracy,
        "reference": reference.runtime,
        "reference_accuracy": reference.accuracy,
        "lost": comparison.lost,
        "gained": comparison.gained,
        "largest_logit_difference": (
            row.largest_difference if math.isfinite(row.largest_difference) else None
        ),
        "upper_bound_of_loss_points": 100 * comparison.upper,
        "margin_points": 100 * comparison.margin,
        "weights_sha256": judgement.facts["weights_sha256"],
        "data": judgement.facts["data"],
        "runtime": row.runtime,
        "provider": row.provider,
        "device": judgement.facts["device"],
        "versions": judgement.facts["versions"],
        "date": stamp(),
    }
