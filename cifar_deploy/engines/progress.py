"""What a person sees of a build: nested bars on a terminal, nothing anywhere else."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from cifar_deploy.terminal import watched


class Bars:
    """A `build.Watch` that draws on standard error. A context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            disable=not watched(console),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._depth: dict[str, int] = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A bar for the phase, set in under its parent's."""
        depth = self._depth[phase] = self._depth.get(parent or "", -1) + 1
        self._tasks[phase] = self._progress.add_task("  " * depth + phase, total=steps)

    def step(self, phase: str, done: int) -> None:
        """Move its bar."""
        if (task := self._tasks.get(phase)) is not None:
            self._progress.update(task, completed=done)

    def finish(self, phase: str) -> None:
        """Take its bar away."""
        if (task := self._tasks.pop(phase, None)) is not None:
            self._progress.remove_task(task)
