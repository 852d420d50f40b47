"""libsaccade through ctypes: the structs and constants of saccade.h by hand, and one thin class for each of its handles."""
from __future__ import annotations

import ctypes
import enum
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

I32, I64, U32, F32, F64, SIZE, TEXT, POINTER = (
    ctypes.c_int32, ctypes.c_int64, ctypes.c_uint32, ctypes.c_float, ctypes.c_double, ctypes.c_size_t, ctypes.c_char_p,
    ctypes.c_void_p,
)  # fmt: skip
LogCallback = ctypes.CFUNCTYPE(None, POINTER, I32, TEXT)
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
FITS = ("squash", "crop", "native")
RGB, BGR = 0, 1
INFO, WARNING = 0, 1
FEATURES, CLASSIFY, SEGMENT = 0, 1, 2
LOOKWHERE, BACKBONE = 0, 1
Arrays = dict[str, np.ndarray]
OF_A_LOOK = ("score_map", "raw_score_map", "prefix")  # the outputs that a look has


class Status(enum.IntEnum):
    """saccade_status."""

    OK = 0
    INVALID_ARGUMENT = 1
    NOT_FOUND = 2
    IO_ERROR = 3
    INVALID_BUNDLE = 4
    UNSUPPORTED = 5
    ENGINE_UNAVAILABLE = 6
    ENGINE_FAILED = 7
    BUFFER_TOO_SMALL = 8
    BUSY = 9
    CANCELLED = 10
    NOT_FINITE = 11
    OUT_OF_MEMORY = 12
    CHANGED = 13
    INTERNAL = 99


class NativeError(Exception):
    """A status other than OK, with the library's line."""

    def __init__(self, status: Status, line: str) -> None:
        super().__init__(line)
        self.status = status


class Image(ctypes.Structure):
    """saccade_image."""

    _fields_ = [
        ("pixels", POINTER), ("height", I64), ("width", I64), ("row_stride", I64), ("format", I32), ("reserved", I32),
    ]  # fmt: skip


class Sized(ctypes.Structure):
    """A struct that begins with its own size, as its _INIT macro sets it."""

    def __init__(self, **values: Any) -> None:
        super().__init__(ctypes.sizeof(self), **values)


class Info(Sized):
    """saccade_info."""

    _fields_ = [
        ("struct_size", U32), ("task", I32), ("patch", I32), ("dim", I32), ("prefix", I32), ("classes", I32),
        ("selector_size", I32), ("map_size", I32), ("base_rows", I32), ("base_columns", I32), ("default_height", I32),
        ("default_width", I32), ("default_k", I32), ("reserved", I32), ("mean", F32 * 3), ("std", F32 * 3),
        ("precisions", U32), ("kind", I32), ("heads", I32), ("cls_blocks", I32),
    ]  # fmt: skip


class BuiltEngine(Sized):
    """saccade_built_engine."""

    _fields_ = [
        ("struct_size", U32), ("engine", I32), ("precision", I32), ("runs", I32), ("version", ctypes.c_char * 64),
        ("folder", ctypes.c_char * 128),
    ]  # fmt: skip


class ModelOptions(Sized):
    """saccade_model_options."""

    _fields_ = [
        ("struct_size", U32), ("engine", I32), ("precision", I32), ("device", I32), ("threads", I32), ("streams", I32),
        ("compile", I32), ("reserved", I32), ("engine_library", TEXT), ("log", LogCallback), ("log_user", POINTER),
    ]  # fmt: skip


class RunOptions(Sized):
    """saccade_run_options."""

    _fields_ = [("struct_size", U32), ("fit", I32), ("height", I64), ("width", I64), ("k", I64), ("k_ratio", F64)]


class Sizes(Sized):
    """saccade_sizes."""

    _fields_ = [
        ("struct_size", U32), ("batch", I32), ("rows", I32), ("columns", I32), ("k", I32), ("reserved", I32),
        ("indices", SIZE), ("score_map", SIZE), ("raw_score_map", SIZE), ("prefix", SIZE), ("cls", SIZE), ("logits", SIZE),
        ("tokens", SIZE), ("dense", SIZE), ("attention", SIZE), ("cls_last4", SIZE),
    ]  # fmt: skip


class Outputs(Sized):
    """saccade_outputs."""

    _fields_ = [
        ("struct_size", U32), ("reserved", I32), ("indices", POINTER), ("indices_capacity", SIZE),
        ("score_map", POINTER), ("score_map_capacity", SIZE), ("raw_score_map", POINTER), ("raw_score_map_capacity", SIZE),
        ("prefix", POINTER), ("prefix_capacity", SIZE), ("cls", POINTER), ("cls_capacity", SIZE),
        ("logits", POINTER), ("logits_capacity", SIZE), ("tokens", POINTER), ("tokens_capacity", SIZE),
        ("dense", POINTER), ("dense_capacity", SIZE), ("attention", POINTER), ("attention_capacity", SIZE),
        ("cls_last4", POINTER), ("cls_last4_capacity", SIZE),
    ]  # fmt: skip


