"""Images with a mask each, in folders as Pascal VOC's: images/NAME.jpg, SegmentationClass/NAME.png, sets/val.txt."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saccade.errors import SaccadeError
from saccade.validate.datasets.image_folder import IMAGE_SUFFIXES
from saccade.validate.datasets.mask_file import left_out_note, size_problem
from saccade.validate.datasets.name_list import read_names
from saccade.validate.datasets.voc import voc_root

IMAGES, MASKS, NAMES = "images", "SegmentationClass", "sets/val.txt"


@dataclass(frozen=True)
class MaskedImages:
    """Image files and their masks, of one size each, sorted by name."""

    images: list[Path]
    masks: dict[Path, Path]
    notes: tuple[str, ...]


def read_masked_images(root: Path) -> MaskedImages:
    """List images that have a mask of their size; where there is sets/val.txt, those that it names.

    Raises SaccadeError where there is no such image.
    """
    root = voc_root(root) or root
    for folder in (IMAGES, MASKS):
        if not (root / folder).is_dir():
            raise SaccadeError(f"{root / folder}: no such folder; images are expected in {IMAGES}/, their masks in {MASKS}/")
    found = {path.stem: path for path in sorted((root / IMAGES).iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
    names = sorted(read_names(root / NAMES)) if (root / NAMES).exists() else list(found)
    pairs = [(found.get(name, root / IMAGES / f"{name}.jpg"), root / MASKS / f"{name}.png") for name in names]
    problems = {image: problem for image, mask in pairs if (problem := size_problem(image, mask))}
    masks = {image: mask for image, mask in pairs if image not in problems}
    if not masks:
        first = next(iter(problems.values()), "the folder is empty")
        raise SaccadeError(f"{root}: none of {len(pairs)} images has a mask of its size ({first})")
    return MaskedImages(list(masks), masks, left_out_note("images", list(problems.values()), len(pairs)))
