"""What the commands of evaluate run: a bundle on one engine, as a source of features for every k."""
from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from saccade.bundle import BackboneModel, Bundle
from saccade.cli.console import Phases
from saccade.errors import SaccadeError
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.kept import kept_on
from saccade.runtime.loading import load
from saccade.validate.sources import BackboneSource, LookWhereSource, Source, lanes_of


def ks_of(bundle: Bundle, asked: Sequence[int] | None) -> list[int | None]:
    """Return the k of every run: one, and None for a network that sees every patch."""
    model = bundle.manifest.model
    if isinstance(model, BackboneModel):
        if asked:
            raise SaccadeError(f"--k means nothing to a plain backbone, and {bundle.path} is one; leave it out")
        return [None]
    if asked:
        if min(asked) < 1 or len(set(asked)) < len(asked):
            raise SaccadeError(f"--k {' '.join(map(str, asked))}: give numbers from 1, each once")
        return list(asked)
    defaults = bundle.manifest.defaults
    grid = (defaults.size[0] // model.patch, defaults.size[1] // model.patch)
    return [kept_on(grid, defaults)]


@contextlib.contextmanager
def open_sources(
    bundle: Bundle, options: argparse.Namespace, engine: str, precision: str, ks: Sequence[int | None]
) -> Iterator[list[Source]]:
    """Yield a source for every k on one engine, as the options of `add_running` say."""
    opened = functools.partial(
        load, bundle, engine=engine, precision=precision, device=options.device, threads=options.threads
    )
    with Phases() as phases:
        pipeline = opened(build=not options.no_build, progress=phases, note=phases.note)
    streams = lanes_of(engine, options.device, options.threads)
    lanes: Any = functools.partial(opened, build=False, streams=streams) if streams > 1 else None
    with pipeline:
        if isinstance(pipeline, BackbonePipeline):
            yield [BackboneSource(pipeline, lanes)]
        else:
            yield [LookWhereSource(pipeline, k, lanes) for k in ks if k is not None]
