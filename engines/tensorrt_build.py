"""Build one TensorRT engine in a process of its own: `python -m saccade.engines.tensorrt_build`, and what starts it.

A failed build changes the next one in the same process (TensorRT-RTX 1.7.1: 1.2 MB larger, another hash), so each graph
gets a fresh one. The child reads one Job as JSON from stdin and writes one Message a line to stdout.
"""
from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from saccade import atomic
from saccade.bundle import TensorSpec
from saccade.engines.audit import Audit, audit_of_text
from saccade.engines.child import Death, run_child, take_job
from saccade.engines.cuda import Cuda
from saccade.errors import SaccadeError

BINDINGS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # engine name -> Python module
ERRORS_SHOWN = 3

# Logged by every build on a machine without a GPU, also by those that succeed.
_NOISE = re.compile(r"cudaError 35")
_PLACE = re.compile(
    r"^Assertion failed: .*?: |^I\w+::\w+: |Error Code \d+: |\[\w+\.cpp:[^\]]*\]\s*|\.?\s*In \w+ at \S+:\d+"
)
_REMEDIES = {
    "Turing": "leave SM75 out, or build a 16-bit precision (--precision fp16)",
    "HW-specific datatypes": "leave the older compute capabilities out, or choose another --precision",
    "CUDA": "check the driver with nvidia-smi",
}


Extents = tuple[int, int, int]  # the least, where the engine is tuned, the most


class Job(Struct, frozen=True, kw_only=True):
    """Everything the child needs to build one engine."""

    engine: str
    role: str
    precision: str
    onnx: str
    plan: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    extents: dict[str, Extents]  # of each dynamic dimension of the inputs, by name
    compute_capabilities: tuple[str, ...]
    device: int | None  # the GPU plain TensorRT builds on
    timing_cache: str | None  # where it keeps what it measured there for the next build; RTX measures nothing
    parent: int


class Phase(Struct, frozen=True, tag="phase"):
    """The child has begun something."""

    text: str


class Finished(Struct, frozen=True, tag="finished"):
    """The plan is written whole."""

    audit: Audit
    seconds: dict[str, float]


class Failed(Struct, frozen=True, tag="failed"):
    """The build failed for a reason the user can mend; one line."""

    message: str


Message = Phase | Finished | Failed


def import_binding(engine: str) -> Any:
    """Import the Python module of an engine, which touches no GPU, or say how to install it."""
    try:
        return importlib.import_module(BINDINGS[engine])
    except ImportError as error:
        raise SaccadeError(f"{engine}: not installed ({error}); pip install '.[{engine}]' in the clone") from error
    except OSError as error:  # the wheel is there, but the loader refuses one of its libraries
        raise SaccadeError(
            f"{engine}: its libraries do not load ({error}); pip install --force-reinstall '.[{engine}]' in the clone"
        ) from error


@functools.cache
def process_log(trt: Any, keep_lines: bool) -> Any:
    """Return the one logger of this process: TensorRT sends everything to the first it was ever given.

    A build keeps every line for the audit; a process that runs engines for days keeps the errors of its last call.
    """

    class ProcessLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if keep_lines:
                self.lines.append(text)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and not _NOISE.search(text):
                self.errors.append(text)

        def error_line(self, otherwise: str) -> str:
            """Return the first error without source locations; later ones are its consequences."""
            return readable(self.errors[0]) if self.errors else otherwise

    return ProcessLog()


def readable(text: str) -> str:
    """Take TensorRT's source locations and line breaks out of an error text."""
    plain = " ".join(_PLACE.sub("", text).split())
    if plain.count("(") < plain.count(")"):
        plain = plain.removesuffix(")")
    plain = re.sub(r"^Myelin \((.*?)\)?$", r"\1", plain)
    return plain.rstrip(" .")


# ---- the parent's side


