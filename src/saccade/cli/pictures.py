"""Pictures as files, and those that run writes: where LookWhere looked, features as colours, what the heads attend to."""
from __future__ import annotations

import argparse
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from saccade import atomic
from saccade.runtime.feature_pictures import attention_panels, image_panel, pca_colours, pca_panel
from saccade.runtime.overlay import overlay
from saccade.runtime.sheet import Panel, sheet, wrapped

PICTURES = ("overlay", "pca", "attention")  # the options that each name a PNG


def write_pictures(
    options: argparse.Namespace,
    names: Sequence[str],
    images: Sequence[np.ndarray],
    arrays: Mapping[str, np.ndarray],
    patch: int,
) -> None:
    """Write each picture that is asked for; `images` are as the model saw them, `arrays` what it gave."""
    if options.overlay:
        write_png(options.overlay, sheet(_square(_overlays(names, images, arrays, patch))))
    if options.pca:
        write_png(options.pca, sheet(_pca(names, images, arrays, patch)))
    if options.attention:
        heads = _attention(names, images, arrays["attention"], patch, options.attention_mass)
        write_png(options.attention, sheet(heads))


def _square(panels: Sequence[Panel]) -> list[Sequence[Panel]]:
    """Return panels in about as many rows as columns."""
    return wrapped(panels, math.ceil(math.sqrt(len(panels))))


def _overlays(
    names: Sequence[str], images: Sequence[np.ndarray], arrays: Mapping[str, np.ndarray], patch: int
) -> list[Panel]:
    indices = arrays.get("indices")
    kept = "" if indices is None else f", {indices.shape[1]} patches kept"
    return [
        Panel(overlay(image, arrays["score_map"][i], None if indices is None else indices[i], patch), f"{name}{kept}")
        for i, (name, image) in enumerate(zip(names, images, strict=True))
    ]


def _pca(
    names: Sequence[str], images: Sequence[np.ndarray], arrays: Mapping[str, np.ndarray], patch: int
) -> list[list[Panel]]:
    """Return each image beside its colours, so many of these pairs in a row that the sheet is about square."""
    dense = arrays.get("dense")
    if dense is None:  # a backbone's tokens are every cell's
        rows, columns = (extent // patch for extent in images[0].shape[:2])
        dense = np.moveaxis(arrays["tokens"].reshape(len(images), rows, columns, -1), -1, 1)
    colours = pca_colours(dense)(dense)
    panels = [
        panel
        for name, image, each in zip(names, images, colours, strict=True)
        for panel in (image_panel(image, name), pca_panel(image, each, patch))
    ]
    columns = 2 * math.ceil(math.sqrt(len(images) / 2))
    return [panels[start : start + columns] for start in range(0, len(panels), columns)]


def _attention(
    names: Sequence[str], images: Sequence[np.ndarray], attention: np.ndarray, patch: int, mass: float | None
) -> list[Sequence[Panel]]:
    """Return a row, or several, for each image: itself and its heads."""
    from saccade.validate.metrics.attention import mass_mask

    masks = None if mass is None else mass_mask(attention, mass)
    rows: list[Sequence[Panel]] = []
    for i, (name, image) in enumerate(zip(names, images, strict=True)):
        heads = attention_panels(image, attention[i], patch, None if masks is None else masks[i])
        rows += wrapped([image_panel(image, name), *heads])
    return rows


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture whole or not at all."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    atomic.write_bytes(path, buffer.getvalue())
