"""DLPack capsules without a library: tensors given to and taken from other frameworks without a copy.

The unversioned layout of dmlc/dlpack's dlpack.h, which every framework reads: a capsule named "dltensor" around a
DLManagedTensor, renamed to "used_dltensor" by whoever takes it over, who calls its deleter when done.
"""
from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

CUDA, CUDA_MANAGED = 2, 13  # DLDeviceType
_KINDS = {"i": 0, "u": 1, "f": 2}  # DLDataTypeCode
_NAME = b"dltensor"


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in items; null where dense
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


# Prototypes of our own: setting those of ctypes.pythonapi would change them for the whole process.
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# While a capsule is destroyed it must not be counted as an object again, hence plain pointers.
_dying_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

_given_out: dict[int, tuple[_Managed, Any, Any]] = {}  # struct, its shape, the owner of the memory; until deleted


def _forget(address: int) -> None:
    _given_out.pop(address, None)


def _drop(capsule: int) -> None:
    if _dying_is_valid(capsule, _NAME):  # else somebody has taken it over, and deletes it
        _forget(_dying_pointer(capsule, _NAME))


_delete, _destroy = _Deleter(_forget), _Destructor(_drop)


def capsule_of(address: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[int, int], owner: object) -> Any:
    """Return a capsule of a dense array in memory that `owner` keeps."""
    extents = (ctypes.c_int64 * len(shape))(*shape)
    kind = _DataType(_KINDS[dtype.kind], 8 * dtype.itemsize, 1)
    tensor = _Tensor(address, _Device(*device), len(shape), kind, extents, None, 0)
    managed = _Managed(tensor, None, _delete)
    where = ctypes.addressof(managed)
    _given_out[where] = (managed, extents, owner)
    return _new(where, _NAME, _destroy)


class GuestArray(NamedTuple):
    """An array of somebody else's: strides in bytes, and what has to live as long as the memory is used."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str  # as NumPy spells it: "|u1"
    owner: object


def array_of(capsule: Any) -> GuestArray:
    """Return what a capsule describes. It stays the capsule's, which deletes it when it is dropped."""
    tensor = _Managed.from_address(_pointer(capsule, _NAME)).tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    size = tensor.dtype.bits * tensor.dtype.lanes // 8
    if tensor.strides:
        strides = tuple(tensor.strides[axis] * size for axis in range(tensor.ndim))
    else:
        strides = dense_strides(shape, size)
    letter = {code: letter for letter, code in _KINDS.items()}.get(tensor.dtype.code, "V")
    spelling = f"{'|' if size == 1 else '<'}{letter}{size}"
    return GuestArray((tensor.data or 0) + tensor.byte_offset, shape, strides, spelling, capsule)


def dense_strides(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return the strides in bytes of a dense array with items of `size` bytes."""
    strides = [size]
    for extent in reversed(shape[1:]):
        strides.insert(0, strides[0] * extent)
    return tuple(strides[-len(shape) :]) if shape else ()
