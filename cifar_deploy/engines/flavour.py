"""TensorRT and TensorRT for RTX: the same classes in two modules, and which one to use."""

import functools
import importlib
import threading
from types import ModuleType
from typing import Any

from cifar_deploy.errors import UserError

TENSORRT, RTX = "tensorrt", "tensorrt-rtx"
NAMES = (TENSORRT, RTX)
AUTO = "auto"
TITLES = {TENSORRT: "TensorRT", RTX: "TensorRT for RTX"}
# Without the meta package only the bindings' own module is there.
MODULES = {TENSORRT: ("tensorrt",), RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}
INSTALL = {
    TENSORRT: "pip install 'cifar-deploy[tensorrt]', which fetches it from NVIDIA's own index",
    RTX: "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings (Linux x86-64, CUDA 13)",
}


class Flavour:
    """One of the two, imported: `module` is what all TensorRT calls go through."""

    def __init__(self, name: str, module: ModuleType) -> None:
        self.name = name
        self.module: Any = module
        self.title = TITLES[name]
        self.version = str(module.__version__)
        # TensorRT keeps the first logger it is given and complains of another.
        self.log: Any = _listener(self.module)

    @property
    def major(self) -> int:
        """The first number of its version."""
        return int(self.version.partition(".")[0])

    def __str__(self) -> str:
        return f"{self.title} {self.version}"


@functools.cache
def load(name: str) -> Flavour:
    """Import "tensorrt" or "tensorrt-rtx".

    Raises UserError where it is not installed or its libraries do not load, with what to install.
    """
    reason = "not installed"
    for module in MODULES[name]:
        try:
            return Flavour(name, importlib.import_module(module))
        except ModuleNotFoundError as error:
            if error.name != module:
                reason = str(error)
        except (ImportError, OSError) as error:  # there, but its shared libraries are not
            reason = f"{module} does not load ({str(error).splitlines()[0]})"
    raise UserError(f"{name} is not to be had here: {reason}; {INSTALL[name]}")


def choose(wanted: str, gpu: bool) -> tuple[Flavour, str]:
    """The flavour to build with, and why.

    "auto" is TensorRT where it imports and there is a CUDA device (`gpu`), for it builds on the
    GPU that it builds for; otherwise TensorRT for RTX, which needs none. Raises UserError where
    the flavour is not to be had, or needs a GPU.
    """
    if wanted == AUTO:
        if not gpu:
            return load(RTX), "no CUDA device here; tensorrt-rtx builds without one"
        try:
            return load(TENSORRT), "it is installed and there is a CUDA device"
        except UserError:
            return load(RTX), "tensorrt is not installed"
    if wanted not in NAMES:
        raise UserError(f"--flavour {wanted}: it can be {AUTO}, {' or '.join(NAMES)}")
    if wanted == TENSORRT and not gpu:
        raise UserError(
            "tensorrt builds an engine on the GPU it is for, and there is no CUDA device here; "
            "use --flavour tensorrt-rtx, or run this on the target"
        )
    return load(wanted), "as asked"


def _listener(module: Any) -> Any:
    """A logger that keeps what went wrong, for the message to the user."""

    class Listener(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._lock = threading.Lock()
            self._lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                with self._lock:
                    self._lines.append(message.strip())

        def clear(self) -> None:
            with self._lock:
                self._lines.clear()

        def errors(self) -> list[str]:
            """What was logged as an error since `clear`, oldest first."""
            with self._lock:
                return list(self._lines)

        def reason(self) -> str:
            """The first error since `clear`, as one line."""
            return " ".join((self.errors() or ["no reason given"])[0].split())[:300]

    return Listener()
