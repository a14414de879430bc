"""The libraries that run files tell their makers nothing of it."""

from pathlib import Path

import pytest
from processes import python

RUN = """
import os
os.environ.pop("ORT_DISABLE_TELEMETRY", None)  # this test's own process has it
from cifar_deploy import doctor
print({call})
"""


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("onnxruntime", 'doctor._onnxruntime("CPUExecutionProvider")'),
        ("openvino", "doctor._openvino()"),
    ],
)
def test_a_run_leaves_nothing_for_its_maker(library: str, call: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    done = python("-c", RUN.format(call=call), HOME=str(tmp_path), XDG_CACHE_HOME="")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*")) == []
