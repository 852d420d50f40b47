"""The command run: images -> features, with pictures of where the model looked and of what it saw."""
from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saccade import atomic
from saccade.bundle import Bundle, Model, read_bundle
from saccade.cli import options as shared
from saccade.cli.console import Report, printable, progress_bar
from saccade.cli.npz_rows import NpzRows
from saccade.cli.pictures import PICTURES, write_pictures
from saccade.counted import agreeing, counted
from saccade.engines.engine import STATIC_BATCH
from saccade.errors import SaccadeError
from saccade.runtime.backbone import BackbonePipeline, Features
from saccade.runtime.chain import Look, Output, Pipeline
from saccade.runtime.finite import row_not_finite
from saccade.runtime.images import check_size
from saccade.runtime.kept import kept_on
from saccade.runtime.memory import peak_bytes
from saccade.runtime.pipeline import Clock

CHUNK = 8  # images per call of the chain; more do not run faster and cost memory. A static pair takes one
TOP = 5
MOST_PICTURED = 64  # images on one sheet: all of them are held until it is drawn


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Run a bundle on images, or on those of a folder in order of their names, and write what it gives. "
        "All images of one run share a size."
    )
    shared.add_bundle(parser)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE|FOLDER", help="image files, and folders of them")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read, and name them")
    shared.add_running(parser)
    shared.add_static(parser)
    shared.add_cls_only(parser)
    shared.add_selection(parser)
    parser.add_argument("--dense", action="store_true", help="also give every cell's features (always on for segment)")
    parser.add_argument("--look", action="store_true", help="run only the selector: its map, no features")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.npz", help="write the arrays, a row for each image")
    parser.add_argument("--overlay", type=Path, metavar="OUT.png", help="write the score map and the kept patches")
    parser.add_argument(
        "--pca", type=Path, metavar="OUT.png", help="write the principal components of all patches' features as colours"
    )
    parser.add_argument("--attention", type=Path, metavar="OUT.png", help="write what each head of a backbone's cls sees")
    parser.add_argument("--attention-mass", type=float, metavar="M", help="outline there the patches that hold this share")
    parser.set_defaults(execute=run)


def run(options: argparse.Namespace) -> Report:
    """Run all images and report shapes, top classes and times."""
    paths = _listed(options.images)
    _check_options(options)
    _check_files(options, paths)
    bundle = read_bundle(options.bundle)
    _check_kind(bundle, options)
    k = _checked_k(bundle, options)
    static = k if options.static and k is not None else False
    with shared.open_pipeline(bundle, options, static=static, cls_only=options.cls_only) as pipeline, ExitStack() as stack:
        rows = NpzRows(stack.enter_context(atomic.scratch_folder(options.output))) if options.output else None
        given = _run_all(pipeline, options, paths, rows)
        if rows:
            rows.write(options.output, np.array([printable(str(path)) for path in given.paths]))
    if given.pictured:
        names = [path.name for path in given.paths]
        write_pictures(options, names, given.pictured, _concatenated(given.parts), bundle.manifest.model.patch)
    return _report(options, given, pipeline)


@dataclass
class _Given:
    """What a run gave, image by image; arrays and the images themselves only where a picture needs them."""

    paths: list[Path]  # all that were asked for, and in the end those that could be read
    unreadable: dict[str, str] = field(default_factory=dict)  # with --skip-unreadable: path, why
    last: dict[str, np.ndarray] = field(default_factory=dict)  # of the last call, for names, types and shapes
    top: list[list[dict[str, Any]]] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)  # milliseconds of each call
    pictured: list[np.ndarray] = field(default_factory=list)
    parts: list[dict[str, np.ndarray]] = field(default_factory=list)

    def shapes(self) -> dict[str, list[int]]:
        """Return the shape of each array over all images."""
        return {name: [len(self.paths), *array.shape[1:]] for name, array in self.last.items()}

    def ms_per_image(self) -> dict[str, float]:
        """Return each stage's total over all calls, shared among the images."""
        names = dict.fromkeys(name for timings in self.stages for name in timings)
        totals = {name: sum(timings.get(name, 0.0) for timings in self.stages) for name in names}
        return {name: round(total / len(self.paths), 3) for name, total in totals.items()}


