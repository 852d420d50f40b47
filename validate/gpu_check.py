"""Everything that takes a GPU to know, in one run: `make gpu-check`, or `python -m saccade.validate.gpu_check`.

Needs a GPU with torch, and the kernels that `make cuda` compiles; no network and no TensorRT. Weights come from a seed. A
section that fails is reported and the others still run. Writes gpu-check.json and gpu-check.md, after each section and each
shape that was timed: what is known stays where the time on the GPU ends before the check does.
"""
from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from saccade import atomic
from saccade.engines.cuda import find_gpus
from saccade.errors import SaccadeError
from saccade.runtime.launch import read_fatbin
from saccade.validate.gpu_report import EAGER, Times, frame_rows, kernel_rows, moved_bytes, page, table, verdicts

if TYPE_CHECKING:
    import torch

    from saccade.runtime.cuda_device import CudaDevice
    from saccade.validate.gpu_model import Subject

SANITIZER = "compute-sanitizer"
SANITIZER_SECONDS = 240
KERNEL_ROUNDS = 3
Section = dict[str, Any]  # "lines" for the page, and whatever else the JSON is to hold


class Check:
    """What all sections share: the options, and the device and the model, opened when the first section needs them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self._folder = options, folder
        self.timings: list[dict[str, Any]] = []
        self.keep: Callable[[Section], None] = lambda section: None  # takes what a section has found so far

    @functools.cached_property
    def device(self) -> CudaDevice:
        """The GPU."""
        from saccade.validate.gpu_kernels import open_device

        return open_device()

    @functools.cached_property
    def where(self) -> torch.device:
        """The GPU, to torch; float32 is float32 from here on."""
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return torch.device("cuda", self.device.index)

    @functools.cached_property
    def subject(self) -> Subject:
        """The seeded model."""
        from saccade.validate.gpu_model import MODELS, seeded_subject

        return seeded_subject(self._folder, MODELS[self.options.model], self.options.seed)

    def kept(self, size: int) -> int:
        """Return the k of a square size: a tenth of its cells, as the bundle says."""
        return self.subject.bundle.manifest.defaults.k_on((size // self.subject.bundle.model.patch) ** 2)


# ---- sections


def kernels(check: Check) -> Section:
    """Every kernel against the NumPy reference, with fresh random inputs."""
    from saccade.validate.gpu_kernels import check_kernels

    seed = int(np.random.SeedSequence().generate_state(1)[0])  # new ones in every run, and told
    found = check_kernels(check.device, seed, KERNEL_ROUNDS)
    rows = [[name, str(each["cases"]), ", ".join(each["wrong"]) or "0"] for name, each in found.items()]
    failed = [name for name, each in found.items() if each["wrong"]]
    return _judged({"seed": seed, "found": found, "lines": table(("kernel", "cases", "with other bits"), rows)}, failed)


def sanitizer(check: Check) -> Section:
    """The same on small grids, watched for bad memory accesses and for races."""
    del check
    if shutil.which(SANITIZER) is None:
        return {"lines": [f"not run: {SANITIZER} is not here"]}
    found, lines, failed = {}, [], []
    for tool in ("memcheck", "racecheck"):
        code, summary = _sanitized(tool)
        found[tool] = {"code": code, "summary": summary}
        lines.append(f"- {tool}: {summary}")
        failed += [tool] if code else []
    return _judged({"found": found, "lines": lines}, failed)


def _sanitized(tool: str) -> tuple[int, str]:
    """Return the exit status of one of the sanitizer's tools, and its summary."""
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "saccade.validate.gpu_kernels"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SANITIZER_SECONDS)
    except subprocess.TimeoutExpired:
        return 1, f"not done after {SANITIZER_SECONDS} s"
    return done.returncode, sanitizer_summary(done.stdout + done.stderr)


def sanitizer_summary(output: str) -> str:
    """Return the line by which compute-sanitizer ends, without its marks, or what there is instead."""
    lines = [line.strip("= ") for line in output.splitlines() if line.strip()]
    found = [line for line in lines if "SUMMARY" in line]
    return (found or lines or ["no output"])[-1]


