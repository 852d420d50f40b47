"""Pickles of plain data, read without unpickling: dicts, lists, tuples, strings, numbers and arrays of numbers.

A pickle is a program, and Python's own reader runs whatever it names. Here its steps are taken one by one, only those that
build such data, so that a file from anywhere can do no more than be refused.
"""
from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saccade.errors import SaccadeError

MAX_BYTES = 1 << 24  # the ground truth of revisited Oxford and Paris is far below; each byte may become an object
_DTYPE = re.compile(r"[biuf][1248]")

# Steps that push what stands in the file itself; the second of each pair, what stands for a step without an argument.
_VALUES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8",
})  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_plain_pickle(path: Path) -> Any:
    """Return what a pickle holds; raises SaccadeError for one that holds anything but plain data."""
    if path.exists() and not path.is_file():  # a pipe would be waited for, and a device has no end
        raise SaccadeError(f"{path} is no file; give the official one")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SaccadeError(f"{path} has {size} bytes, and at most {MAX_BYTES} are read; is it the right file?")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise SaccadeError(f"{path}: no such file") from error
    except OSError as error:
        raise SaccadeError(f"cannot read {path}: {error.strerror}") from error
    try:
        return _interpreted(content)
    except SaccadeError as error:
        raise SaccadeError(f"{path}: {error}; get the official file") from error
    except Exception as error:  # a damaged program fails in any way, from an empty stack to a wrong argument
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SaccadeError(f"{path}: damaged, or not a pickle ({reason}); get the official file") from error


@dataclass
class _Dtype:
    """A NumPy dtype on the way."""

    text: str
    order: str = "="

    def build(self, state: tuple[Any, ...]) -> None:
        """Take what `dtype.__setstate__` gets."""
        self.order = state[1]

    @property
    def value(self) -> np.dtype[Any]:
        """Return it; raises SaccadeError for one that is no number."""
        if not isinstance(self.text, str) or not _DTYPE.fullmatch(self.text):
            raise SaccadeError(f"holds an array of {self.text!r}, and only numbers are read")
        return np.dtype(("=" if self.order == "|" else self.order) + self.text)


@dataclass
class PlainArray:
    """An array in what is returned; its values are read-only."""

    values: np.ndarray = field(default_factory=lambda: np.empty(0))

    def build(self, state: tuple[Any, ...]) -> None:
        """Take what `ndarray.__setstate__` gets."""
        _, shape, dtype, by_columns, raw = state
        self.values = _array(raw, dtype, shape, "F" if by_columns else "C").values


def _array(raw: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str) -> PlainArray:
    values = np.frombuffer(raw, dtype.value)  # no copy: a pickle may name the same bytes a million times
    return PlainArray(values.reshape(shape, order="F" if order == "F" else "C"))


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    (value,) = np.frombuffer(raw, dtype.value)
    return value.item()


_NUMPY: dict[str, Callable[..., Any]] = {
    "multiarray _reconstruct": lambda kind, shape, code: PlainArray(),
    "multiarray scalar": _scalar,
    "numeric _frombuffer": _array,
}
_ENCODE = "_codecs encode"  # how protocol 2 writes bytes
# What a pickle may name, and what is called instead.
_NAMED: dict[str, Callable[..., Any] | None] = {
    "numpy ndarray": None,  # only an argument
    "numpy dtype": lambda text, align=False, copy=True: _Dtype(text),
    _ENCODE: None,  # taken by the machine, which counts what it makes
    **dict.fromkeys(("__builtin__ bytes", "builtins bytes"), lambda: b""),  # and no bytes at all
    **{f"numpy.{core}.{name}": call for core in ("core", "_core") for name, call in _NUMPY.items()},
}


