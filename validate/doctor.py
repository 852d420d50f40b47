"""What this machine has, what each engine lacks, and the command that mends it."""
from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from saccade._version import VERSION
from saccade.counted import counted
from saccade.engines import store
from saccade.engines.cuda import find_gpus
from saccade.engines.engine import ENGINE_NAMES, Capabilities
from saccade.validate.metrics.libraries import NEEDS_PYTHON

# Package -> the extra that brings it, by what it is for.
PACKAGES = {
    "numpy": "", "pillow": "", "msgspec": "", "openvino": "openvino", "onnxruntime": "onnxruntime",
    "onnxruntime-gpu": "onnxruntime-gpu", "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx",
    "cuda-python": "tensorrt-rtx", "torch": "export", "onnx": "export", "onnxscript": "export", "polygraphy": "polygraphy",
    "scipy": "evaluate", "scikit-learn": "evaluate", "infomap": "evaluate", "matplotlib": "bench",
}  # fmt: skip
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "i8mm", "bf16")
# TensorRT releases that gave wrong numbers for transformers, from their public issue threads; used to warn, not to refuse.
KNOWN_BAD = {
    "10.0.0": "fused attention mismatches PyTorch in fp16 (NVIDIA/TensorRT#3777); 10.0.1 fixes it",
    "10.3.0": "wrong numbers for several transformers (NVIDIA/TensorRT#4558, #4419, #4723); run 'saccade verify'",
    "10.4.0": "DINOv3 ViT-B wrong in fp32 (NVIDIA/TensorRT#4742); run 'saccade verify'",
    "10.7.0": "some attention patterns wrong (NVIDIA/TensorRT#4333); run 'saccade verify'",
    "10.13.3": "q/k/v fusion wrong at batch 1 on SM110 (NVIDIA/TensorRT-Edge-LLM#105); run 'saccade verify'",
    "10.16.1": "fused attention wrong on SM120 in 16 bits (NVIDIA/TensorRT#4837); run 'saccade verify'",
}


def diagnose() -> dict[str, Any]:
    """Return everything as JSON-able data; never raises for what is missing."""
    packages = {name: _version(name) for name in PACKAGES}
    engines = {name: msgspec.to_builtins(_capabilities(name)) for name in ENGINE_NAMES}
    nvidia = _nvidia()
    return {
        "saccade": VERSION,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": cpu(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "nvidia": nvidia,
        "nvcc": shutil.which("nvcc"),
        "packages": packages,
        "engines": engines,
        "advice": _advice(packages, engines, has_gpu=bool(nvidia["gpus"])),
    }


def _capabilities(engine: str) -> Capabilities:
    """Return what an engine can do here; one that is installed but sick must not stop the diagnosis."""
    try:
        return store.backend(engine).capabilities()
    except Exception as error:  # a package built for another NumPy or Python raises anything when it is imported
        remedy = f"pip install --force-reinstall '.[{engine}]' in the clone"
        reason = f"{engine} fails with {type(error).__name__} ({' '.join(str(error).split())}); {remedy}"
        return Capabilities(engine=engine, version=None, can_build=False, can_run=False, missing=reason)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu() -> dict[str, Any]:
    """Return the CPU's name, cores and the instructions that decide which kernels run."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    words = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "name": fields.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in CPU_FLAGS if flag in words],
    }


def _nvidia() -> dict[str, Any]:
    """Ask the driver itself which GPUs there are, since no package is needed for that."""
    gpus, reason = find_gpus()
    return {"gpus": [msgspec.to_builtins(gpu) for gpu in gpus], "missing": None if gpus else reason}


def _advice(packages: dict[str, str | None], engines: dict[str, Any], *, has_gpu: bool) -> list[str]:
    advice = [_remedy(name, found["missing"], has_gpu) for name, found in engines.items() if found["missing"]]
    tensorrt = [name for name in ("tensorrt", "tensorrt-rtx") if engines[name]["can_run"]]
    if tensorrt and not packages["cuda-python"]:  # the binding alone finds the GPU, and then cannot copy to it
        advice += [f"{name}: cuda-python is missing; pip install '.[{name}]' in the clone" for name in tensorrt]
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        advice.append(
            "onnxruntime and onnxruntime-gpu overwrite each other's files; pip uninstall both, then install the one you want"
        )
    if missing := [name for name in ("torch", "onnx", "onnxscript", "polygraphy") if not packages[name]]:
        advice.append(f"export and parity lack {', '.join(missing)}; pip install '.[export]' in the clone")
    advice += _evaluation_advice(packages)
    number = engines["tensorrt"]["version"] or packages["tensorrt"] or ""  # a system package has no wheel's version
    release = ".".join(number.split(".")[:3])  # the fourth number counts builds of one release
    return advice + ([f"tensorrt {release}: {KNOWN_BAD[release]}"] if release in KNOWN_BAD else [])


def _evaluation_advice(packages: dict[str, str | None]) -> list[str]:
    """Return what tasks of evaluate and plots lack."""
    advice = []
    if missing := [name for name in ("scipy", "scikit-learn", "infomap") if not packages[name]]:
        needs = NEEDS_PYTHON["infomap"] if "infomap" in missing and sys.version_info < (3, 11) else ""
        advice.append(f"evaluate lacks {', '.join(missing)}; pip install '.[evaluate]' in the clone{needs}")
    if not packages["matplotlib"]:
        advice.append("plots of evaluate and bench lack matplotlib; pip install '.[bench]' in the clone")
    return advice


def _remedy(engine: str, missing: str, has_gpu: bool) -> str:
    """Return what an engine lacks; installing one that needs a GPU helps nobody who has none."""
    useless = engine.startswith("tensorrt") and "pip install" in missing and not has_gpu
    return f"{missing} - but it runs on NVIDIA GPUs alone, and there is none here" if useless else missing


def lines(data: dict[str, Any]) -> list[str]:
    """Return the diagnosis for people."""
    cpu, nvidia = data["cpu"], data["nvidia"]
    gpus = ", ".join(f"{gpu['name']} {gpu['compute_capability']} (CUDA {gpu['driver']})" for gpu in nvidia["gpus"])
    found = [
        f"saccade {data['saccade']}, Python {data['python']}, {data['platform']}",
        f"CPU: {cpu['name']}, {counted(cpu['cores'], 'core')} ({' '.join(cpu['flags'])}), {data['memory_gb']} GB",
        f"NVIDIA: {gpus or 'no GPU (' + nvidia['missing'] + ')'}; nvcc: {data['nvcc'] or 'not found'}",
        "packages: " + ", ".join(f"{name} {number}" for name, number in data["packages"].items() if number),
        "engines:",
    ]
    for name, engine in data["engines"].items():
        state = "builds and runs" if engine["can_run"] else "builds, cannot run here" if engine["can_build"] else "not here"
        precisions = f" ({', '.join(engine['precisions'])})" if engine["precisions"] else ""
        found.append(f"  {' '.join(filter(None, (name, engine['version'])))}: {state}{precisions}")
    return [*found, *(["advice:"] if data["advice"] else []), *(f"  {line}" for line in data["advice"])]
