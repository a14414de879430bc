"""The official CIFAR-10 pickles, read without letting a pickle do anything.

A pickle is a program. This unpickler admits the arrays, lists and strings that the official files
hold, and builds the arrays itself; any other name in the file stops it.
"""

import io
import math
import pickle
from typing import Any

import numpy as np

from cifar_deploy.errors import UserError


class _Dtype:
    """Stands for numpy.dtype: keeps its name, does nothing else."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for numpy.ndarray: takes the state numpy writes, of bytes only."""

    values: np.ndarray[Any, np.dtype[np.uint8]]

    def __setstate__(self, state: Any) -> None:
        match state:
            case (int(), tuple() as shape, _Dtype(code="u1" | "|u1"), False, bytes() | str() as raw):
                data = raw.encode("latin1") if isinstance(raw, str) else raw
                if math.prod(shape) != len(data) or not all(isinstance(n, int) for n in shape):
                    raise pickle.UnpicklingError("an array's shape does not fit its bytes")
                self.values = np.frombuffer(data, np.uint8).reshape(shape)
            case _:
                raise pickle.UnpicklingError("an array that is not of bytes")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    """What Python 3 writes for bytes in a protocol-2 pickle."""
    if codec not in ("latin1", "latin-1") or not isinstance(text, str):
        raise pickle.UnpicklingError(f"a string in codec {codec!r}")
    return text.encode("latin1")


_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def load(raw: bytes, name: str) -> dict[str, Any]:
    """The dictionary in an official CIFAR pickle: uint8 arrays, lists and strings under str keys.

    `name` is used in messages. Raises UserError for anything else in the file, and runs none of it.
    """
    try:
        value = _Unpickler(io.BytesIO(raw), encoding="latin1").load()
    except Exception as error:  # a hostile pickle can make the unpickler raise anything
        raise UserError(
            f"{name} is not a CIFAR-10 batch: {error}. Nothing in it was run; get the official file"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{name} is not a CIFAR-10 batch: it holds a {type(value).__name__}")

    def text(key: Any) -> str:
        return key.decode("latin1") if isinstance(key, bytes) else str(key)

    return {text(k): v.values if isinstance(v, _Array) else v for k, v in value.items()}
