"""What each class of TensorRT's Python bindings has, as JSON: python tensorrt_names.py FOLDER

The library is NVIDIA's alone to give, its bindings are on PyPI. They call it only when they are
called themselves, so that a library with nothing in it is enough to look at them. FOLDER is where
they are installed.
"""

import ctypes
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# The library's C functions; what else the bindings lack is Python's or the system's.
FUNCTIONS = r"\b((?:create|get|initLib)\w+)$"


def said(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def stand_in(bindings: Path) -> None:
    """Load a library of each name that the bindings need, with the functions that they look for."""
    needed = re.findall(r"\[(libnv\w+\.so\.\d+)\]", said("readelf", "--dynamic", bindings))
    undefined = said("nm", "--dynamic", "--undefined-only", bindings)
    functions = re.findall(FUNCTIONS, undefined, re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.c")
        source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in functions))
        for name in needed:
            made = Path(folder, name)
            said("cc", "-shared", "-fno-builtin", f"-Wl,-soname,{name}", source, "-o", made)
            ctypes.CDLL(str(made), mode=ctypes.RTLD_GLOBAL)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    stand_in(Path(sys.argv[1], "tensorrt_bindings", "tensorrt.so"))
    sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
    module = importlib.import_module("tensorrt_bindings")
    kinds = {name: kind for name, kind in vars(module).items() if isinstance(kind, type)}
    names = {name: sorted(dir(kind)) for name, kind in kinds.items()}
    print(json.dumps({"version": module.__version__, "names": names}))
