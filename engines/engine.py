"""What every inference engine offers: the words, the request, and the loaded engine with its checks."""
from __future__ import annotations

import abc
import contextlib
import copy
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from saccade.bundle import Bundle, GraphFile, Model, TensorSpec
from saccade.errors import SaccadeError

ENGINE_NAMES = ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx")
DEFAULT_MAX_BATCH = 8
MAX_BATCH = 4096  # that may be asked for: far beyond what any machine's or GPU's memory holds
STATIC_BATCH = 1  # of a static engine; its k is chosen
# Conditions that say how much an engine takes, and not what it is made of or runs on.
LIMITS = frozenset({"max_batch", "max_k", "opt_k", "max_height", "max_width", "opt_height", "opt_width"})
# What only some engines offer, and what is said of one that does not.
WISHES = {
    "streams": "runs one frame at a time; leave streams at 1",
    "static": "has no static engines; leave static out",
    "cls_only": "always computes every token; leave cls_only out",
}


def default_device(engine: str) -> str:
    """Return the device an engine means where none is named: the first GPU for TensorRT, else the CPU."""
    return "0" if engine.startswith("tensorrt") else "cpu"


class EngineRequest(Struct, frozen=True, kw_only=True):
    """What is asked for: one engine for each graph of the bundle, in one precision, on one device."""

    engine: str
    precision: str = "fp32"
    device: str  # "cpu", or the index of a GPU
    max_batch: int = DEFAULT_MAX_BATCH  # limits of TensorRT's optimization profile; the others have none
    max_k: int = 1369
    opt_k: int = 136  # where the profile is tuned
    max_size: tuple[int, int] | None = None  # (height, width) of images, for a plain backbone: it has no k
    opt_size: tuple[int, int] | None = None
    compute_capabilities: tuple[str, ...] = ()  # TensorRT-RTX only; empty = its default targets
    any_limits: bool = False  # what was built for other limits or targets will do too, if it runs on the device
    threads: int = 0  # 0 = the engine's own choice
    streams: int = 1  # frames that run at once, each on its share of the threads
    static_k: int | None = None  # compiled for batch 1 and this k alone, which is faster; None takes any
    cls_only: bool = False  # without patch tokens: the extractor's last block computes the cls row alone

    @property
    def title(self) -> str:
        """What is asked for in words, as notes and errors name it."""
        static = "" if self.static_k is None else f" static k={self.static_k}"
        return f"{self.engine} {self.precision}{static}{' cls-only' if self.cls_only else ''}"

    @property
    def wishes(self) -> tuple[str, ...]:
        """What is asked for of WISHES."""
        asked = {"streams": self.streams > 1, "static": self.static_k is not None, "cls_only": self.cls_only}
        return tuple(name for name in WISHES if asked[name])