class Timings(Sized):
    """saccade_timings."""

    _fields_ = [
        ("struct_size", U32), ("reserved", I32), ("fit_ms", F64), ("resize_ms", F64), ("selector_ms", F64),
        ("select_ms", F64), ("gather_ms", F64), ("extractor_ms", F64), ("fill_ms", F64), ("total_ms", F64),
        ("normalize_ms", F64), ("backbone_ms", F64),
    ]  # fmt: skip


# name in saccade.h -> its mirror
STRUCTS = {
    "saccade_image": Image, "saccade_info": Info, "saccade_built_engine": BuiltEngine,
    "saccade_model_options": ModelOptions, "saccade_run_options": RunOptions, "saccade_sizes": Sizes,
    "saccade_outputs": Outputs, "saccade_timings": Timings,
}  # fmt: skip
_ARGUMENTS = {
    "saccade_bundle_open": [TEXT, POINTER],
    "saccade_bundle_info": [POINTER, POINTER],
    "saccade_bundle_engine": [POINTER, SIZE, POINTER],
    "saccade_model_load": [POINTER, POINTER, POINTER],
    "saccade_plan": [POINTER, POINTER, SIZE, POINTER, POINTER],
    "saccade_session_create": [POINTER, POINTER],
    "saccade_run": [POINTER, POINTER, SIZE, POINTER, POINTER],
    "saccade_look": [POINTER, POINTER, SIZE, POINTER, POINTER],
    "saccade_session_timings": [POINTER, POINTER],
}


class Library:
    """A loaded libsaccade; `call` raises what is not OK."""

    def __init__(self, path: Path) -> None:
        self._functions = ctypes.CDLL(str(path))
        self._functions.saccade_last_error.restype = TEXT
        self._functions.saccade_version.restype = U32
        self._functions.saccade_model_description.restype = TEXT
        self._functions.saccade_model_description.argtypes = [POINTER]
        for name, arguments in _ARGUMENTS.items():
            getattr(self._functions, name).argtypes = arguments
            getattr(self._functions, name).restype = I32

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that returns a status; structs go by reference."""
        by_reference = [ctypes.addressof(each) if isinstance(each, ctypes.Structure) else each for each in arguments]
        status = Status(getattr(self._functions, name)(*by_reference))
        if status != Status.OK:
            raise NativeError(status, self._functions.saccade_last_error().decode())

    def made(self, name: str, *arguments: Any) -> int:
        """Call a function whose last argument gives out a handle, and return it."""
        handle = POINTER()
        self.call(name, *arguments, ctypes.addressof(handle))
        assert handle.value is not None
        return handle.value

    def free(self, name: str, handle: int) -> None:
        """Free a handle."""
        getattr(self._functions, name)(POINTER(handle))

    def version(self) -> int:
        """Return the version of the library as one number."""
        return int(self._functions.saccade_version())

    def description(self, model: int) -> str:
        """Return a model's own line."""
        found: bytes = self._functions.saccade_model_description(model)
        return found.decode()


class Handle:
    """One object of the library, freed by `with`."""

    free_function = ""

    def __init__(self, library: Library, handle: int) -> None:
        self.library = library
        self.handle = handle

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.free()

    def free(self) -> None:
        """Free it; nothing may be called on it afterwards."""
        self.library.free(self.free_function, self.handle)


class Bundle(Handle):
    """saccade_bundle."""

    free_function = "saccade_bundle_free"

    def __init__(self, library: Library, path: Path) -> None:
        super().__init__(library, library.made("saccade_bundle_open", str(path).encode()))

    def info(self) -> Info:
        """Return what the bundle holds."""
        info = Info()
        self.library.call("saccade_bundle_info", self.handle, info)
        return info

    def engines(self) -> list[BuiltEngine]:
        """Return all built engines."""
        found: list[BuiltEngine] = []
        while True:
            engine = BuiltEngine()
            try:
                self.library.call("saccade_bundle_engine", self.handle, len(found), engine)
            except NativeError as error:
                assert error.status == Status.NOT_FOUND
                return found
            found.append(engine)


