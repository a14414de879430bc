"""`cifar-deploy models`."""

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cifar_deploy import architectures, cards, disk, store
from cifar_deploy.cli.options import JsonFlag, print_json, wide
from cifar_deploy.errors import UserError
from cifar_deploy.kind import Precision, check_exported
from cifar_deploy.terminal import sheet

TRAINING = {  # that has not ended, by what `store.training` calls it
    "running": "in training",
    "stopped": "its training stopped at a checkpoint; its command with --resume goes on",
}


def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NETWORK|MODEL|FILE",
            help="Network or trained model, for its layers; exported file, for what it is; several "
            "trained models, for what differs; default: the list of all.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """What networks there are, what is trained and what is exported; or one network's layers.

    Of an exported file: what it takes and gives, what it is made of, and whether it is proved.
    Of two or more models: what differs between them by their cards, and how far it is chance.
    """
    if names and len(names) > 1:
        from cifar_deploy.models.compare import compare

        found = compare(names)
        for judgement in found["judgements"]:
            judgement["paired_test"] = _paired_test(judgement)
        if as_json:
            print_json(found)
        else:
            _show_differences(found)
        return
    name = names[0] if names else None
    if name and Path(name).suffix in store.EXPORTED:
        try:
            facts = _facts(Path(name))
            shown = "" if as_json else _file(facts)
        except store.MISSING as error:
            beside = store.manifest_path(Path(name))
            said = f"{beside} is no whole manifest ({error!r}); export it again"
            raise UserError(said) from error
        if as_json:
            print_json(facts)
        else:
            typer.echo(shown)
        return
    if name:
        from cifar_deploy.architectures.summary import layers, text

        if as_json:
            print_json(layers(name))
        else:
            typer.echo(text(name))
            if classes := cards.card_of(architectures.folder(name)).get("classes"):
                shares = (f"{kind} {right:,} of {n:,}" for kind, (right, n) in classes.items())
                typer.echo(f"right by class: {', '.join(shares)}")
        return
    from cifar_deploy.models.overview import overview

    entries = overview()
    if as_json:
        print_json(entries)
    else:
        _show(entries)
    damaged = [entry["damaged"] for entry in entries if entry["damaged"]]
    if damaged:  # after the others
        raise UserError("\n".join(damaged))


def _paired_test(judgement: disk.Json) -> str | None:
    """The command that judges both models' answers image by image; None where it cannot.

    Nor for models that were judged by held-out images: it would look at the test images.
    """
    if judgement["measure"] != "test_accuracy":
        return None
    from cifar_deploy.data import find

    files, card = [], {}
    for model in (judgement["model"], judgement["against"]):
        folder = architectures.folder(model)
        card = cards.card_of(folder)
        wanted = [*(folder.onnx(p.value) for p in Precision), *sorted(folder.path.glob("*.onnx"))]
        fit = (f for f in wanted if f.is_file() and ".trt." not in f.name)  # that is for engines
        found = next((file for file in fit if not cards.stale(file, card)), None)
        if found is None:
            return None
        files.append(str(found))
    file, reference = files
    source, place = "auto", None
    with contextlib.suppress(UserError):  # where the images are is for the user to say
        source, place = find.trained_on(card)
    data = ["--data", source] if source != "auto" else []
    data += ["--data-dir", str(place)] if place else []
    return store.to_validate(file, "--reference", reference, *data)


def _show_differences(found: disk.Json) -> None:
    from rich.text import Text

    from cifar_deploy.models.compare import SEEDS

    table = sheet(("", *found["models"]))
    for what, values in found["rows"].items():
        label = what.replace(SEEDS, ", mean").replace("holdout_", "held-out_")
        label = label.replace("_accuracy", " accuracy")
        table.add_row(*map(Text, (label, *(_value(what, value) for value in values))))
    wide(120, table).print(table)
    for judgement in found["judgements"]:
        typer.echo(_judged(judgement))
    for judgement in found["judgements"]:
        if judgement["paired_test"]:
            typer.echo(f"image by image: {judgement['paired_test']}")


def _value(what: str, value: Any) -> str:
    """A value of a card, or of its recipe, as a cell."""
    if value is None:
        return "-"
    if isinstance(value, dict) and "accuracy" in value:
        of = f" of {value['images']:,}" if value["images"] else ""
        return f"{100 * value['accuracy']:.2f} %{of}"
    if isinstance(value, dict) and "mean" in value:
        spread = f"{100 * value['mean']:.2f} ± {100 * value['std']:.2f} %"
        return f"{spread} ({value['seeds']} seeds)"
    if isinstance(value, dict):  # something that has a name, and the sha256 of its bytes
        named = next((value[key] for key in ("name", "model", "from") if key in value), None)
        sha256 = value.get("sha256")
        digits = f" (sha256 {sha256[: cards.PIN]}…)" if isinstance(sha256, str) else ""
        return f"{named}{digits}"
    if isinstance(value, list):
        between = "\n" if what == "teachers" else ", "
        return between.join(_value(what, one) for one in value)
    if disk.is_number(value):
        if what.endswith("_seconds"):
            return f"{value:,.1f} s"
        if what == "bytes":
            return f"{value / 1e6:.3g} MB"
        if what in ("parameters", "epochs"):
            return f"{value:,}"
    return str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _judged(judgement: disk.Json) -> str:
    """A line on how far two models are apart, and how far that is chance."""
    model, against = judgement["model"], judgement["against"]
    if judgement["measure"] is None:
        return (
            f"{model} against {against}: by their cards they were not judged by the same images; "
            "the accuracies cannot be compared"
        )
    told = f"{model} against {against}: {judgement['difference_points']:+.2f} points"
    (first, other), (few, more) = judgement["spread_points"], judgement["seeds"]
    if first is not None and other is not None:
        half = judgement["half_width_points"]
        width = "" if half is None else f", ± {half:.2f} (95 %, Welch)"
        return (
            f"{told}{width}, of the means of {more} and {few} seeds, whose spreads are {other:.2f} "
            f"and {first:.2f} points"
        )
    if judgement["half_width_points"] is not None:
        test = judgement["measure"] == "test_accuracy"
        sharper = "so the paired test of `validate` is sharper" if test else "so it is less"
        told += (
            f", ± {judgement['half_width_points']:.2f} (95 %) if each had its own "
            f"{judgement['images']:,} {'test' if test else 'held-out'} images, independent ones; "
            f"they are the same, {sharper}"
        )
    if first is None and other is None:
        return f"{told}; one seed each: another seed would differ, too"
    which, spread = (against, other) if first is None else (model, first)
    return f"{told}; one seed of {which}: another would differ, too (the other's: ± {spread:.2f})"


def _facts(path: Path) -> disk.Json:
    """What an exported file says of itself, its manifest of it, and its proofs."""
    from cifar_deploy.engines import manifest as engine_manifest
    from cifar_deploy.runtimes import onnx_interface

    check_exported(path)
    manifest: disk.Json | None
    if path.suffix == ".engine":
        manifest = engine_manifest.read(path)
        facts = {**manifest, "runs_on": engine_manifest.runs_on(manifest)}
    else:
        manifest = store.read_manifest(path)
        facts = onnx_interface.inspect(path, foreign=True)
    # With a manifest the bytes are those that it names.
    sha256 = manifest["sha256"] if manifest else disk.sha256_of(path)
    try:
        proofs: list[disk.Json] | None = store.read_proofs(path, sha256)
    except UserError:
        proofs = None  # not whole
    return {
        **facts,
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "manifest": manifest is not None,
        "model": (manifest or {}).get("model"),
        "weights_sha256": (manifest or {}).get("weights_sha256"),
        "kept_fp32": (manifest or {}).get("calibration", {}).get("kept_fp32", []),
        "stale": cards.stale(path, cards.card_of(store.ModelFolder(path.parent))),
        "proofs": proofs,
    }


def _file(facts: disk.Json) -> str:
    """What is shown of an exported file."""

    def side(values: list[disk.Json]) -> str:
        return ", ".join(f"{v['name']} {v['dtype']} {v['shape']}".replace("'", "") for v in values)

    built = f"{facts['flavour']} {facts['tensorrt']}" if "flavour" in facts else ""
    kind = built or f"opset {facts['opset']}"
    lines = [
        f"{facts['file']}: {facts['precision']}, {kind}, {facts['bytes'] / 1e6:.3g} MB",
        f"takes      {side(facts['inputs'])}",
        f"gives      {side(facts['outputs'])}",
    ]
    if profiles := facts.get("profiles"):
        lines.append(f"batches    {'; '.join(map(_profile, profiles))}")
    if "runs_on" in facts:
        lines.append(f"runs on    {facts['runs_on']}")
    if counted := facts.get("operators"):
        lines.append(f"operators  {', '.join(f'{kind} {n}' for kind, n in counted.items())}")
    if kept := facts["kept_fp32"]:
        lines.append(f"in fp32    {', '.join(kept)}")
    origin = "no manifest: it is from elsewhere, or was moved without it"
    if facts["manifest"]:
        origin = f"{facts['model']}, weights {facts['weights_sha256']}"
        origin += "; the model has others now, export it again" * facts["stale"]
    lines.append(f"of         {origin}")
    lines += [f"proof      {_proved(proof)}" for proof in facts["proofs"] or ()]
    if not facts["proofs"]:
        state = "not a whole one" if facts["proofs"] is None else "none of these bytes"
        run = store.to_validate(facts["file"])
        if facts["manifest"]:
            lines.append(f"proof      {state}; run: {run}")
        else:  # none is left beside it
            lines.append(f"proof      none: it is no model's; `{run} --reference MODEL` judges it")
    return "\n".join(lines)


def _profile(profile: disk.Json) -> str:
    """The batches of an engine's optimization profile, and the one that it is tuned for."""
    from cifar_deploy.runtimes.protocol import words

    sizes = range(profile["min"], profile["max"] + 1)
    return words([sizes]) + (f", tuned for {profile['opt']}" if len(sizes) > 1 else "")


