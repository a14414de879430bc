"""Validating from Python, `validate_model`, and what the command `validate` is made of."""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cifar_deploy import address, architectures, cards, disk, store
from cifar_deploy.address import Address
from cifar_deploy.errors import UserError, check_range
from cifar_deploy.kind import SUFFIXES, Format, Kind, to_export

if TYPE_CHECKING:
    import torch

    from cifar_deploy.validate.judgement import Judged, Judgement, Unusable

# What files, or served models, are judged against, and these.
Work: TypeAlias = tuple[store.ModelFolder | Path, Sequence[Path | Address]]
Say: TypeAlias = Callable[[str], None]
# A model's name, alias or folder; a file; or the address of what a server has.
Target: TypeAlias = str | PathLike[str]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What was found out about one file. Of one that is UNUSABLE the figures are None.

    Loss, bound and margin are in percentage points, the other accuracies shares, 0 to 1.
    """

    file: str  # its path, or the address of what a server has
    verdict: str  # "PASS", "FAIL", "INCONCLUSIVE" or "UNUSABLE"
    passed: bool  # PASS, and the reference is as accurate here as its card says
    reason: str  # why it is UNUSABLE; else ""
    model: str  # what it was judged against
    precision: str | None  # "fp32", "fp16", "int8"; None where it is not known
    runtime: str | None  # with its version
    bytes: int | None  # None of what a server has
    images: int  # test images that it was judged on
    top1: float | None = None  # share of them that it gets right
    reference_top1: float | None = None  # that the reference gets right
    lost: int | None = None  # images that the reference gets right and the file wrong
    gained: int | None = None  # the other way round
    upper_bound_of_loss_points: float | None = None  # one-sided, 95 %
    margin_points: float | None = None  # what that may be
    same_top1: float | None = None  # share of images with the reference's answer
    largest_logit_difference: float | None = None  # from the reference's
    p50_ms: float | None = None  # latency of one image, or else of the smallest batch it takes
    p99_ms: float | None = None
    images_per_second: float | None = None  # in batches of `batch`, those tried with most of them
    batch: int | None = None


def validate_model(
    model: Target | Iterable[Target],
    *,
    reference: Target | None = None,
    format: str | Iterable[str] | None = None,
    precision: str | Iterable[str] | None = None,
    images: int | None = None,
    max_drop: float | None = None,
    latency: bool = True,
    device: "str | int | torch.device" = "auto",
    threads: int | None = None,
    data_dir: str | PathLike[str] | None = None,
    runtime: str = "onnxruntime",
    trust: bool = False,
) -> list[Verdict]:
    """Judge exported files against what they were made of, on the test images: a verdict each.

    It is not called `validate`, which is a subpackage: whoever imports that has it under this name.

    `model` is a trained model's name, alias or folder, whose files of this `format` ("onnx", "trt")
    and `precision` ("fp32", "fp16", "int8") are judged, by default all; or a file, judged against
    the model beside it or `reference`, a model or an ONNX file; or `grpc://HOST:PORT/MODEL`; or
    several models, or several files. `images` takes only the first so many, `max_drop` is the
    margin in percentage points (fp32 0.05, fp16 0.10, int8 0.50), `latency` times the files, too.
    `device`, `runtime` and `trust` are as in `load`; `threads` is for all that this process runs on
    the CPU, from then on. The images are those of the model's training, or in `data_dir`.

    As by `cifar-deploy validate`, a proof is left beside each of a model's own files that all
    images judged; no page is written. Nothing is printed: what makes a verdict worth less, or left
    no proof, goes to the logger "cifar_deploy.proving" (WARNING), with what is done (INFO).
    Raises UserError as that command ends with status 2, but not while a file is left to judge; its
    text names arguments as the command does.
    """
    if isinstance(model, str | PathLike) or not isinstance(model, Iterable):
        model = [model]
    targets = [architectures.named(one) for one in model]
    if not targets:
        raise UserError("no model and no file was named")
    against = None if reference is None else architectures.named(reference)
    kind = Kind.of(format, precision)
    check_range("images", images, 1, whole=True)
    check_range("max_drop", max_drop, 0, 100)
    check_range("threads", threads, 1, 1024, whole=True)
    work = work_of(targets, against, kind)
    from cifar_deploy.runtimes.load import check_onnx

    check_onnx([runtime])
    judgements = prove(
        work,
        max_drop=max_drop,
        images=images,
        onnx=runtime,
        latency=latency,
        trust=trust,
        device=device,
        threads=threads,
        data_dir=Path(data_dir) if data_dir else None,
    )
    verdicts = []
    for judgement in judgements:
        verdicts += [_verdict(judgement, row) for row in judgement.rows[1:]]
        verdicts += [_verdict(judgement, lost) for lost in judgement.unusable]
    return verdicts


def _verdict(judgement: "Judgement", row: "Judged | Unusable") -> Verdict:
    from cifar_deploy.validate.judgement import Unusable
    from cifar_deploy.validate.noninferiority import PASS

    verdict = Verdict(
        file=row.file,
        verdict=row.verdict,
        passed=row.verdict == PASS and judgement.strayed is None,
        reason=row.reason if isinstance(row, Unusable) else "",
        model=judgement.model,
        precision=row.precision,
        runtime=row.runtime,
        bytes=row.bytes,
        images=len(judgement.split),
    )
    if isinstance(row, Unusable):
        return verdict
    assert row.comparison
    verdict = replace(
        verdict,
        top1=row.accuracy,
        reference_top1=judgement.rows[0].accuracy,
        lost=row.comparison.lost,
        gained=row.comparison.gained,
        upper_bound_of_loss_points=100 * row.comparison.upper,
        margin_points=100 * row.comparison.margin,
        same_top1=row.agreement,
        largest_logit_difference=row.largest_difference,
    )
    if not row.speed:
        return verdict
    return replace(
        verdict,
        p50_ms=row.speed.smallest.latency.p50,
        p99_ms=row.speed.smallest.latency.p99,
        images_per_second=row.speed.best.images_per_second,
        batch=row.speed.best.batch,
    )


def work_of(targets: Sequence[str], reference: str | None, kind: Kind) -> list[Work]:
    """Models to judge, each with its files. A lone file is judged with its folder's model.

    What is served is judged with the model of its name. With a file as `reference` it stands in
    the model's place. Raises UserError for what does not go together, and is not there.
    """
    served = {t: found for t in targets if (found := address.read(t))}
    paths = [Path(t) for t in targets if t not in served]
    files = [path for path in paths if path.is_file() or path.suffix in store.EXPORTED]
    named = [architectures.folder(t) for t in targets if t not in served and Path(t) not in files]
    kind.of_models([*files, *served.values()])
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{missing[0]} does not exist; run: {to_export(missing[0])}")
    if files or served:
        if named:
            raise UserError("name models or files, not both; a file's model goes to --reference")
        judged: list[Path | Address] = [*files, *served.values()]
        if reference and Path(reference).suffix == SUFFIXES[Format.onnx]:
            return [(Path(reference), judged)]
        if reference and Path(reference).suffix == SUFFIXES[Format.trt]:
            raise UserError(f"{reference} is an engine; --reference takes a model or an ONNX file")
        if reference:
            owner = architectures.folder(reference)
        elif files:
            owner = store.ModelFolder(files[0].parent)
        else:
            owner = architectures.folder(next(iter(served.values())).model)
        if not reference:
            for file in files:
                if not store.ModelFolder(file.parent).card.exists():
                    raise UserError(f"{file} has no trained model beside it; name one: --reference")
                if not _beside(file, owner):
                    raise UserError(
                        f"{files[0]} and {file} are of two models; validate one after the other, "
                        "or name the one to judge both by with --reference"
                    )
            for text, one in served.items():
                if one.model != owner.name:
                    raise UserError(
                        f"{text} is not called {owner.name}; name the model to judge it by with "
                        "--reference"
                    )
        return [(owner, judged)]
    if reference:
        raise UserError("--reference goes with files; a model's own files need none")
    for folder in named:
        cards.read_card(folder)
    return [(folder, kind.needed(folder)) for folder in named or kind.trained()]


def _beside(file: Path, owner: store.ModelFolder | Path) -> bool:
    """Whether `file` stands in the folder of the model that it is judged against."""
    return not isinstance(owner, Path) and file.parent.resolve() == owner.path.resolve()


def prove(
    work: Sequence[Work],
    *,
    max_drop: float | None = None,
    images: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    onnx: str = "onnxruntime",
    latency: bool = True,
    trust: bool = False,
    device: "str | int | torch.device" = "auto",
    threads: int | None = None,
    source: str | None = None,
    data_dir: Path | None = None,
    mistakes: int | None = None,
    say: Say = log.warning,
    progress: Callable[[], AbstractContextManager[Say]] = lambda: nullcontext(log.info),
) -> "list[Judgement]":
    """Judge the files of all `work`, and leave the proofs beside them.

    `max_drop` is in percentage points, `images` the first test images to take, of the data set in
    `data_dir` or of another `source` than each model's own; `mean` and `std` are of pixels in 0..1.
    `say` gets what a person has to know besides the verdicts; within `progress`, what comes of it
    is told what is done. Of several models one whose weights are damaged is told, and has no
    judgement. Raises UserError where no file is fit to be judged, where a reference cannot run or
    has other classes than the data, and for what `pick` and `find` refuse.
    """
    from cifar_deploy.architectures import weights
    from cifar_deploy.data import find
    from cifar_deploy.data.doubts import doubts
    from cifar_deploy.device import pick
    from cifar_deploy.runtimes.load import check_file
    from cifar_deploy.validate import proof
    from cifar_deploy.validate.judge import Options, Reference, judge
    from cifar_deploy.validate.judgement import MISTAKES

    where = pick(device, threads)
    own: dict[Path, str] = {}  # files beside the weights they came from, and their sha256
    unfit: dict[Path, UserError] = {}  # damaged, or of other weights
    checked: dict[Path, str] = {}  # the weights of each model, by its folder
    sound: list[Work] = []
    for owner, files in work:  # what is damaged is told before anything runs
        exported_from = None
        if isinstance(owner, Path):
            check_file(owner)
        else:
            try:
                exported_from = cards.read_card(owner)["weights"]["sha256"]
            except UserError as error:
                if len(work) == 1:
                    raise
                say(f"error: {error}")
                continue
            checked[owner.path] = exported_from
        sound.append((owner, files))
        for file in files:
            if isinstance(file, Address):
                continue
            try:
                check_file(file, exported_from if _beside(file, owner) else None, trust)
                if _beside(file, owner):
                    own[file] = disk.sha256_of(file)
            except UserError as error:
                unfit[file] = error
    if not sound:
        raise UserError("none of these models can be judged")
    work = sound
    if unfit and all(file in unfit for _, files in work for file in files):
        raise next(iter(unfit.values()))  # nothing is left to judge
    for reason in unfit.values():
        say(f"error: {reason}")
    seconds = 1.0 if latency else 0.0
    options = Options(max_drop, seconds, trust, mean, std, onnx, mistakes or MISTAKES)
    data_of = find.of_models(source, data_dir)
    doubted: set[str] = set()
    judgements = []
    with progress() as told:
        references = []
        for owner, _ in work:
            if isinstance(owner, Path):
                dataset = data_of(owner.name, {})
                reference = Reference.of_file(owner, dataset)
            else:
                trained = weights.load(owner)
                if trained.card["weights"]["sha256"] != checked[owner.path]:
                    raise UserError(
                        f"{owner.weights} was replaced since its files were checked; export them "
                        "again"
                    )
                dataset = data_of(owner.name, trained.card)
                reference = Reference.of_model(trained, owner.name)
            references.append((reference, dataset))
            if dataset.origin not in doubted:
                doubted.add(dataset.origin)
                for line in doubts(dataset):
                    say(line)
        for (_, files), (reference, dataset) in zip(work, references, strict=True):
            judgement = judge(reference, files, dataset, where, options, images, told, unfit)
            judgements.append(judgement)
            refused = ""
            if reference.data and not judgement.facts["data"]["test_set_of_training"]:
                refused = dataset.changed(reference.model, reference.data)
                refused = refused or f"{reference.model} was trained on other data"
            elif judgement.strayed is not None:
                refused = f"{reference.model} is not what its card says"
            try:
                proof.write(judgement, own)
            except UserError as error:  # the verdict is still to be shown
                refused = str(error)
            if refused:
                say(f"no proof was left beside the files: {refused}")
            for row in judgement.rows[1:]:
                if row.addition and Path(row.file) in own:
                    say(f"no proof was left beside {row.file}: it is no deployment graph by itself")
    if (mean or std) and not any(row.normalised for one in judgements for row in one.rows):
        say("--mean and --std changed nothing: no file here leaves the normalisation to others")
    return judgements
