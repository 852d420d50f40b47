"""Pictures as files, and those that run writes: where LookWhere looked, features as colours, what the heads attend to."""
from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from saccade import atomic
from saccade.runtime.feature_pictures import attention_picture, pca_colours, pca_picture
from saccade.runtime.overlay import contact_sheet, overlay

PICTURES = ("overlay", "pca", "attention")  # the options that each name a PNG


def write_pictures(
    options: argparse.Namespace, images: Sequence[np.ndarray], arrays: Mapping[str, np.ndarray], patch: int
) -> None:
    """Write each picture that is asked for; `images` are as the model saw them, `arrays` what it gave."""
    if options.overlay:
        write_png(options.overlay, contact_sheet(_overlays(images, arrays, patch)))
    if options.pca:
        write_png(options.pca, contact_sheet(_pca(images, arrays, patch)))
    if options.attention:
        heads = _attention(images, arrays["attention"], patch, options.attention_mass)
        write_png(options.attention, contact_sheet(heads))


def _overlays(images: Sequence[np.ndarray], arrays: Mapping[str, np.ndarray], patch: int) -> list[Image.Image]:
    indices = arrays.get("indices")
    return [
        overlay(image, arrays["score_map"][i], None if indices is None else indices[i], patch)
        for i, image in enumerate(images)
    ]


def _pca(images: Sequence[np.ndarray], arrays: Mapping[str, np.ndarray], patch: int) -> list[Image.Image]:
    dense = arrays.get("dense")
    if dense is None:  # a backbone's tokens are every cell's
        rows, columns = (extent // patch for extent in images[0].shape[:2])
        dense = np.moveaxis(arrays["tokens"].reshape(len(images), rows, columns, -1), -1, 1)
    colours = pca_colours(dense)(dense)
    return [pca_picture(image, each, patch) for image, each in zip(images, colours, strict=True)]


def _attention(
    images: Sequence[np.ndarray], attention: np.ndarray, patch: int, mass: float | None
) -> list[Image.Image]:
    from saccade.validate.metrics.attention import mass_mask

    masks = None if mass is None else mass_mask(attention, mass)
    return [
        attention_picture(image, attention[i], patch, None if masks is None else masks[i])
        for i, image in enumerate(images)
    ]


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture whole or not at all."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    atomic.write_bytes(path, buffer.getvalue())
