"""What an engine is compared with: the checkpoint that the bundle was made of, in PyTorch, on images."""
from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saccade.backbone_golden import backbone_cases_of
from saccade.bundle import Bundle, ImageContract, Model, family_of, sha256_of_file
from saccade.cli import options as shared
from saccade.contract import extras_of
from saccade.errors import SaccadeError
from saccade.golden import cases_of
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.chain import Pipeline
from saccade.runtime.images import read_rgb

if TYPE_CHECKING:
    from saccade.backbone_golden import BackboneCase
    from saccade.export.backbone_checkpoint import BackboneCheckpoint
    from saccade.export.checkpoint import Checkpoint
    from saccade.golden import Case


class Group(NamedTuple):
    """Images of one size and how many patches to keep of each; a plain backbone keeps them all."""

    images: list[np.ndarray]
    k: int | None


def matching_checkpoint(bundle: Bundle, path: Path) -> Checkpoint | BackboneCheckpoint:
    """Read the checkpoint that the bundle was made of, or say what is missing, before an engine is built."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise SaccadeError("the checkpoint is run in torch; pip install '.[export]' in the clone") from error
    manifest = bundle.manifest
    if path.is_file():  # another file may be of another kind, which would be read with a remedy that is none here
        _check_same(bundle, path, sha256_of_file(path))
    if isinstance(manifest.model, Model):
        from saccade.export.checkpoint import read_checkpoint

        return read_checkpoint(path)
    from saccade.export.backbone_checkpoint import read_backbone

    return read_backbone(path, family_of(manifest.model), manifest.provenance.get("checkpoint_key"))


def _check_same(bundle: Bundle, path: Path, sha256: str) -> None:
    if sha256 != bundle.manifest.provenance.get("checkpoint_sha256"):
        raise SaccadeError(f"{path} is not the checkpoint that {bundle.path} was made of; give that file, or export again")


def given_images(bundle: Bundle, options: argparse.Namespace) -> Sequence[Path | Group]:
    """Return the images to compare on, each known to be one: files of a folder, else the bundle's golden images."""
    if options.images is not None:
        paths = shared.image_paths(options.images)
        for path in paths:
            read_rgb(path)  # decoded again when its turn comes: whole photographs of a folder may not fit in memory
        return paths
    if options.size or options.k or options.k_ratio or options.fit != "squash":
        raise SaccadeError("--size, --k, --k-ratio and --fit are for images of your own; give --images DIR too")
    if not isinstance(bundle.manifest.model, Model):
        return [Group(list(case.images), None) for case in backbone_cases_of(bundle)]
    return [Group(list(case.images), case.output.indices.shape[1]) for case in cases_of(bundle)]


def fitted(pipeline: Pipeline | BackbonePipeline, path: Path, options: argparse.Namespace) -> Group:
    """Return one image of a folder as a group of its own, at the size and k that the options ask for."""
    images = pipeline.pixels(path, options.size, options.fit)
    if isinstance(pipeline, BackbonePipeline):
        return Group(images, None)
    return Group(images, pipeline.kept(pipeline.grid_of(images[0]), options.k, options.k_ratio))


def reference_cases(checkpoint: Checkpoint, task: str, groups: Sequence[Group], threads: int) -> Iterator[Case]:
    """Yield the cases of LookWhere's reference, each run when it is asked for."""
    import torch

    from saccade.export.reference import Reference, reference_case

    use_threads(threads)
    reference, exact = Reference(checkpoint, task), Reference(checkpoint, task, torch.float64)
    for images, k in groups:
        assert k is not None
        yield reference_case(reference, exact, images, k)


def backbone_cases(
    checkpoint: BackboneCheckpoint, image: ImageContract, groups: Sequence[Group], threads: int
) -> Iterator[BackboneCase]:
    """Yield the cases of a plain backbone's reference, each run when it is asked for."""
    import torch

    from saccade.export.backbone_reference import BackboneReference, backbone_case

    use_threads(threads)
    extras = extras_of(checkpoint.model)
    reference, exact = (BackboneReference(checkpoint, extras, dtype, image) for dtype in (torch.float32, torch.float64))
    for images, _ in groups:
        yield backbone_case(reference, exact, images)


def use_threads(threads: int) -> None:
    """Run PyTorch on so many threads; 0 leaves it its own choice."""
    import torch

    if threads:
        torch.set_num_threads(threads)
