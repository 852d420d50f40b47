"""TensorRT and TensorRT-RTX: one module for both bindings, on the API that 10.x, 11.x and RTX 1.x share.

The two differ in where they build: TensorRT on the GPU the engine is for, TensorRT-RTX anywhere, for the compute
capabilities that are named; the rest of its compilation happens on the user's GPU when an engine is loaded.
"""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from saccade.bundle import Bundle
from saccade.engines.cuda import Gpu, find_gpus
from saccade.engines.engine import (
    LIMITS,
    Backend,
    Built,
    Capabilities,
    Engine,
    EngineRequest,
    Progress,
    build_command,
    load_roles,
)
from saccade.engines.tensorrt_build import Extents, Finished, Job, build_in_child, import_binding
from saccade.engines.tensorrt_engine import TensorRTEngine
from saccade.errors import SaccadeError

# Precision -> graph file: int8 wants fp16 around it, or attention does not fuse.
VARIANTS = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8-fp16", "fp8": "fp8"}
PRECISIONS = tuple(VARIANTS)
NOT_TARGETS = ("NONE", "CURRENT")  # members of trt.ComputeCapability that name no hardware
TIMING_CACHE = ".tensorrt.timings"  # hidden, since it is no engine
DEFAULT_TARGETS = "default"  # TensorRT-RTX's own choice of compute capabilities


class TensorRTBackend(Backend):
    """The backend of "tensorrt" or of "tensorrt-rtx"."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_rtx = name == "tensorrt-rtx"

    def capabilities(self) -> Capabilities:
        """Say what can be built and run here, without raising and without touching a GPU."""
        try:
            trt = import_binding(self.name)
        except SaccadeError as error:
            return Capabilities(engine=self.name, version=None, can_build=False, can_run=False, missing=str(error))
        gpus, reason = find_gpus()
        devices = self._usable(trt, gpus)
        return Capabilities(
            engine=self.name,
            version=trt.__version__,
            can_build=self.is_rtx or bool(devices),
            can_run=bool(devices),
            precisions=PRECISIONS,
            devices=devices,
            missing=None if devices else self._no_gpu_line(gpus, reason),
        )

    def variant(self, precision: str) -> str:
        """Return the graph file of a precision."""
        return VARIANTS[precision]

    def conditions(self, request: EngineRequest) -> dict[str, str]:
        """Return what a built engine depends on beside the graphs: versions, hardware, optimization profile."""
        trt = import_binding(self.name)
        if self.is_rtx:
            targets = " ".join(self._targets(trt, request)) or DEFAULT_TARGETS
            hardware = {"compute_capabilities": targets, "allocation": "user"}
        else:
            hardware = self._build_gpu(trt, request)
        profile = {name: str(value) for name, value in _limits(request).items()}
        return {"binding": trt.__name__, "version": trt.__version__, **hardware, **profile}

    def serves(self, built: Mapping[str, str], wanted: Mapping[str, str], request: EngineRequest) -> bool:
        """Whether a built engine takes what is asked: as large a batch, k and image or larger, on all the targets or more.

        Where an engine is tuned changes its speed and not what it takes. A run asks for no limits, and of the targets
        only for the GPU it runs on.
        """
        lenient = {*LIMITS, "compute_capabilities"}
        if any(built.get(name) != wanted.get(name) for name in (built.keys() | wanted.keys()) - lenient):
            return False
        if not self._targets_serve(built.get("compute_capabilities", ""), wanted.get("compute_capabilities", ""), request):
            return False
        limits = {name: value for name, value in _limits(request).items() if name.startswith("max_")}
        return all(_limit(built, name) >= (1 if request.any_limits else asked) for name, asked in limits.items())

    def _targets_serve(self, built: str, wanted: str, request: EngineRequest) -> bool:
        """Compare the compute capabilities of an RTX engine; TensorRT's are fixed by its GPU."""
        if built == wanted or not request.any_limits:
            return built == wanted or (DEFAULT_TARGETS not in (built, wanted) and set(wanted.split()) <= set(built.split()))
        gpus = find_gpus()[0]
        if built == DEFAULT_TARGETS or not request.device.isdecimal() or int(request.device) >= len(gpus):
            return True  # no such GPU here, so nothing will run either
        return gpus[int(request.device)].compute_capability in built.split()

    def build(self, bundle: Bundle, request: EngineRequest, folder: Path, progress: Progress) -> Built:
        """Build one plan per graph into `folder`; on failure or interrupt none is left there."""
        self.conditions(request)  # refuses what this machine or this engine cannot do, before anything slow
        files = {role: f"{role}.engine" for role in bundle.manifest.graphs}
        audit = {}
        try:
            for role, file in files.items():
                job = self._job(bundle, request, role, folder / file)
                audit[role] = _finding(build_in_child(job, progress))
        except BaseException:
            for file in files.values():
                (folder / file).unlink(missing_ok=True)
            raise
        return Built(files=files, realised=f"strongly typed {request.precision} graphs, TF32 off", audit=audit)

    def load(self, bundle: Bundle, request: EngineRequest, folder: Path, built: Built) -> dict[str, Engine]:
        """Load both plans onto the GPU `request.device`."""
        trt = import_binding(self.name)
        device = self._device(trt, request)
        remedy = build_command(bundle, request)

        def load(role: str) -> Engine:
            graph = bundle.graph(role, VARIANTS[request.precision])
            return TensorRTEngine(role, graph, self.name, folder / built.files[role], device, remedy)

        return load_roles(built.files, load)

    def _job(self, bundle: Bundle, request: EngineRequest, role: str, plan: Path) -> Job:
        """Describe one build for the child."""
        graph = bundle.graph(role, VARIANTS[request.precision])
        return Job(
            engine=self.name,
            role=role,
            precision=request.precision,
            onnx=str(bundle.path / graph.file),
            plan=str(plan),
            inputs=graph.inputs,
            outputs=graph.outputs,
            extents=profile_of(request, bundle.manifest.model.patch),
            compute_capabilities=self._targets(import_binding(self.name), request) if self.is_rtx else (),
            device=None if self.is_rtx else int(request.device),
            timing_cache=None if self.is_rtx else str(bundle.engines_path / TIMING_CACHE),
            parent=os.getpid(),
        )

    def _targets(self, trt: Any, request: EngineRequest) -> tuple[str, ...]:
        """Return the compute capabilities an RTX engine is built for: known names, each once, in TensorRT's order."""
        known = _target_names(trt)
        for name in request.compute_capabilities:
            if name not in known:
                raise SaccadeError(f"{self.name}: no compute capability {name!r}; choose from {', '.join(known)}")
        return tuple(name for name in known if name in request.compute_capabilities)

    def _build_gpu(self, trt: Any, request: EngineRequest) -> dict[str, str]:
        """Return the GPU that a TensorRT engine is built on and for."""
        if request.compute_capabilities:
            raise SaccadeError(
                f"{self.name}: builds for the GPU it runs on, so it takes no --compute-capability; "
                f"leave it out, or use --engine tensorrt-rtx"
            )
        gpu = find_gpus()[0][self._device(trt, request)]
        return {"gpu": gpu.name, "compute_capability": gpu.compute_capability, "driver": gpu.driver}

    def _device(self, trt: Any, request: EngineRequest) -> int:
        """Return the index of the GPU to use, or say why there is none."""
        gpus, reason = find_gpus()
        usable = self._usable(trt, gpus)
        if not usable:
            raise SaccadeError(self._no_gpu_line(gpus, reason))
        if request.device not in usable:
            raise SaccadeError(f"{self.name}: no device {request.device!r} for it; give --device {' or '.join(usable)}")
        return int(request.device)

    def _usable(self, trt: Any, gpus: tuple[Gpu, ...]) -> tuple[str, ...]:
        """Return the indices of the GPUs it runs on: RTX lists what it compiles for (no Hopper, no Jetson in 1.7)."""
        known = [gpu.compute_capability for gpu in gpus] if not self.is_rtx else _target_names(trt)
        return tuple(str(index) for index, gpu in enumerate(gpus) if gpu.compute_capability in known)

    def _no_gpu_line(self, gpus: tuple[Gpu, ...], reason: str) -> str:
        """Say why nothing runs here, and what can be done instead."""
        if gpus:
            found = ", ".join(f"{gpu.name} {gpu.compute_capability}" for gpu in gpus)
            return f"{self.name}: does not support this GPU ({found}); use --engine tensorrt"
        if self.is_rtx:
            return (
                f"{self.name}: no NVIDIA GPU here ({reason}); engines can be built and copied to a machine with one; "
                f"to run here use --engine openvino"
            )
        return (
            f"{self.name}: no NVIDIA GPU here ({reason}), and it builds only on the GPU it runs on; "
            f"go to that machine, or use --engine tensorrt-rtx, which builds anywhere"
        )


