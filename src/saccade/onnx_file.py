"""Does an ONNX file hold all its weights itself? Read from the file's own fields, without onnx and without the weights.

ONNX may keep a tensor in another file ("external data"), which no hash of this one covers and engines open on their own.
"""
from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

# The messages of onnx.proto that can hold tensors: field number -> message.
MESSAGES = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of a tensor: where its file is, and 1 where it has one
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
MAX_DEPTH = 100  # of graphs inside graphs, as protobuf itself has it


def is_whole(path: Path) -> bool:
    """Whether all weights lie in the file; False too for bytes that are no ONNX file."""
    with path.open("rb") as file:
        try:
            return _is_whole(file, "model", path.stat().st_size)
        except ValueError:
            return False


def _is_whole(file: BinaryIO, message: str, end: int, depth: int = 0) -> bool:
    """Read one message up to `end`; raises ValueError where it is none."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    while file.tell() < end:
        field, kind = divmod(_varint(file), 8)
        number = _length(file, kind)
        if message == "tensor" and (field == EXTERNAL_DATA or (field == DATA_LOCATION and number)):
            return False
        if kind == VARINT:
            continue
        after = file.tell() + number
        if after > end:
            raise ValueError("a field ends behind its message")
        inner = MESSAGES[message].get(field)
        if kind == LENGTH and inner and not _is_whole(file, inner, after, depth + 1):
            return False
        file.seek(after)
    return True


def _length(file: BinaryIO, kind: int) -> int:
    """Return how many bytes a field's value has from here on; of a varint, the value."""
    if kind in (VARINT, LENGTH):
        return _varint(file)
    if kind not in (EIGHT_BYTES, FOUR_BYTES):
        raise ValueError("no field of onnx.proto")
    return 8 if kind == EIGHT_BYTES else 4


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("the file ends in a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("no number of 64 bits")
