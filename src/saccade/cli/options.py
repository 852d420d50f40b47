"""Options that several commands share: one spelling, one help text, one meaning."""
from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from saccade import atomic
from saccade.bundle import MANIFEST, Bundle, Model
from saccade.cli.console import Phases
from saccade.engines.engine import ENGINE_NAMES
from saccade.engines.openvino import without_telemetry
from saccade.errors import SaccadeError, raise_interrupt
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.chain import Pipeline
from saccade.runtime.images import FITS, IMAGE_SUFFIXES
from saccade.runtime.loading import DEFAULT_ENGINE, load

EXPORT_MODULES = ("torch", "onnx", "onnxscript", "onnxruntime", "polygraphy")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
# What only LookWhere has a meaning for: it selects patches, and a plain backbone sees them all.
LOOKWHERE_ONLY = ("k", "k_ratio", "static", "look", "cls_only", "overlay")


def size(text: str) -> tuple[int, int]:
    """Read S or HxW as (height, width) pixels."""
    height, cross, width = text.lower().partition("x")
    try:
        return int(height), int(width if cross else height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither S nor HxW, in pixels") from None


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add the bundle folder."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle folder, as written by 'saccade export'")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add which engine, in which precision, where."""
    parser.add_argument("--engine", choices=ENGINE_NAMES, default=DEFAULT_ENGINE, help="default: %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s")
    parser.add_argument("--device", metavar="cpu|N", help="cpu, or the number of a GPU (default: the engine's own kind)")


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the engine and how it runs here."""
    add_engine(parser)
    parser.add_argument("--threads", type=int, default=0, metavar="T", help="CPU threads (default: 0, the engine's choice)")
    parser.add_argument("--no-build", action="store_true", help="stop where the engine is missing or stale")


def add_static(parser: argparse.ArgumentParser) -> None:
    """Add the static pair of engines."""
    parser.add_argument("--static", action="store_true", help="engines for batch 1 and this k alone: faster (openvino)")


def add_cls_only(parser: argparse.ArgumentParser) -> None:
    """Add the extractor without patch tokens."""
    parser.add_argument("--cls-only", action="store_true", help="cls (or logits) without patch tokens: faster (openvino)")


def open_pipeline(
    bundle: Bundle, options: argparse.Namespace, *, static: bool | int = False, cls_only: bool = False
) -> Pipeline | BackbonePipeline:
    """Load the engine that the options of `add_running` ask for, showing what is being built."""
    with Phases() as phases:
        return load(
            bundle,
            engine=options.engine,
            precision=options.precision,
            device=options.device,
            threads=options.threads,
            static=static,
            cls_only=cls_only,
            build=not options.no_build,
            progress=phases,
            note=phases.note,
        )


def refuse_lookwhere_only(bundle: Bundle, options: argparse.Namespace) -> None:
    """Refuse options that mean nothing to a plain backbone, where the bundle is one."""
    if isinstance(bundle.manifest.model, Model):
        return
    for name in LOOKWHERE_ONLY:
        if getattr(options, name, None) not in (None, False):
            flag = f"--{name.replace('_', '-')}"
            raise SaccadeError(f"{flag} means nothing to a plain backbone, which sees every patch; leave it out")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add size, k and fit."""
    parser.add_argument("--size", type=size, metavar="S|HxW", help="pixels; default: the bundle's")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--k", type=int, metavar="K", help="patches to keep; default: the bundle's")
    kept.add_argument("--k-ratio", type=float, metavar="R", help="share of the patches to keep")
    parser.add_argument(
        "--fit",
        choices=FITS,
        default="squash",
        help="squash both sides (default), crop to the centre, or keep the native size in whole patches",
    )


def require_modules(modules: Iterable[str], extra: str) -> None:
    """Say in one line which modules of an extra are missing, before anything slow is done.

    `modules` are import names; a mapping gives the name of each one's distribution, which is what the line says.
    """
    missing = []
    for module in modules:
        try:
            with without_telemetry():
                __import__(module)
        except ImportError as error:
            raise_interrupt(error)
            missing.append(modules[module] if isinstance(modules, Mapping) else module)
    if missing:
        raise SaccadeError(f"{', '.join(missing)} cannot be imported; pip install '.[{extra}]' in the clone")


def refuse_inside_bundle(flag: str, path: Path) -> None:
    """Refuse an output that would stand among a bundle's own files."""
    if (path.parent / MANIFEST).is_file() or (path / MANIFEST).is_file():
        raise SaccadeError(f"{flag} {path}: that is inside a bundle; choose a place outside")


def check_output(flag: str, path: Path | None, suffix: str) -> None:
    """Refuse an output file that has no place to go or another kind's name, before anything slow is done."""
    if path is None:
        return
    if path.suffix != suffix:
        raise SaccadeError(f"{flag} {path}: it is written as {suffix}; end the name so")
    if path.is_dir() or not path.parent.is_dir():
        problem = errno.EISDIR if path.is_dir() else errno.ENOENT
        raise atomic.write_error(path, OSError(problem, os.strerror(problem)))
    refuse_inside_bundle(flag, path)
    atomic.check_writable(path)


def image_paths(folder: Path, flag: str = "--images") -> list[Path]:
    """Return the image files of a folder (or the one file given), sorted by name; `flag` is what named it."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise SaccadeError(f"{flag} {folder}: no such file or folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise SaccadeError(f"{flag} {folder}: holds no images ({kinds}); folders inside it are not searched")
    return paths
