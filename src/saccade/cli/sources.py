"""What the commands of evaluate run: a bundle on one engine, as a source of features for every k."""
from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Iterator, Sequence

from saccade.bundle import BackboneModel, Bundle
from saccade.cli import options as shared
from saccade.cli.console import Phases
from saccade.errors import SaccadeError
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.loading import load
from saccade.validate.sources import BackboneSource, Kept, Lanes, LookWhereSource, Source, lanes_of


def add_kept(parser: argparse.ArgumentParser, *, several: bool) -> None:
    """Add how many patches LookWhere keeps."""
    count: int | str = "+" if several else 1
    sweep = "; several: a sweep" if several else ""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--k", type=int, nargs=count, metavar="K", help=f"patches that LookWhere keeps{sweep}")
    group.add_argument("--k-ratio", type=float, nargs=count, metavar="R", help=f"share of the patches to keep{sweep}")


def ks_of(bundle: Bundle, options: argparse.Namespace) -> list[Kept | None]:
    """Return what each run keeps: the bundle's default where `add_kept` was given nothing, None for a plain backbone."""
    shared.refuse_lookwhere_only(bundle, options)
    if isinstance(bundle.manifest.model, BackboneModel):
        return [None]
    numbers, ratios = options.k, options.k_ratio
    if numbers:
        if min(numbers) < 1 or len(set(numbers)) < len(numbers):
            raise SaccadeError(f"--k {' '.join(map(str, numbers))}: give numbers from 1, each once")
        return [Kept(number) for number in numbers]
    if ratios:
        if not all(0 < ratio <= 1 for ratio in ratios) or len(set(ratios)) < len(ratios):
            raise SaccadeError(f"--k-ratio {' '.join(map(str, ratios))}: give shares above 0 up to 1, each once")
        return [Kept(ratio=ratio) for ratio in ratios]
    return [Kept(bundle.manifest.defaults.k, bundle.manifest.defaults.k_ratio)]


@contextlib.contextmanager
def open_sources(
    bundle: Bundle, options: argparse.Namespace, engine: str, precision: str, ks: Sequence[Kept | None]
) -> Iterator[list[Source]]:
    """Yield a source for every k on one engine, as the options of `add_running` say."""
    opened = functools.partial(
        load, bundle, engine=engine, precision=precision, device=options.device, threads=options.threads
    )
    with Phases() as phases:
        pipeline = opened(build=not options.no_build, progress=phases, note=phases.note)
    streams = lanes_of(engine, options.device, options.threads)
    lanes = Lanes(functools.partial(opened, build=False, streams=streams)) if streams > 1 else None
    with pipeline, contextlib.closing(lanes) if lanes else contextlib.nullcontext():
        if isinstance(pipeline, BackbonePipeline):
            yield [BackboneSource(pipeline, lanes)]
        else:
            yield [LookWhereSource(pipeline, k, lanes) for k in ks if k is not None]