def _proved(proof: disk.Json) -> str:
    data = proof["data"]
    return (
        f"{proof['verdict']} (margin {proof['margin_points']:g} points): "
        f"{100 * proof['accuracy']:.2f} %, the reference "
        f"{100 * proof['reference_accuracy']:.2f} %, on {data['images']:,} test images of "
        f"{data['name']}, by {proof['runtime']} on {proof['device']}"
    )


def _show(entries: list[disk.Json]) -> None:
    from rich.text import Text

    headings = ("network", "alias", "parameters", "trained: test top-1", "time", "exported")
    table = sheet(headings, ("parameters",), ("time",))
    for entry in entries:
        cells = (
            _name(entry),
            ", ".join(entry["aliases"]),
            f"{entry['parameters']:,}" if entry["parameters"] else "-",
            _top1(entry),
            _time(entry),
            ", ".join(f + " (stale)" * (f in entry["stale"]) for f in entry["exported"]) or "-",
        )
        table.add_row(*map(Text, cells))  # a file's name may hold what rich takes for markup
    wide(120, table).print(table)
    for entry in entries:
        if entry["command"]:
            gone = "" if entry["weights"] else "; its weights are not here"
            known = entry["data"] in (None, "CIFAR-10")
            of = "" if known else f"; its accuracy is of {entry['data']}'s images"
            said = f"{entry['command']}, on {entry['device']}{_begun(entry)}{of}{gone}"
            accuracy = entry[_measure(entry)]
            if (entry["seeds"] or 0) > 1 and accuracy is not None:
                said += f"; the weights are the first seed's, {100 * accuracy:.2f} %"
            typer.echo(f"{entry['model']}: {said}")
        if state := entry["training"]:
            typer.echo(f"{entry['model']}: {TRAINING[state]}")