def build_in_child(job: Job, progress: Callable[[str], None]) -> Finished:
    """Build one engine in a child and relay its phases. The child never outlives this call, whatever ends it."""

    def hear(message: Message) -> bool:
        if isinstance(message, Phase):
            progress(f"{job.role}: {message.text}")
        return isinstance(message, Phase)

    outcome = run_child(__name__, job, Message, hear)
    if isinstance(outcome, Finished):
        return outcome
    if isinstance(outcome, Failed):
        raise SaccadeError(outcome.message)
    raise _death_error(job, outcome)


def _death_error(job: Job, death: Death) -> Exception:
    """Return the error for a child that ended without a result: a signal is the machine's doing, else it is our bug."""
    if death.signal is None:
        return RuntimeError(f"the process building the {job.role} stopped with status {death.status}:\n{death.stderr}")
    if death.signal == "SIGKILL":
        remedy = "mostly for want of memory: close other programs, then repeat"
    else:
        remedy = f"a crash inside {job.engine}: repeat, or use another version of it"
    return SaccadeError(f"{job.engine}: the process building the {job.role} was ended by {death.signal}, {remedy}")


# ---- the child's side


def main() -> None:
    """Do the one job on stdin."""
    job, send = take_job(Job)
    try:
        send(build_plan(job, lambda text: send(Phase(text))))
    except SaccadeError as error:
        send(Failed(str(error)))


def build_plan(job: Job, begin: Callable[[str], None]) -> Finished:
    """Parse, build, write and audit; `begin` is told of each phase.

    No IProgressMonitor: it costs nothing (measured), but the phase that takes most of the time reports no steps.
    """
    trt = import_binding(job.engine)
    log = process_log(trt, keep_lines=True)
    if job.device is not None:
        Cuda(job.engine, job.device)  # makes it the GPU that TensorRT's builder measures on
    clock = [time.monotonic()]
    begin(f"parsing {Path(job.onnx).name}")
    builder = trt.Builder(log)
    # By name: the numbers differ between 10.x and 11.x.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, job, network, log)
    clock.append(time.monotonic())
    begin("building the engine")
    config = _config(trt, job, builder)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _build_error(job, log)
    _keep_timings(job, config)
    clock.append(time.monotonic())
    begin(f"writing {Path(job.plan).name}")
    _write(Path(job.plan), plan)
    clock.append(time.monotonic())
    seconds = [round(end - start, 2) for start, end in itertools.pairwise(clock)]
    audit = audit_of_text(_layers_text(trt, job, log, plan), job.precision)
    return Finished(audit, dict(zip(("parse", "build", "write"), seconds, strict=True)))


def _layers_text(trt: Any, job: Job, log: Any, plan: Any) -> str:
    """Return what the audit reads: the build's log, in which on a GPU the engine's own inspector speaks for the layers."""
    if job.device is None:
        return "\n".join(log.lines)
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        reason = log.error_line("no reason given")
        raise SaccadeError(f"{job.engine}: cannot load the {job.role} it has just built ({reason}); free GPU memory")
    layers = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE)
    return "\n".join([*(line for line in log.lines if "LayerType:" not in line), layers])


def _parse(trt: Any, job: Job, network: Any, log: Any) -> None:
    """Fill `network` from the ONNX file, or say which node is in the way.

    The parser is gone before the network is, as it must be: the other way round Python crashed (RTX 1.7.1).
    """
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(job.onnx):
        errors = [_parser_error_line(job, parser.get_error(index)) for index in range(parser.num_errors)]
        more = f" (and {len(errors) - ERRORS_SHOWN} more)" if len(errors) > ERRORS_SHOWN else ""
        raise SaccadeError(f"{job.onnx}: {'; '.join(errors[:ERRORS_SHOWN])}{more}; export the bundle again")
    # An empty file and some random bytes "parse" without an error, into nothing.
    if network.num_inputs == 0 or network.num_outputs == 0:
        raise SaccadeError(f"{job.onnx} holds no graph; export the bundle again")
    _check_names(job, "inputs", {network.get_input(i).name for i in range(network.num_inputs)}, job.inputs)
    _check_names(job, "outputs", {network.get_output(i).name for i in range(network.num_outputs)}, job.outputs)


