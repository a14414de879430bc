"""What the scripts here share: the option --json and what is written then, and how they end."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from cifar_deploy import device as machine
from cifar_deploy import disk
from cifar_deploy.errors import UserError


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that has --json, and shows a script's `doc`; `command` becomes the one that runs."""
    shown = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=doc, formatter_class=shown)
    made.add_argument("--json", type=Path, help="also write the results here")
    made.set_defaults(command=" ".join(["python", *sys.argv]))
    return made


def keep(options: argparse.Namespace, device: torch.device, result: disk.Json) -> None:
    """Write `result` to the file of --json, if it was given, with the command and the machine."""
    if options.json:
        facts = {"command": options.command, "device": machine.describe(device)}
        disk.write_json(options.json, {**facts, "versions": machine.versions(), **result})


def run(main: Callable[[], int | None]) -> None:
    """Run a script, which ends with the status that `main` returns, or 2 for a UserError."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