def parity(check: Check) -> Section:
    """The whole chain against PyTorch by the five numbers, and a graph against its own steps, bit by bit."""
    from saccade.export.golden_cases import golden_cases
    from saccade.validate.gpu_model import TASK, open_chain
    from saccade.validate.parity import measure_parity

    subject, rows, failed, found = check.subject, [], [], {}
    cases = golden_cases(subject.checkpoint, TASK, subject.bundle.manifest.defaults, lambda phase: None)
    check.where  # noqa: B018 - no TF32
    for precision in ("fp32", "fp16"):
        with open_chain(subject, check.device, precision) as chain, open_chain(
            subject, check.device, precision, graphs=False
        ) as plain:
            result = measure_parity(chain, cases)
            same = all(_same_bits(chain, plain, case.images) for case in cases)
        found[precision] = result.summary() | {"graph_equals_its_steps": same}
        failed += [] if result.passed else [f"{precision} differs from PyTorch"]
        failed += [] if same else [f"{precision}: the graph differs from its steps"]
        rows += [[precision, each.name, f"{each.value:.3g}", f"{each.bound:.3g}"] for each in result.measures]
        rows.append([precision, "graph and single steps, other bits", str(int(not same)), "0"])
    return _judged({"found": found, "lines": table(("precision", "number", "value", "bound"), rows)}, failed)