def _listed(given: Sequence[Path]) -> list[Path]:
    """Return the images, with those of a folder in its place."""
    return [image for path in given for image in (shared.image_paths(path, "IMAGE") if path.is_dir() else [path])]


def _check_options(options: argparse.Namespace) -> None:
    """Refuse options that exclude each other."""
    chosen = options.k is not None or options.k_ratio is not None
    if options.look and (options.dense or chosen or options.static or options.cls_only):
        others = "--dense, --k, --k-ratio, --static and --cls-only"
        raise SaccadeError(f"--look gives the selector's map alone; leave out {others}")
    if options.static and options.fit == "native" and options.k is None:
        raise SaccadeError("--static is for one k, and with --fit native each size has its own; give --k too")
    if options.cls_only and options.dense:
        raise SaccadeError("--dense is filled from the patch tokens that --cls-only leaves out; give one of them")
    if options.attention_mass is not None:
        if not options.attention:
            raise SaccadeError("--attention-mass is drawn into the heat maps of --attention; give that too")
        if not 0 < options.attention_mass <= 1:
            raise SaccadeError(f"--attention-mass {options.attention_mass} is no share; give more than 0, at most 1")


def _check_files(options: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Refuse, before anything slow, outputs with no place to go and images that are not there."""
    pictures = [(f"--{name}", path) for name in PICTURES if (path := getattr(options, name))]
    if pictures and len(paths) > MOST_PICTURED:
        raise SaccadeError(f"{pictures[0][0]} shows at most {MOST_PICTURED} images, and these are {len(paths)}; give fewer")
    if len({os.path.realpath(path) for _, path in pictures}) < len(pictures):
        raise SaccadeError(f"{' and '.join(flag for flag, _ in pictures)} name one file; give each picture its own")
    shared.check_output("-o", options.output, ".npz")
    for flag, path in pictures:
        shared.check_output(flag, path, ".png")
    for flag, path in (("-o", options.output), *pictures):
        if path is not None and path.exists() and os.path.realpath(path) in map(os.path.realpath, paths):
            raise SaccadeError(f"{flag} {path} is one of the images; choose another name")
    # A folder may hold links to nothing: images as bad as others.
    for path in options.images if options.skip_unreadable else paths:
        if not path.exists():
            raise SaccadeError(f"{path}: no such image file")


def _check_kind(bundle: Bundle, options: argparse.Namespace) -> None:
    """Refuse options that mean nothing to the bundle's kind of model."""
    shared.refuse_lookwhere_only(bundle, options)
    if not isinstance(bundle.manifest.model, Model):
        return
    if options.attention:
        raise SaccadeError("--attention draws what a plain backbone gives and LookWhere does not; use --overlay")
    if options.pca and not (options.dense or bundle.manifest.task == "segment"):
        raise SaccadeError("--pca colours every cell, and LookWhere fills them only with --dense; give that too")


def _checked_k(bundle: Bundle, options: argparse.Namespace) -> int | None:
    """Return k where it is known, and refuse before an engine is built or loaded what the bundle alone can tell."""
    if options.fit == "native":  # the grid is the images' own
        k: int | None = options.k
        return k
    model, defaults = bundle.manifest.model, bundle.manifest.defaults
    patch = model.patch
    height, width = check_size(options.size or defaults.size, patch)
    if options.look or not isinstance(model, Model):
        return None
    dense = options.dense or bundle.manifest.task == "segment"
    return kept_on((height // patch, width // patch), defaults, options.k, options.k_ratio, dense)


def _run_all(
    pipeline: Pipeline | BackbonePipeline, options: argparse.Namespace, paths: list[Path], rows: NpzRows | None
) -> _Given:
    """Run so many images at a time, and hold no more of them than that unless a picture shows them all."""
    given, clock = _Given(paths), Clock()
    size = STATIC_BATCH if options.static else CHUNK
    readable = (path for path in paths if str(path) not in given.unreadable)  # asked once their images have been read
    with progress_bar(len(paths), "run") as bar:

        def skip(index: int, error: SaccadeError) -> None:
            given.unreadable[str(paths[index])] = str(error)
            bar.update(1)

        fitted = pipeline.each_fitted(paths, options.size, options.fit, clock, skip if options.skip_unreadable else None)
        while chunk := list(itertools.islice(fitted, size)):
            output = _run_chunk(pipeline, chunk, options)
            arrays = _arrays(output, dense=options.dense)
            _check_finite(arrays, list(itertools.islice(readable, len(chunk))))
            given.last = arrays
            given.top += [_top(logits) for logits in arrays.get("logits", ())]
            given.stages.append(output.timings_ms)
            if rows:
                rows.append(arrays)
            if any(getattr(options, name) for name in PICTURES):
                given.pictured += chunk
                given.parts.append(arrays)
            bar.update(len(chunk))
            del chunk  # else it would be held while the next one is decoded
    given.paths = [path for path in paths if str(path) not in given.unreadable]
    if not given.paths:
        first = next(iter(given.unreadable.values()))
        raise SaccadeError(f"none of {counted(len(paths), 'image')} can be read, first: {first}")
    given.stages.append(clock.timings_ms)
    return given


def _run_chunk(
    pipeline: Pipeline | BackbonePipeline, chunk: list[np.ndarray], options: argparse.Namespace
) -> Look | Features:
    size = (chunk[0].shape[0], chunk[0].shape[1])
    if isinstance(pipeline, BackbonePipeline):
        return pipeline(chunk, size=size)
    if options.look:
        return pipeline.look(chunk, size=size)
    return pipeline(chunk, k=options.k, k_ratio=options.k_ratio, size=size, dense=options.dense)


def _arrays(output: Look | Features, *, dense: bool) -> dict[str, np.ndarray]:
    if isinstance(output, Features):
        return output.arrays() | ({"dense": output.dense} if dense else {})
    if isinstance(output, Output):
        return output.arrays()
    return {"score_map": output.score_map, "prefix": output.prefix}


def _check_finite(arrays: dict[str, np.ndarray], paths: list[Path]) -> None:
    """Refuse features that are no numbers: an engine in a low precision may overflow, and nothing after it would say so."""
    for name, array in arrays.items():
        if (row := row_not_finite(array)) is not None:
            raise SaccadeError(f"{paths[row]}: its {name} holds NaN or infinity; look at the engine with saccade verify")


def _concatenated(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _report(options: argparse.Namespace, given: _Given, pipeline: Pipeline | BackbonePipeline) -> Report:
    written = {name: path for name in ("output", *PICTURES) if (path := getattr(options, name))}
    shapes, timings = given.shapes(), given.ms_per_image()
    data: dict[str, Any] = {
        "images": [str(path) for path in given.paths],
        "unreadable": given.unreadable,
        "engine": pipeline.receipt.engine,
        "engine_version": pipeline.receipt.conditions.get("version"),
        "precision": pipeline.receipt.precision,
        "key": pipeline.receipt.key,
        "outputs": shapes,
        "ms_per_image": timings,
        "peak_memory_mb": round(peak_bytes() / 1e6, 1),
    }
    if isinstance(pipeline, Pipeline):
        data |= {"static_k": pipeline.static_k, "cls_only": pipeline.cls_only}
    data |= {name: str(path) for name, path in written.items()}
    lines = [f"{name}: {array.dtype} {shapes[name]}" for name, array in given.last.items()]
    if given.top:
        data["top"] = given.top
        lines += [
            f"{path}: " + ", ".join(f"class {entry['class']} {entry['probability']:.3f}" for entry in top)
            for path, top in zip(given.paths, given.top, strict=True)
        ]
    if given.unreadable:
        lines += [f"left out: {why}" for why in given.unreadable.values()]
        lost, left = len(given.unreadable), len(given.paths)
        left_out = f"{counted(lost, 'image')} could not be read and {agreeing(lost, 'is', 'are')} left out"
        lines.append(f"{left_out}, {left} {agreeing(left, 'is', 'are')} not")
    lines.append("ms per image: " + ", ".join(f"{name} {value:.2f}" for name, value in timings.items()))
    return Report(data, lines + [f"wrote {path}" for path in written.values()])


def _top(logits: np.ndarray) -> list[dict[str, Any]]:
    """Return the best classes of one image with their softmax."""
    exponents = np.exp(logits.astype(np.float64) - logits.max())
    best = np.argsort(-logits, kind="stable")[:TOP]
    return [{"class": int(i), "probability": float(exponents[i] / exponents.sum())} for i in best]