def default_request(
    bundle: Bundle,
    engine: str,
    precision: str,
    device: str | None = None,
    *,
    threads: int = 0,
    streams: int = 1,
    cls_only: bool = False,
) -> EngineRequest:
    """Return the request of a run, which takes the engine that there is, whatever the limits it was built with.

    Where there is none, one is built for k up to every patch of the base grid, tuned at the bundle's k; of a plain backbone
    for images up to that grid, tuned at the bundle's size.
    """
    rows, columns = bundle.manifest.model.base_grid
    defaults, patch = bundle.manifest.defaults, bundle.manifest.model.patch
    usual = defaults.k_on(defaults.size[0] * defaults.size[1] // patch**2)
    asked = EngineRequest(
        engine=engine,
        precision=precision,
        device=default_device(engine) if device is None else str(device),
        max_k=rows * columns,
        opt_k=max(1, min(usual, rows * columns)),
        any_limits=True,
        threads=threads,
        streams=streams,
        cls_only=cls_only,
    )
    if isinstance(bundle.manifest.model, Model):
        return asked
    return msgspec.structs.replace(asked, opt_size=defaults.size, max_size=_largest(defaults.size, (rows, columns), patch))


def _largest(size: tuple[int, int], base_grid: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return (height, width) that hold the bundle's own size and every patch of the base grid."""
    return max(size[0], base_grid[0] * patch), max(size[1], base_grid[1] * patch)


def build_command(bundle: Bundle, request: EngineRequest) -> str:
    """Return the command that builds what is asked for."""
    words = ["saccade build", str(bundle.path), "--engine", request.engine]
    if request.precision != "fp32":
        words += ["--precision", request.precision]
    if request.engine != "tensorrt-rtx" and request.device != default_device(request.engine):
        words += ["--device", request.device]
    if request.static_k is not None:
        words += ["--static", "--k", str(request.static_k)]
    if request.cls_only:
        words += ["--cls-only"]
    return " ".join(words)


def tensors_of(graph: GraphFile, request: EngineRequest) -> GraphFile:
    """Return a graph's entry with the tensors of the engine that is asked for: fixed if static, no tokens if cls-only."""
    sizes = {} if request.static_k is None else {"batch": STATIC_BATCH, "k": request.static_k}

    def fixed(spec: TensorSpec) -> TensorSpec:
        shape = tuple(sizes.get(extent, extent) if isinstance(extent, str) else extent for extent in spec.shape)
        return msgspec.structs.replace(spec, shape=shape)

    outputs = [fixed(spec) for spec in graph.outputs if not (request.cls_only and spec.name == "tokens")]
    return msgspec.structs.replace(graph, inputs=tuple(map(fixed, graph.inputs)), outputs=tuple(outputs))


def refuse_path(path: Path) -> None:
    """Refuse a path that is not UTF-8: engines take paths as text and cannot open such a one."""
    try:
        os.path.realpath(path).encode()
    except UnicodeEncodeError as error:
        raise SaccadeError(f"{path}: its path is not UTF-8, which engines cannot open; rename its folder") from error


class Capabilities(Struct, frozen=True, kw_only=True):
    """What one engine can do on this machine; `missing` is one line with the remedy where it cannot."""

    engine: str
    version: str | None
    can_build: bool
    can_run: bool
    precisions: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    missing: str | None = None


class Built(Struct, frozen=True, kw_only=True):
    """What a build leaves behind: files by role (may be empty where the engine compiles at load), and its findings."""

    files: dict[str, str]  # role -> file name inside the engine folder
    realised: str  # the precision in the engine's own words, e.g. "f32 by INFERENCE_PRECISION_HINT"
    audit: dict[str, Any] | None = None


class Progress(Protocol):
    """Receives what a long build is doing."""

    def __call__(self, phase: str, /) -> None:
        """Note that `phase` has begun."""


class Backend(Protocol):
    """The module of one engine: every file beside this one that is named after an engine has these functions."""

    offers: frozenset[str] = frozenset()  # which of WISHES

    def capabilities(self) -> Capabilities:
        """Say what can be built and run here, without raising."""

    def variant(self, precision: str) -> str:
        """Return which of the bundle's graph files a precision is built from; raise for one this engine never has."""
        return precision

    def conditions(self, request: EngineRequest) -> dict[str, str]:
        """Return everything outside the graphs that a built engine depends on (versions, hardware), as text."""

    def serves(self, built: Mapping[str, str], wanted: Mapping[str, str], request: EngineRequest) -> bool:
        """Whether an engine of the conditions `built` does what `request` asks, whose own conditions are `wanted`.

        Both hold the graphs' hashes too. An engine that takes any batch and k has to agree in everything.
        """
        return built == wanted

    def build(self, bundle: Bundle, request: EngineRequest, folder: Path, progress: Progress) -> Built:
        """Build one engine per role into `folder`; raise SaccadeError with one line on failure."""

    def load(self, bundle: Bundle, request: EngineRequest, folder: Path, built: Built) -> dict[str, Engine]:
        """Load what `build` left in `folder`, one engine per role."""


def load_roles(roles: Iterable[str], load: Callable[[str], Engine]) -> dict[str, Engine]:
    """Load one engine for each role; where one cannot be loaded, those before it are closed."""
    with contextlib.ExitStack() as stack:
        loaded = {}
        for role in roles:
            loaded[role] = load(role)
            stack.callback(loaded[role].close)
        stack.pop_all()
    return loaded


OwnEngine = TypeVar("OwnEngine", bound="Engine")


class Engine(abc.ABC):
    """One loaded graph that runs named tensors. Not thread-safe: one thread at a time; load again for another."""

    _closed = False
    _busy: threading.Lock

    def __new__(cls, *arguments: Any, **options: Any) -> Engine:
        """Give every engine its lock: two threads in one engine, or a close under a run, would crash the process."""
        engine = super().__new__(cls)
        engine._busy = threading.Lock()
        return engine

    def __init__(self, role: str, graph: GraphFile) -> None:
        self.role = role
        self.inputs: dict[str, TensorSpec] = {spec.name: spec for spec in graph.inputs}
        self.outputs: dict[str, TensorSpec] = {spec.name: spec for spec in graph.outputs}

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. The returned arrays belong to the engine and are overwritten by the next call: copy to keep.

        Raises SaccadeError where a name, dtype or shape differs from the graph's.
        """
        if feed.keys() != self.inputs.keys():
            raise SaccadeError(f"{self.role}: expected inputs {sorted(self.inputs)}, got {sorted(feed)}")
        sizes: dict[str, int] = {}
        for name, spec in self.inputs.items():
            self._check_input(spec, feed[name], sizes)
        if not self._busy.acquire(blocking=False):
            raise SaccadeError(f"{self.role}: another thread is running this engine; load the bundle once per thread")
        try:
            if self._closed:
                raise SaccadeError(f"{self.role}: the engine is closed; load the bundle again")
            return self._run(feed)
        finally:
            self._busy.release()

    def _check_input(self, spec: TensorSpec, array: np.ndarray, sizes: dict[str, int]) -> None:
        """Compare one array with its spec; a named dimension must have the same size wherever it stands."""
        fits = array.dtype == spec.host_type and array.ndim == len(spec.shape)
        if fits:
            for extent, expected in zip(array.shape, spec.shape, strict=True):
                wanted = sizes.setdefault(expected, extent) if isinstance(expected, str) else expected
                fits = fits and extent == wanted and extent > 0
        if not fits:
            raise SaccadeError(
                f"{self.role}: input {spec.name!r} must be {spec.dtype} {list(spec.shape)}, "
                f"got {array.dtype} {list(array.shape)}"
            )

    def check_ports(self, found: Mapping[str, Sequence[object]], where: Path) -> None:
        """Compare the loaded engine's tensors (name -> extents, anything but an int where dynamic) with the manifest's."""
        for name, spec in (self.inputs | self.outputs).items():
            extents = found.get(name)
            if extents is None or len(extents) != len(spec.shape) or any(
                isinstance(have, int) and isinstance(want, int) and have != want
                for have, want in zip(extents, spec.shape, strict=True)
            ):
                raise SaccadeError(f"{where}: its tensors are not those of bundle.json's {self.role}; export again")

    @abc.abstractmethod
    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run with checked arrays."""

    def twin(self) -> Engine:
        """Return another engine on the same weights, for another thread to run at the same time.

        Only engines of a backend that offers streams have it.
        """
        raise NotImplementedError

    def _sharing(self: OwnEngine) -> OwnEngine:
        """Return a copy that shares everything but the lock."""
        twin = copy.copy(self)
        twin._busy = threading.Lock()
        return twin

    def close(self) -> None:
        """Free what the engine holds; a second call does nothing. Running it afterwards is an error."""
        with self._busy:  # after a run that is under way
            if not self._closed:
                self._closed = True
                self._close()

    def _close(self) -> None:  # noqa: B027 - an engine may have nothing to drop
        """Drop what holds memory."""
