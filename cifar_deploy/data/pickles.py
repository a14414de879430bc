"""The official CIFAR-10 pickles, read without letting a pickle do anything.

A pickle is a program. This unpickler admits the arrays, lists and strings that the official files
hold, and builds the arrays itself; any other name or instruction in the file stops it.
"""

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

from cifar_deploy.errors import UserError

# What Python writes in protocols 2 to 4 for a dictionary of arrays, lists and strings.
_INSTRUCTIONS = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
        *("MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
        *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
        *("BINUNICODE", "SHORT_BINUNICODE"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    )
)
_LARGEST_MEMO = 1 << 20  # an official batch numbers some 10,000 things


class _Stand:
    """Stands for a name in the file. As an instance or as the class, it takes no foreign state."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("state for a thing that has none")


class _Dtype(_Stand):
    """Stands for numpy.dtype: keeps its name, does nothing else."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        pass


class _Array(_Stand):
    """Stands for numpy.ndarray: takes the state numpy writes, of bytes only."""

    values: np.ndarray[Any, np.dtype[np.uint8]]

    def __setstate__(self, state: object) -> None:
        match state:
            case (
                int(),
                tuple() as shape,
                _Dtype(code="u1" | "|u1"),
                False,
                bytes() | str() as raw,
            ):
                data = raw.encode("latin1") if isinstance(raw, str) else raw
                if not all(isinstance(n, int) for n in shape) or math.prod(shape) != len(data):
                    raise pickle.UnpicklingError("an array's shape does not fit its bytes")
                self.values = np.frombuffer(data, np.uint8).reshape(shape)
            case _:
                raise pickle.UnpicklingError("an array that is not of bytes")


class _Reconstruct(_Stand):
    """Stands for numpy's function of that name: an array to be filled."""

    def __new__(cls, *_: object) -> _Array:  # type: ignore[misc]
        return _Array()


class _Encode(_Stand):
    """Stands for codecs.encode, which Python 3 writes for bytes in a protocol-2 pickle."""

    def __new__(cls, text: object, codec: object = "latin1") -> bytes:  # type: ignore[misc]
        if codec not in ("latin1", "latin-1") or not isinstance(text, str):
            raise pickle.UnpicklingError(f"a string in codec {codec!r}")
        return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], type[_Stand]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Stand]:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _check(raw: bytes) -> None:
    """Go through the instructions without following any.

    Those that no official file needs are refused, and so is a memo entry numbered so high that the
    unpickler would take gigabytes of memory for the table.
    """
    for instruction, argument, _ in pickletools.genops(raw):
        if instruction.name not in _INSTRUCTIONS:
            raise pickle.UnpicklingError(f"it holds the instruction {instruction.name}")
        if instruction.name.endswith("PUT") and int(argument or 0) > _LARGEST_MEMO:
            raise pickle.UnpicklingError("a memo entry out of all proportion")


def load(raw: bytes, name: str) -> dict[str, Any]:
    """The dictionary in an official CIFAR pickle: uint8 arrays, lists and strings under str keys.

    `name` is used in messages. Raises UserError for anything else in the file, and runs none of it.
    """
    try:
        _check(raw)
        value = _Unpickler(io.BytesIO(raw), encoding="latin1").load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
        return {_text(key): _plain(entry) for key, entry in value.items()}
    except Exception as error:  # a hostile pickle can make the unpickler raise anything
        raise UserError(
            f"{name} is not a CIFAR-10 batch: {error}. Nothing in it was run; get the official file"
        ) from error


def _text(key: object) -> str:
    if not isinstance(key, (bytes, str)):
        raise pickle.UnpicklingError(f"a key that is a {type(key).__name__}")
    return key.decode("latin1") if isinstance(key, bytes) else key


def _plain(entry: object) -> object:
    return entry.values if isinstance(entry, _Array) else entry