class Model(Handle):
    """saccade_model; `notes` are the (level, line) pairs that it logged."""

    free_function = "saccade_model_free"

    def __init__(self, bundle: Bundle, precision: str, engine_library: Path, **options: int) -> None:
        self.notes: list[tuple[int, str]] = []
        self.info = bundle.info()
        self._log = LogCallback(lambda user, level, line: self.notes.append((level, line.decode())))
        settings = ModelOptions(
            precision=PRECISIONS.index(precision), engine_library=str(engine_library).encode(), log=self._log, **options
        )
        super().__init__(bundle.library, bundle.library.made("saccade_model_load", bundle.handle, settings))

    def description(self) -> str:
        """Return one line on what runs."""
        return self.library.description(self.handle)

    def plan(self, images: Sequence[np.ndarray], **options: Any) -> Sizes:
        """Return what a run would make."""
        sizes = Sizes()
        self.library.call("saccade_plan", self.handle, array_of(images), len(images), run_options(**options), sizes)
        return sizes


class Session(Handle):
    """saccade_session."""

    free_function = "saccade_session_free"

    def __init__(self, model: Model) -> None:
        super().__init__(model.library, model.library.made("saccade_session_create", model.handle))
        self.model = model

    def run(self, images: Sequence[np.ndarray], order: int = RGB, *, dense: bool = False, **options: Any) -> Arrays:
        """Return all outputs of a run by name, `dense` on request."""
        shapes = shapes_of(self.model.plan(images, **options), self.model.info)
        wanted = {name: shape for name, shape in shapes.items() if name != "dense" or dense}
        return self._filled("saccade_run", wanted, array_of(images, order), run_options(**options))

    def look(self, images: Sequence[np.ndarray], order: int = RGB, **options: Any) -> Arrays:
        """Return all outputs of a look by name."""
        shapes = shapes_of(self.model.plan(images, **options, k=1), self.model.info)
        wanted = {name: shapes[name] for name in OF_A_LOOK}
        return self._filled("saccade_look", wanted, array_of(images, order), run_options(**options))

    def timings(self) -> Timings:
        """Return the stages of the last run."""
        timings = Timings()
        self.library.call("saccade_session_timings", self.handle, timings)
        return timings

    def _filled(self, function: str, shapes: dict[str, tuple[int, ...]], images: Any, options: RunOptions) -> Arrays:
        outputs, arrays = Outputs(), {}
        for name, shape in shapes.items():  # values that no run gives show what was not written
            arrays[name] = np.full(shape, -7, np.int32) if name == "indices" else np.full(shape, np.nan, np.float32)
            setattr(outputs, name, arrays[name].ctypes.data)
            setattr(outputs, f"{name}_capacity", arrays[name].size)
        self.library.call(function, self.handle, images, len(images), options, outputs)
        return arrays


def array_of(images: Sequence[np.ndarray], order: int = RGB) -> Any:
    """Return uint8 (height, width, 3) arrays as saccade_image[]: their memory as it lies, rows padded or upside down."""
    for image in images:
        assert image.dtype == np.uint8
        assert image.strides[1:] == (3, 1)
    return (Image * len(images))(
        *(Image(image.ctypes.data, image.shape[0], image.shape[1], image.strides[0], order, 0) for image in images)
    )


def run_options(
    *, size: tuple[int, int] = (0, 0), k: int = 0, k_ratio: float = 0.0, fit: str = "squash"
) -> RunOptions:
    """Return the options of a run; 0 is what the caller leaves to the bundle."""
    return RunOptions(fit=FITS.index(fit), height=size[0], width=size[1], k=k, k_ratio=k_ratio)


def shapes_of(sizes: Sizes, info: Info) -> dict[str, tuple[int, ...]]:
    """Return the shape of each output that the bundle has, as saccade.h states them."""
    batch, grid, k = sizes.batch, (sizes.rows, sizes.columns), sizes.k
    if info.kind == BACKBONE:
        last4 = {"cls_last4": (batch, info.cls_blocks, info.dim)} if info.cls_blocks else {}
        return {
            "cls": (batch, info.dim),
            "tokens": (batch, k, info.dim),
            "dense": (batch, info.dim, *grid),
            "attention": (batch, info.heads, k),
            **last4,
        }
    channels = info.classes if info.task == SEGMENT else info.dim
    pooled = {FEATURES: {"cls": (batch, info.dim)}, CLASSIFY: {"logits": (batch, info.classes)}, SEGMENT: {}}
    return {
        "indices": (batch, k),
        "score_map": (batch, *grid),
        "raw_score_map": (batch, info.map_size, info.map_size),
        "prefix": (batch, info.prefix, info.dim),
        **pooled[info.task],
        "tokens": (batch, k, channels),
        "dense": (batch, channels, *grid),
    }
