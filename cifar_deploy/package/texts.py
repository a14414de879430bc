"""The texts of a package, from the templates in this room; what every kind of package carries."""

import ast
import importlib
import json
from pathlib import Path
from typing import Any

from cifar_deploy import __version__, architectures
from cifar_deploy.cards import begun, read_card, runs_of, taught_from
from cifar_deploy.disk import Json
from cifar_deploy.engines import flavour
from cifar_deploy.errors import UserError, points
from cifar_deploy.package.manifest import OWN, PROOF
from cifar_deploy.package.source import Source
from cifar_deploy.package.vectors import Vectors
from cifar_deploy.package.write import Contents
from cifar_deploy.store import shipped


def render(template: str, **values: Any) -> bytes:
    """The text that `template` gives with `values`, in UTF-8."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # pbtxt takes the same escapes as JSON, but no \\u for what UTF-8 can say.
    environment.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    environment.filters["bound"] = lambda loss: points(loss / 100, 3)
    return environment.get_template(template).render(**values).encode(errors="backslashreplace")


def labels(source: Source) -> bytes:
    """`labels.txt`: a class name a line."""
    return "".join(f"{name}\n" for name in source.classes).encode()


def common(source: Source, vectors: Vectors | None) -> Contents:
    """Manifest, proof, licence and notices."""
    contents = {
        OWN: _json(source.manifest),
        "LICENSE": shipped("LICENSE").read_bytes(),
        "NOTICE": _notice(source, vectors),
    }
    if source.proof:
        contents[PROOF] = _json(source.proof)
    return contents


def facts(source: Source) -> dict[str, Any]:
    """What every README says."""
    smallest, largest = source.batches
    title = flavour.TITLES.get(source.backend, "ONNX")
    return {
        "source": source,
        "model": source.folder.name,
        "proof": source.proof,
        "title": title,
        "kind": f"{title} engine" if source.engine else title,
        "smallest": smallest,
        "largest": largest,
        "version": __version__,
    }


def _notice(source: Source, vectors: Vectors | None) -> bytes:
    home = architectures.NETWORKS.get(source.network)
    origin = _docstring(home) if home else ""
    card = read_card(source.folder)
    trained_on = card.get("data", {}).get("name")
    if not trained_on:
        raise UserError(
            f"{source.folder.card} does not say what the weights were trained on; restore it or "
            "train again"
        )
    return render(
        "NOTICE.j2",
        origin=origin.strip().splitlines()[0] if origin.strip() else "",
        trained_on=trained_on,
        imported=card.get("imported", {}).get("from"),
        begun=begun(card),
        teachers=_teachers(card),
        teachers_from=list(dict.fromkeys(taught_from(card))),
        vectors=vectors,
        **facts(source),
    )


def _docstring(module: str) -> str:
    """What a module's source says of it: `python -OO` forgets it."""
    file = importlib.import_module(module).__file__
    return ast.get_docstring(ast.parse(Path(file or "").read_text(encoding="utf-8"))) or ""


def _teachers(card: Json) -> list[str]:
    """The names of all that the weights were taught by, in the last run and before it."""
    found = [teacher["model"] for run in runs_of(card) for teacher in run.get("teachers", [])]
    return list(dict.fromkeys(found))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(
        errors="backslashreplace"
    )
