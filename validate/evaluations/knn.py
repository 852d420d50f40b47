"""k-NN classification of an ImageFolder by cls, with PW-Self's and DINO's preparation (eval_knn.py)."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from saccade.counted import counted
from saccade.errors import SaccadeError
from saccade.validate.datasets.image_folder import (
    ImageFolder,
    failed_note,
    labels_of,
    read_image_folder,
    shares_by_class,
    training_labels,
)
from saccade.validate.evaluations.task import Outcome, Score, Settings, Task
from saccade.validate.extraction import Extractor
from saccade.validate.metrics.knn import NEIGHBOURS, TEMPERATURE, KnnResult, evaluate_knn
from saccade.validate.preparation import ShortSideCrop, checked_side
from saccade.validate.sources import CLS

SIZE = 224
USUAL = 20  # neighbours of the headline where they are among those asked for: "usually best", says DINO's README
SHORT_SIDE_OF_CROP = 256 / 224  # eval_knn.py resizes to 256 and crops 224


class KnnSettings(Settings, frozen=True):
    """Options of the task."""

    size: Annotated[int, Meta(ge=0, description="pixels of the crop (0: 224 in whole patches)")] = 0
    neighbours: Annotated[
        tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=1, description="how many neighbours vote")
    ] = NEIGHBOURS
    temperature: Annotated[float, Meta(gt=0, description="of the votes, exp(cosine / T)")] = TEMPERATURE


def read(root: Path, settings: KnnSettings) -> ImageFolder:
    """List the images; more neighbours than images are left out when the unreadable ones are known."""
    if len(set(settings.neighbours)) < len(settings.neighbours):
        raise SaccadeError(f"--neighbours {' '.join(map(str, settings.neighbours))}: give each number once")
    return read_image_folder(root)


def evaluate(data: ImageFolder, extract: Extractor, settings: KnnSettings) -> Outcome:
    """Classify the validation images by the training images.

    A number of neighbours above the number of training images is left out, as long as one is left.
    """
    size = checked_side(settings.size, extract.source.patch, SIZE)
    prepare = ShortSideCrop(round(size * SHORT_SIDE_OF_CROP), size)
    train = extract(data.train.paths, prepare, [CLS], label="train")
    val = extract(data.val.paths, prepare, [CLS], label="val")
    usable = sorted(k for k in settings.neighbours if k <= len(train.names)) or sorted(settings.neighbours)
    labels = labels_of(data.val, val)
    with extract.bar(len(train.names), f"{extract.source.label}: neighbours") as bar:
        results = evaluate_knn(
            train.arrays[CLS], training_labels(data, train), val.arrays[CLS], labels, len(data.classes), usable,
            settings.temperature, bar.update,
        )  # fmt: skip
    headline = usable.index(USUAL if USUAL in usable else next(k for k in settings.neighbours if k in usable))
    hits = results[headline].top1_hits
    left_out = [k for k in settings.neighbours if k not in usable]
    trained = counted(len(train.names), "training image")
    too_many = (f"neighbours {left_out} are more than {trained} and are left out",)
    notes = (*data.notes, *failed_note(train, "train"), *failed_note(val, "val"), *(too_many if left_out else ()))
    scores = [_scores(result) for result in results]
    details = {"top1_by_class": shares_by_class(data, labels, hits)}
    listed = tuple(score for pair in scores for score in pair)
    place = listed.index(scores[headline][0])
    return Outcome(listed, hits.astype(np.float64), headline=place, notes=notes, details=details)


def _scores(result: KnnResult) -> tuple[Score, Score]:
    neighbours = counted(result.k, "neighbour")
    return Score(f"top-1, {neighbours}", result.top1), Score(f"top-5, {neighbours}", result.top5)


TASK = Task(
    "knn", "k-NN classification by cls", "train/CLASS/*.jpg, val/CLASS/*.jpg (ImageFolder)", KnnSettings, read, evaluate,
    on_lookwhere=True,
)  # fmt: skip
