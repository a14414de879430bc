"""Python in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import cifar_deploy


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(cifar_deploy.__file__).parents[1]),
            **environment,
        },
    )