@dataclass(frozen=True)
class _Named:
    """What stands on the stack for a name."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        call = _NAMED[self.name]
        if call is None:
            raise SaccadeError(f"calls {self.name}, which plain data do not")
        return call(*arguments)


@dataclass
class _Machine:
    """The stack of a pickle, the marks in it, and what is remembered."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memory: dict[int, Any] = field(default_factory=dict)
    encoded_bytes: int = 0

    def above_mark(self) -> list[Any]:
        """Take all that lies above the last mark."""
        place = self.marks.pop()
        found = self.stack[place:]
        del self.stack[place:]
        return found

    def put_items(self, items: list[Any]) -> None:
        """Put alternating keys and values into the dict on top."""
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int)):  # hashing a deep tuple would end the process
                raise SaccadeError(f"holds a dict with a {type(key).__name__} for a key")
            self.top(dict)[key] = value

    def top(self, kind: type) -> Any:
        """Return the top, which must be of a kind."""
        if not isinstance(self.stack[-1], kind):
            raise SaccadeError(f"puts something into a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def name(self, name: Hashable) -> None:
        """Push a name."""
        if name not in _NAMED:
            raise SaccadeError(f"names {str(name)[:80]!r}, which plain data do not need")
        self.stack.append(_Named(str(name)))

    def reduce(self) -> None:
        """Call what lies below its arguments."""
        arguments, call = self.stack.pop(), self.stack.pop()
        if not isinstance(call, _Named):
            raise SaccadeError(f"calls a {type(call).__name__}")
        self.stack.append(self.encoded(arguments[0]) if call.name == _ENCODE else call(*arguments))

    def encoded(self, text: str) -> bytes:
        """Return the bytes that a text stands for, no more in all than a file may have."""
        self.encoded_bytes += len(text)
        if self.encoded_bytes > MAX_BYTES:
            raise SaccadeError("grows beyond its own size")
        return text.encode("latin-1")

    def build(self) -> None:
        """Complete an array or a dtype."""
        state = self.stack.pop()
        if isinstance(state[-1], str):  # Python 2 wrote raw values as text
            state = (*state[:-1], self.encoded(state[-1]))
        if not isinstance(self.stack[-1], (PlainArray, _Dtype)):
            raise SaccadeError(f"sets the state of a {type(self.stack[-1]).__name__}")
        self.stack[-1].build(state)


_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda machine, argument: None,
    "FRAME": lambda machine, argument: None,
    "MARK": lambda machine, argument: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, argument: machine.stack.append(tuple(machine.above_mark())),
    "LIST": lambda machine, argument: machine.stack.append(machine.above_mark()),
    "APPEND": lambda machine, argument: _append(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine, argument: _append(machine, machine.above_mark()),
    "DICT": lambda machine, argument: _dict(machine, machine.above_mark()),
    "SETITEM": lambda machine, argument: machine.put_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, argument: machine.put_items(machine.above_mark()),
    "MEMOIZE": lambda machine, argument: machine.memory.update({len(machine.memory): machine.stack[-1]}),
    "GLOBAL": lambda machine, argument: machine.name(argument),
    "STACK_GLOBAL": lambda machine, argument: machine.name(" ".join([machine.stack.pop(), machine.stack.pop()][::-1])),
    "REDUCE": lambda machine, argument: machine.reduce(),
    "BUILD": lambda machine, argument: machine.build(),
    **dict.fromkeys(
        ("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, argument: machine.memory.update({argument: machine.stack[-1]})
    ),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda machine, argument: machine.stack.append(machine.memory[argument])
    ),
}


def _append(machine: _Machine, items: list[Any]) -> None:
    machine.top(list).extend(items)


def _dict(machine: _Machine, items: list[Any]) -> None:
    machine.stack.append({})
    machine.put_items(items)


def _interpreted(content: bytes) -> Any:
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in _VALUES:
            machine.stack.append(argument)
        elif opcode.name in _CONSTANTS:
            machine.stack.append(_CONSTANTS[opcode.name])
        elif opcode.name in _EMPTY:
            machine.stack.append(_EMPTY[opcode.name]())
        elif opcode.name in _TUPLES:
            count = _TUPLES[opcode.name]
            machine.stack[-count:] = [tuple(machine.stack[-count:])]
        elif opcode.name in _STEPS:
            _STEPS[opcode.name](machine, argument)
        elif opcode.name != "STOP":
            raise SaccadeError(f"holds the step {opcode.name}, which plain data do not need")
    (result,) = machine.stack
    return result
