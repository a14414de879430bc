"""The official CIFAR-10 pickles, read without letting a pickle do anything.

A pickle is a program. Python's own unpickler runs it: even where it is allowed no names, a file can
make it call, fill gigabytes of memory or overrun the stack. So the program is only listed here (by
the standard library's pickletools), and the few instructions that lists, strings and byte arrays
need are followed by hand. Anything else in the file stops it.
"""

import math
import pickle
import pickletools
from typing import Any

import numpy as np

from cifar_deploy.errors import UserError

# Instructions that push their argument, as Python writes them in protocols 2 to 4.
_VALUES = frozenset(
    (
        *("NONE", "BININT", "BININT1", "BININT2", "LONG1"),
        *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
        *("BINUNICODE", "SHORT_BINUNICODE"),
    )
)
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}

# The only names admitted. They are never looked up: `_call` knows what each stands for.
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): "_reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "_reconstruct",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
}


class _Name(str):
    """One of the names in `_NAMES`; no string in a file becomes one."""


class _Dtype:
    """Stands for a numpy.dtype: remembers its code."""

    def __init__(self, code: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code


class _Array:
    """Stands for a numpy.ndarray until its state, which must be of bytes, is there."""

    values: np.ndarray[Any, np.dtype[np.uint8]]

    def fill(self, state: object) -> None:
        """Take the state that numpy writes: version, shape, dtype, order, bytes."""
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
                raise pickle.UnpicklingError("it holds an array that is not of bytes")


def load(raw: bytes, name: str) -> dict[str, Any]:
    """The dictionary in an official CIFAR pickle: uint8 arrays, lists and strings under str keys.

    `name` is used in messages. Raises UserError for anything else in the file, and runs none of it.
    """
    try:
        value = _follow(raw)
        if not isinstance(value, dict):
            raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
        return {k: v.values if isinstance(v, _Array) else v for k, v in value.items()}
    except Exception as error:  # a broken list of instructions can raise anything
        raise UserError(
            f"{name} is not a CIFAR-10 batch: {error}. Nothing in it was run; get the official file"
        ) from error


def _follow(raw: bytes) -> object:
    """What the pickle builds: the pickle machine of the admitted instructions."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int) -> list[Any]:
        start = len(stack) - count
        if count < 0 or start < (marks[-1] if marks else 0):
            raise pickle.UnpicklingError("its instructions do not fit together")
        items = stack[start:]
        del stack[start:]
        return items

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        return pop(len(stack) - start)

    for instruction, argument, _ in pickletools.genops(raw):
        match instruction.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                marks.append(len(stack))
            case code if code in _VALUES:
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE" as code:
                stack.append(code == "NEWTRUE")
            case code if code in _EMPTY:
                stack.append(_EMPTY[code]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as code:
                stack.append(tuple(pop(int(code[-1]))))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "APPEND" | "APPENDS" as code:
                items = pop(1) if code == "APPEND" else pop_to_mark()
                _expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS" as code:
                items = pop(2) if code == "SETITEM" else pop_to_mark()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _expect(stack[-1], dict)[_text(key)] = value
            case "BINPUT" | "LONG_BINPUT":
                memo[int(argument or 0)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument or 0)])
            case "GLOBAL":
                stack.append(_name(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_name(*pop(2)))
            case "REDUCE":
                function, arguments = pop(2)
                stack.append(_call(_expect(function, _Name), *_expect(arguments, tuple)))
            case "BUILD":
                (state,) = pop(1)
                if not isinstance(stack[-1], _Dtype):  # its state is byte order and flags
                    _expect(stack[-1], _Array).fill(state)
            case code:
                raise pickle.UnpicklingError(f"it holds the instruction {code}")
    (result,) = pop(1)
    return result


def _name(module: object, name: object) -> _Name:
    if not (isinstance(module, str) and isinstance(name, str) and (module, name) in _NAMES):
        asked = (
            f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name"
        )
        raise pickle.UnpicklingError(f"it asks for {asked}")
    return _Name(_NAMES[module, name])


def _call(name: _Name, *arguments: object) -> object:
    match (str(name), *arguments):
        case ("_reconstruct", _Name(), *_):
            return _Array()
        case ("dtype", str() | bytes() as code, *_):
            return _Dtype(code)
        case ("encode", str() as text, "latin1" | "latin-1"):
            return text.encode("latin1")  # how Python 3 writes bytes in protocol 2
    raise pickle.UnpicklingError(f"it calls {name} with foreign arguments")


def _text(key: object) -> str:
    # Only strings: hashing a tuple of tuples of tuples can take forever.
    return key.decode("latin1") if isinstance(key, bytes) else str(_expect(key, str))


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise pickle.UnpicklingError("its instructions do not fit together")
    return value
