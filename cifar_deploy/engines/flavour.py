"""TensorRT and TensorRT for RTX: the same classes in two modules, and which one to use."""

import collections
import contextlib
import ctypes
import functools
import importlib
import re
import threading
from importlib import metadata
from types import ModuleType
from typing import Any

from cifar_deploy.errors import UserError, one_line

TENSORRT, RTX = "tensorrt", "tensorrt-rtx"
NAMES = (TENSORRT, RTX)
AUTO = "auto"
TITLES = {TENSORRT: "TensorRT", RTX: "TensorRT for RTX"}
# Without the meta package only the bindings' own module is there.
MODULES = {TENSORRT: ("tensorrt",), RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}
# What this program calls is there from these versions on.
OLDEST = {TENSORRT: (10, 13), RTX: (1, 7)}
WARNINGS = 1000  # that are kept
# In TensorRT's words, CUDA's (cudaErrorMemoryAllocation is number 2) and its driver's.
OUT_OF_MEMORY = r"(?i)out[ _]?of[ _]?memory|cuda error 2\b"
INSTALL = {
    TENSORRT: "pip install 'cifar-deploy[tensorrt]', which fetches it from NVIDIA's own index",
    RTX: "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings (Linux, CUDA 13)",
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
        return numbers(self.version)[0]

    @functools.cached_property
    def cuda(self) -> str | None:
        """The CUDA version, as "13", that the library's wheel is for by its name; else None."""
        names = {str(found.name).replace("_", "-") for found in metadata.distributions()}
        named = [re.fullmatch(rf"{self.name}-cu(\d+)-libs", name) for name in names]
        versions = [match[1] for match in named if match]
        return versions[0] if len(versions) == 1 else None  # of two one has replaced the other

    def make(self, kind: str, *arguments: Any) -> Any:
        """One of the library's objects that need its driver: a "Builder", a "Runtime".

        Raises UserError, with the library's reason, where it refuses.
        """
        self.log.clear()
        with contextlib.suppress(TypeError):  # so bindings tell of an object that was not made
            made = getattr(self.module, kind)(*arguments)
            if not self.log.errors():
                return made
            # TensorRT 11.4's give one that has nothing behind it. To use it ends the process, and
            # so does to free it.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
        raise UserError(
            f"{self} does not start here: {self.log.reason()}; see `cifar-deploy doctor`"
        )

    def __str__(self) -> str:
        return f"{self.title} {self.version}"


def numbers(version: str) -> list[int]:
    """ "10.13.2.6" as numbers; what follows them, as in "11.0.0.dev", does not count."""
    found = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in found[0].split(".")] if found else [0]


def load(name: str) -> Flavour:
    """Import "tensorrt" or "tensorrt-rtx".

    Raises UserError where it is not installed, is too old or its libraries do not load, with what
    to install.
    """
    found = seek(name)
    if isinstance(found, Flavour):
        return found
    raise UserError(f"{name} is not to be had here: {found}; {INSTALL[name]}")


@functools.cache
def seek(name: str) -> Flavour | str:
    """The flavour, or why it is not to be had."""
    reason = "not installed"
    for name_of_module in MODULES[name]:
        try:
            module = importlib.import_module(name_of_module)
        except ModuleNotFoundError as error:
            if error.name != name_of_module:
                reason = str(error)
        except (ImportError, OSError) as error:  # there, but its shared libraries are not
            reason = f"{name_of_module} does not load ({one_line(error)})"
        else:
            oldest = OLDEST[name]
            if tuple(numbers(module.__version__)) >= oldest:
                return Flavour(name, module)
            wanted = ".".join(map(str, oldest))
            reason = f"{name_of_module} {module.__version__} is here, {wanted} is the oldest known"
    return reason


def choose(wanted: str, gpu: bool) -> tuple[Flavour, str]:
    """The flavour to build with, and why.

    "auto" is TensorRT where it imports and there is a CUDA device (`gpu`), for it builds on the
    GPU that it builds for; otherwise TensorRT for RTX, which needs none. Raises UserError where
    the flavour is not to be had, or needs a GPU.
    """
    if wanted == AUTO:
        if not gpu:
            return load(RTX), "no CUDA device here; tensorrt-rtx builds without one"
        found = seek(TENSORRT)
        if isinstance(found, Flavour):
            return found, "it is installed and there is a CUDA device"
        return load(RTX), f"tensorrt is not to be had here: {found}"
    if wanted not in NAMES:
        raise UserError(f"--flavour {wanted}: it can be {AUTO}, {' or '.join(NAMES)}")
    if wanted == TENSORRT and not gpu:
        raise UserError(
            "tensorrt builds an engine on the GPU it is for, and there is no CUDA device here; "
            "use --flavour tensorrt-rtx, or run this on the target"
        )
    return load(wanted), "as asked"


def _listener(module: Any) -> Any:
    """A logger that keeps what went wrong, and warnings, for the message to the user."""

    class Listener(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._lock = threading.Lock()
            self._lines: list[str] = []
            # Some come with every inference.
            self._warnings: collections.deque[str] = collections.deque(maxlen=WARNINGS)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                with self._lock:
                    self._lines.append(message.strip())
            elif severity == module.ILogger.WARNING:
                with self._lock:
                    self._warnings.append(message.strip())

        def clear(self) -> None:
            with self._lock:
                self._lines.clear()
                self._warnings.clear()

        def errors(self) -> list[str]:
            """What was logged as an error since `clear`, oldest first."""
            with self._lock:
                return list(self._lines)

        def warnings(self) -> list[str]:
            """The last warnings since `clear`, oldest first."""
            with self._lock:
                return list(self._warnings)

        def out_of_memory(self) -> bool:
            """Whether an error since `clear` speaks of memory that is full."""
            return any(re.search(OUT_OF_MEMORY, line) for line in self.errors())

        def reason(self) -> str:
            """The first error since `clear`, as one line."""
            return " ".join((self.errors() or ["no reason given"])[0].split())[:300]

    return Listener()
