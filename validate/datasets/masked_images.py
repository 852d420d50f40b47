"""Images with a mask each, in folders as Pascal VOC's: images/NAME.jpg, SegmentationClass/NAME.png, sets/val.txt."""
from __future__ import annotations

import os
from pathlib import Path

from saccade.errors import SaccadeError
from saccade.runtime.images import IMAGE_SUFFIXES
from saccade.validate.datasets.masked_split import MaskedSplit, checked_split
from saccade.validate.datasets.name_list import read_names
from saccade.validate.datasets.voc import voc_root

IMAGES, MASKS, NAMES = "images", "SegmentationClass", "sets/val.txt"


def read_masked_images(root: Path) -> MaskedSplit:
    """List images that have a mask of their size; where there is sets/val.txt, those that it names.

    Raises SaccadeError where there is no such image.
    """
    root = voc_root(root) or root
    for folder in (IMAGES, MASKS):
        if not (root / folder).is_dir():
            raise SaccadeError(f"{root / folder}: no such folder; images are expected in {IMAGES}/, their masks in {MASKS}/")
    found = {path.stem: path for path in sorted((root / IMAGES).iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
    names = sorted(read_names(root / NAMES)) if os.path.lexists(root / NAMES) else list(found)
    pairs = [(found.get(name, root / IMAGES / f"{name}.jpg"), root / MASKS / f"{name}.png") for name in names]
    return checked_split(str(root), pairs)