def _same_bits(chain: Any, plain: Any, images: np.ndarray) -> bool:
    size = (images.shape[1], images.shape[2])
    ours, theirs = (each(list(images), size=size, k_ratio=0.25, dense=True).arrays() for each in (chain, plain))
    return all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def kernel_times(check: Check) -> Section:
    """Each kernel inside a graph, against the bandwidth of a plain copy; its data stays in the L2 cache."""
    from saccade.validate.gpu_model import open_chain
    from saccade.validate.gpu_timing import copy_bandwidth, random_images, stages

    bandwidth = copy_bandwidth(check.where)
    lines = [f"A copy of 1 GiB moves {bandwidth / 1e9:.0f} GB/s, read and written.", ""]
    measured: list[dict[str, Any]] = []
    section: Section = {"bandwidth": bandwidth, "timings": measured, "lines": lines}
    with open_chain(check.subject, check.device, "fp16") as chain:
        model, patch = check.subject.bundle.model, check.subject.bundle.model.patch
        for size in check.options.size:
            for batch in check.options.batch:
                k = check.kept(size)
                found = stages(chain, random_images(batch, size, check.where), k)
                moved = moved_bytes(model, model.dim, batch, (size // patch, size // patch), k)
                each = {"size": size, "batch": batch, "k": k, "moved": moved, "stages": _builtin(found)}
                measured.append(each)
                check.timings.append(each)
                lines += [f"{size} px, k {k}, batch {batch}:", ""]
                rows = kernel_rows(found, moved, bandwidth)
                lines += table(("kernel", "microseconds", "MB moved", "GB/s", "of a copy"), rows)
                others = [name for name in found if name not in moved]
                rows = [[name, f"{found[name].median * 1e3:.1f}"] for name in others]
                lines += ["", *table(("step", "microseconds"), rows), ""]
                check.keep(section)
    return section


def frame_times(check: Check) -> Section:
    """From uint8 images on the device to cls on the device, waited for by the host, beside PyTorch."""
    from saccade.validate.gpu_timing import random_images

    lines: list[str] = []
    found: list[dict[str, Any]] = []
    failed: list[str] = []
    for size in check.options.size:
        for batch in check.options.batch:
            images, k, frames = random_images(batch, size, check.where), check.kept(size), {}
            for name, run in _ways(check, images, k):
                try:
                    frames[name] = run()
                except Exception as error:  # compilers and memory fail in their own ways; the other ways still count
                    failed.append(f"{name} at {size} px, batch {batch}: {_one_line(error)}")
            found.append({"size": size, "batch": batch, "k": k, "frames": _builtin(frames)})
            check.timings.append(found[-1])
            rows = frame_rows(frames, EAGER)
            lines += [f"{size} px, k {k}, batch {batch}:", ""]
            lines += [*table(("a frame", "ms", "10 % to 90 %", "of eager"), rows), ""]
            section = {"timings": found, "failed": failed, "lines": lines + [f"- failed: {each}" for each in failed]}
            check.keep(section)
    return section


def _ways(check: Check, images: torch.Tensor, k: int) -> Iterator[tuple[str, Callable[[], Times]]]:
    """Yield each way to run a frame, with the function that times it; each is opened when its turn comes."""
    from saccade.validate.gpu_model import open_chain
    from saccade.validate.gpu_report import CHAIN
    from saccade.validate.gpu_timing import call_ms, pytorch_frames

    def chain(**options: Any) -> Times:
        with open_chain(check.subject, check.device, "fp16", **options) as pipeline:
            size = (images.shape[1], images.shape[2])
            return call_ms(lambda: pipeline(images, k=k, size=size))

    yield "saccade fp16, step by step", lambda: chain(graphs=False)
    yield "saccade fp16, one graph", chain
    yield CHAIN, lambda: chain(compiled=True)
    yield from pytorch_frames(check.subject, images, k).items()


def targets(check: Check) -> Section:
    """Whether the chain reaches what it is meant to. What was not measured is not reached."""
    found = verdicts(check.timings)
    return _judged({"lines": [each.line() for each in found]}, [each.what for each in found if not each.passed])


SECTIONS: dict[str, Callable[[Check], Section]] = {
    "kernels": kernels,
    "parity": parity,
    "kernel-times": kernel_times,
    "frame-times": frame_times,
    "targets": targets,
    "sanitizer": sanitizer,  # the last: it may take minutes
}


def _judged(section: Section, failed: Sequence[str]) -> Section:
    if failed:
        section["failed"] = list(failed)
        section["lines"] = [f"**failed**: {', '.join(failed)}", "", *section["lines"]]
    return section


def _builtin(times: dict[str, Times]) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(times)
    return found


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


# ---- the run


def run_sections(
    check: Any, names: Sequence[str], say: Callable[[str], None], write: Callable[[dict[str, Section]], None]
) -> dict[str, Section]:
    """Run the sections one after the other; one that raises is an error of its own and not the end.

    `write` gets what is known whenever that is more.
    """
    found: dict[str, Section] = {}
    for name in names:
        say(f"{name} ...")
        start = time.monotonic()

        def keep(section: Section, name: str = name) -> None:
            found[name] = section
            write(found)

        check.keep = keep
        try:
            keep(SECTIONS[name](check))
        except Exception as error:
            so_far = found.get(name, {"lines": []})
            keep(so_far | {"error": _one_line(error), "traceback": traceback.format_exc()})
        bad = found[name].get("error") or ", ".join(found[name].get("failed", []))
        say(f"{name}: {f'FAILED: {bad}' if bad else 'done'} after {time.monotonic() - start:.0f} s")
    return found


def machine() -> dict[str, str]:
    """Describe what the figures were measured on; raises where there is no GPU or no torch that can use it."""
    gpus, reason = find_gpus()
    if not gpus:
        raise SaccadeError(f"no NVIDIA GPU here ({reason}), so there is nothing to check; go to a machine with one")
    try:
        import torch
    except ImportError as error:
        raise SaccadeError("torch is missing; install a build of it with CUDA") from error
    if not torch.cuda.is_available():
        raise SaccadeError(f"torch {torch.__version__} cannot use the GPU; install a build of it with CUDA")
    read_fatbin()
    gpu = gpus[0]
    facts = {"gpu": gpu.name, "compute_capability": gpu.compute_capability, "driver": gpu.driver}
    facts |= {"torch": torch.__version__, "python": platform.python_version(), "cpus": str(os.cpu_count())}
    line = f"{gpu.name} ({gpu.compute_capability}), driver for CUDA {gpu.driver}, torch {torch.__version__}"
    return facts | {"line": line + ", weights from a seed. TensorRT was not run."}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m saccade.validate.gpu_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("build/gpu-check"), metavar="FOLDER")
    parser.add_argument("--model", choices=("base", "small"), default="base", help="ViT-B, or one to try the script with")
    parser.add_argument("--size", type=int, nargs="+", default=[518, 1036], metavar="S", help="default: 518 1036")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64], metavar="B", help="default: 1 8 64")
    parser.add_argument("--seed", type=int, default=1, help="of the weights (default: 1)")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    options = parser.parse_args(arguments)
    if any(size <= 0 or size % 14 for size in options.size) or any(batch < 1 for batch in options.batch):
        raise SaccadeError("--size takes multiples of 14, and --batch numbers from 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and write both reports; 1 where anything failed or cannot run."""
    try:
        options = parse(arguments)
        facts = machine()
        options.output.mkdir(parents=True, exist_ok=True)

        def write(sections: dict[str, Section]) -> None:
            results = {"machine": facts, "sections": sections}
            atomic.write_bytes(options.output / "gpu-check.json", json.dumps(results, indent=2).encode() + b"\n")
            atomic.write_bytes(options.output / "gpu-check.md", page(results).encode())

        with tempfile.TemporaryDirectory() as folder:
            check = Check(options, Path(folder))
            sections = run_sections(check, options.only, lambda line: print(line, file=sys.stderr), write)
    except SaccadeError as error:
        print(f"saccade: {error}", file=sys.stderr)
        return 1
    print(page({"machine": facts, "sections": sections}))
    return int(any("error" in each or each.get("failed") for each in sections.values()))


if __name__ == "__main__":
    sys.exit(main())