def _target_names(trt: Any) -> list[str]:
    """Return the compute capabilities TensorRT-RTX compiles for, by name."""
    return [name for name in trt.ComputeCapability.__members__ if name not in NOT_TARGETS]


def _limits(request: EngineRequest) -> dict[str, int]:
    """Return by condition how much an engine takes and where it is tuned, which lies within what it takes."""
    limits = {"max_batch": request.max_batch}
    if request.max_size is None or request.opt_size is None:
        return limits | {"max_k": request.max_k, "opt_k": min(request.opt_k, request.max_k)}
    for name, opt, most in zip(("height", "width"), request.opt_size, request.max_size, strict=True):
        limits |= {f"max_{name}": most, f"opt_{name}": min(opt, most)}
    return limits


def profile_of(request: EngineRequest, patch: int) -> dict[str, Extents]:
    """Return the least, the usual and the most of each dynamic dimension; those that follow from an image's size fit it."""
    limits = _limits(request)
    batch = (1, 1, limits["max_batch"])
    if "max_k" in limits:
        return {"batch": batch, "k": (1, limits["opt_k"], limits["max_k"])}
    height, width = ((patch, limits[f"opt_{name}"], limits[f"max_{name}"]) for name in ("height", "width"))
    least, usual, most = (1 + rows * columns // patch**2 for rows, columns in zip(height, width, strict=True))
    return {"batch": batch, "height": height, "width": width, "rows": (least, usual, most)}


def _limit(conditions: Mapping[str, str], name: str) -> int:
    """Return a limit that a receipt holds as text, 0 where it holds none."""
    text = conditions.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _finding(finished: Finished) -> dict[str, Any]:
    """Return what goes into the receipt about one engine: the fields of its audit, and the seconds spent."""
    audit: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(finished.audit))
    return audit | {"seconds": finished.seconds}