def _check_names(job: Job, kind: str, found: set[str], specs: tuple[TensorSpec, ...]) -> None:
    """Compare the graph's tensors with the manifest's; by name, since their order changes between identical builds."""
    expected = {spec.name for spec in specs}
    if found != expected:
        raise SaccadeError(
            f"{job.onnx}: its {kind} are {sorted(found)}, bundle.json says {sorted(expected)}; export the bundle again"
        )


def _parser_error_line(job: Job, error: Any) -> str:
    """Say what the ONNX parser met, and at which node."""
    text = readable(error.desc())
    if not error.node_operator():
        return text
    # Its own words for an operator it lacks are "Plugin not found, ..." or just "false".
    if text in ("false", "") or "Plugin not found" in text:
        text = f"{job.engine} does not have this operator"
    return f"node {error.node_name()!r} ({error.node_operator()}): {text}"


def _config(trt: Any, job: Job, builder: Any) -> Any:
    """Return the builder config: the same for every precision, since precision lives in the graph."""
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; what the graph keeps in fp32 is to be fp32
    if job.engine == "tensorrt-rtx":  # what allocates in a later pass than the first cannot be captured
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the audit reads the layers it prints
    profile = builder.create_optimization_profile()
    for spec in job.inputs:
        profile.set_shape(spec.name, *(_shape(job, spec, end) for end in range(3)))
    if config.add_optimization_profile(profile) < 0:  # its only sign of an inconsistent profile
        ranges = ", ".join(f"{name} {least}..{most}" for name, (least, _, most) in job.extents.items())
        raise SaccadeError(f"{job.onnx}: {ranges} is no range; give larger limits")
    if job.timing_cache is not None:
        _take_timings(Path(job.timing_cache), config)
    if job.compute_capabilities:
        config.num_compute_capabilities = len(job.compute_capabilities)
        for index, name in enumerate(job.compute_capabilities):
            config.set_compute_capability(trt.ComputeCapability.__members__[name], index)
    return config


def _take_timings(path: Path, config: Any) -> None:
    """Give the build what earlier ones measured; what another GPU or version measured is refused by TensorRT itself."""
    known = b""
    with contextlib.suppress(OSError):  # none yet
        known = path.read_bytes()
    for content in (known, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _keep_timings(job: Job, config: Any) -> None:
    """Write what was measured, beside the engines of the bundle; without it the next build only takes longer."""
    cache = config.get_timing_cache() if job.timing_cache is not None else None
    if job.timing_cache is not None and cache is not None:
        with contextlib.suppress(SaccadeError):
            atomic.write_bytes(Path(job.timing_cache), bytes(cache.serialize()))


def _shape(job: Job, spec: TensorSpec, end: int) -> tuple[int, ...]:
    """Return the shape of an input at one of the ends in `Extents`."""
    unknown = [extent for extent in spec.shape if isinstance(extent, str) and extent not in job.extents]
    if unknown:
        known = " and ".join(job.extents)
        raise SaccadeError(f"{job.onnx}: {spec.name!r} varies in {unknown[0]!r}, only {known} may; export again")
    return tuple(job.extents[extent][end] if isinstance(extent, str) else extent for extent in spec.shape)


def _build_error(job: Job, log: Any) -> SaccadeError:
    """Return the reason TensorRT logged for building nothing, with the remedy where it is known."""
    reason = log.error_line("TensorRT gave no reason")
    remedy = next((text for word, text in _REMEDIES.items() if word in reason), "export again, or use another --engine")
    targets = f" for {', '.join(job.compute_capabilities)}" if job.compute_capabilities else ""
    return SaccadeError(f"{job.engine}: cannot build {Path(job.onnx).name}{targets}: {reason}; {remedy}")


def _write(path: Path, plan: Any) -> None:
    """Write the plan byte for byte; the caller's folder makes it atomic."""
    try:
        with path.open("wb") as file:
            file.write(plan)
    except OSError as error:
        raise atomic.write_error(path, error) from error


if __name__ == "__main__":
    main()
