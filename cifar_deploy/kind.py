"""Which exported files: their format and precision, and those that a model has of a kind."""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from cifar_deploy import store
from cifar_deploy.errors import UserError

Word = TypeVar("Word", bound=StrEnum)


class Format(StrEnum):
    """What to export to."""

    onnx = "onnx"
    trt = "trt"


class Precision(StrEnum):
    """The arithmetic inside an exported graph."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


SUFFIXES = {Format.onnx: ".onnx", Format.trt: ".engine"}


def members(kind: type[Word], what: str, words: str | Iterable[str]) -> tuple[Word, ...]:
    """`words`, one or several, as members of `kind`, each once and in their order.

    Raises UserError, which calls them `what`, for anything that is no member, or for none.
    """
    if isinstance(words, str) or not isinstance(words, Iterable):
        words = [words]
    given = list(words)
    known = [member.value for member in kind]
    wrong = [word for word in given if word not in known]
    if wrong or not given:
        raise UserError(f"{what} {wrong[0] if wrong else given!r}: it can be {', '.join(known)}")
    return tuple(kind(word) for word in dict.fromkeys(given))


def check_exported(path: Path) -> None:
    """Raise UserError where `path` is no exported file: by its name, or since it is not there."""
    if path.suffix not in store.EXPORTED:
        raise UserError(f"{path} is of no exported format; those are: {', '.join(store.EXPORTED)}")
    if not path.exists():
        raise UserError(
            f"cannot read {path}: No such file or directory; give its path, or run: "
            f"{to_export(path)}"
        )


def to_export(file: Path) -> str:
    """The command that makes an exported file of this name, as it is typed.

    It names the model whose folder the file would be in; of any other place it says MODEL.
    """
    folder, name = store.ModelFolder(file.parent), file.name
    own = folder.card.exists() and name.startswith(f"{folder.name}.")
    flavour = re.search(r"\.(tensorrt|tensorrt-rtx)\.engine$", name)
    batch = store.only_batch(name)
    engine = name.endswith((SUFFIXES[Format.trt], ".trt.onnx"))
    others = (one for one in Precision if one is not Precision.fp32)  # which is the default
    kind = Kind(
        (Format.trt,) if engine else (),
        tuple(one for one in others if folder.is_of(name, one)),
    )
    command = kind.command(folder.argument if own else "MODEL")
    command += f" --flavour {flavour[1]}" if flavour else ""
    return command + (f" --batch {batch}" if batch else "")


@dataclass(frozen=True)
class Kind:
    """Which of a model's exported files take part; all where nothing is asked for."""

    formats: tuple[Format, ...] = ()
    precisions: tuple[Precision, ...] = ()

    @classmethod
    def of(
        cls, format: str | Iterable[str] | None, precision: str | Iterable[str] | None
    ) -> "Kind":
        """Those of one word or several of each. None asks for nothing. Raises as `members` does."""
        return cls(
            () if format is None else members(Format, "format", format),
            () if precision is None else members(Precision, "precision", precision),
        )

    @property
    def chosen(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.formats or self.precisions)

    def files(self, folder: store.ModelFolder) -> list[Path]:
        """The files of `folder` that are of this kind."""
        suffixes = tuple(SUFFIXES[format] for format in self.formats) or ("",)
        return [
            file
            for file in folder.exported()
            if file.name.endswith(suffixes)
            and (
                not self.precisions or any(folder.is_of(file.name, one) for one in self.precisions)
            )
        ]

    def needed(self, folder: store.ModelFolder) -> list[Path]:
        """The same. Raises UserError where there is none of something that is asked for."""
        formats: list[tuple[Format, ...]] = [(one,) for one in self.formats] or [()]
        precisions: list[tuple[Precision, ...]] = [(one,) for one in self.precisions] or [()]
        for kind in itertools.starmap(Kind, itertools.product(formats, precisions)):
            if not kind.files(folder):
                raise UserError(
                    f"{folder.path} has no {kind}; run: {kind.command(folder.argument)}"
                )
        return self.files(folder)

    def trained(self) -> list[store.ModelFolder]:
        """The trained models that have such a file. Raises UserError where there is none."""
        if found := [folder for folder in store.trained_models() if self.files(folder)]:
            return found
        raise UserError(
            f"no model with an {self} in {store.models_place()}; run: "
            + ("" if store.trained_models() else "cifar-deploy train NETWORK, then ")
            + self.command("MODEL")
        )

    def of_models(self, files: Sequence[object]) -> None:
        """Raise UserError where files are named and some of a model's are asked for."""
        if files and self.chosen:
            raise UserError(
                f"--format and --precision choose among a model's files, not {files[0]}"
            )

    def command(self, model: str) -> str:
        """What exports files of this kind."""
        chosen = [f"--format {format.value}" for format in self.formats]
        chosen += [f"--precision {precision.value}" for precision in self.precisions]
        return " ".join(["cifar-deploy export", model, *chosen])

    def __str__(self) -> str:
        asked = ["/".join(words) for words in (self.formats, self.precisions) if words]
        return " ".join(["exported", *asked, "file"])
