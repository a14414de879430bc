"""What a person sees while many images are read: a bar on a terminal, lines in a log."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cifar_deploy.terminal import watched

# To the bar, or off a terminal to the first line; and from one line to the next.
FIRST_SECONDS, NEXT_SECONDS = 4.0, 30.0


class Reading:
    """A `folder.Watch` that draws on standard error what takes its time. A context manager.

    `clock` gives seconds.
    """

    def __init__(self, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.due = clock, clock() + FIRST_SECONDS
        self.console = Console(file=sys.stderr, quiet=quiet)
        self.progress: Progress | None = None  # from when a bar is drawn

    def __enter__(self) -> "Reading":
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress:
            self.progress.stop()

    def __call__(self, root: Path, done: int, images: int) -> None:
        """Tell that `done` of all `images` in `root` are read."""
        if self.clock() < self.due:
            return
        if not watched(self.console):
            line = f"reading {root}: {done:,} of {images:,} images"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self.due = self.clock() + NEXT_SECONDS
            return
        if not self.progress:
            self.progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.progress.start()
        what = f"reading {root}"
        known = (task.id for task in self.progress.tasks if task.description == what)
        task = next(known, None)
        if task is None:
            task = self.progress.add_task(what, total=images)
        self.progress.update(task, completed=done)