def _begun(entry: disk.Json) -> str:
    """Which weights a run began with: those of that name may be others by now.

    Where the run that made them is known, also what it cost, and what it began with.
    """
    said = ""
    _, *earlier = cards.runs_of(entry)
    for run in filter(None, earlier):
        known = []
        if isinstance(sha256 := run.get("sha256"), str):
            known.append(f"sha256 {sha256[: cards.PIN]}…")
        epochs, seconds = run.get("epochs"), run.get("wall_seconds")
        if isinstance(epochs, int) and disk.is_number(seconds):
            length = cards.stopped(run) or cards.in_epochs(epochs)
            known.append(f"{length}, {seconds:,.0f} s on {run.get('device')}")
        facts = f" ({'; '.join(known)})" if known else ""
        said += f", begun with {run.get('from')}{facts}"
    return said


def _name(entry: disk.Json) -> str:
    model, network = entry["model"], entry["network"]
    return str(model) if network in (model, None) else f"{model} ({network})"


def _time(entry: disk.Json) -> str:
    """The seconds of a model's training, as a cell: of all its runs, where they are known."""
    if entry["wall_seconds"] is None:
        return "-"
    return f"{sum(run['wall_seconds'] for run in entry['chain'] or [entry]):,.0f} s"


def _measure(entry: disk.Json) -> str:
    """By what a model is judged: the images held out where the test images were not looked at."""
    return "holdout_accuracy" if entry["test_accuracy"] is None else "test_accuracy"


def _top1(entry: disk.Json) -> str:
    """Accuracy, spread and length of training, as a cell."""
    if entry["damaged"]:
        return "damaged card"
    measure = _measure(entry)
    accuracy = entry[measure]
    if accuracy is None:
        return "-"
    if entry["epochs"] is None:
        return f"{100 * accuracy:.2f} % (imported)"
    of = " held out" if measure == "holdout_accuracy" else ""
    runs = entry["chain"] or [entry]
    length = cards.in_epochs(*(cards.stopped_epoch(run) or run["epochs"] for run in runs))
    if said := cards.stopped(entry):
        length = said if len(runs) == 1 else f"{length}, {said}"
    mean, spread = (entry[f"{measure}_{key}"] for key in ("mean", "std"))
    if mean is None or spread is None:
        return f"{100 * accuracy:.2f} %{of} ({length}, 1 seed)"
    return f"{100 * mean:.2f} ± {100 * spread:.2f} %{of} ({length}, {entry['seeds']} seeds)"
