"""Video object segmentation on DAVIS 2017: the first frame's mask passed on by patch tokens (eval_video_segmentation.py)."""
from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta
from PIL import Image

from saccade.counted import agreeing, counted
from saccade.errors import SaccadeError
from saccade.runtime.kept import MAX_CELLS
from saccade.validate.datasets.davis import Davis, Video, read_davis
from saccade.validate.datasets.mask_file import left_out_note, read_mask, read_palette
from saccade.validate.evaluations.task import Outcome, Score, Settings, Task
from saccade.validate.extraction import Extractor
from saccade.validate.features import NothingReadableError
from saccade.validate.metrics.contours import VOID, VideoScore, score_video
from saccade.validate.metrics.resize import resize_bilinear
from saccade.validate.metrics.video import LAST_FRAMES, RADIUS, TOP_K, first_labels, frame_mask, propagate_labels
from saccade.validate.preparation import read_as_pillow, whole_patches
from saccade.validate.sources import TOKENS

SHORT_SIDE = 480
STEP = 64  # pixels: read_frame rounds the longer side down to a multiple


class VideoSettings(Settings, frozen=True):
    """Options of the task."""

    size: Annotated[int, Meta(ge=1, description="pixels of the shorter side, rounded to whole patches")] = SHORT_SIDE
    last_frames: Annotated[int, Meta(ge=1, description="frames that labels come from, beside the first")] = LAST_FRAMES
    radius: Annotated[int, Meta(ge=0, description="how many patches away labels may come from (0: any)")] = RADIUS
    top_k: Annotated[int, Meta(ge=1, description="most alike patches that a patch takes its label from")] = TOP_K


@dataclass(frozen=True)
class FrameSides:
    """Resizes the shorter side to `short` and the longer one alike, down to a multiple of 64; then both to whole patches.

    Bilinear without antialias, as the OpenCV resize of read_frame.
    """

    short: int
    patch: int

    def __call__(self, path: Path) -> np.ndarray:
        """Read and resize."""
        image = read_as_pillow(path)
        size = self.size(image.shape[0], image.shape[1])
        cells = size[0] // self.patch * (size[1] // self.patch)
        if cells > MAX_CELLS:
            raise SaccadeError(f"{path} makes {cells} patches at this size; at most {MAX_CELLS} are supported")
        if image.shape[:2] == size:
            return image
        planes = resize_bilinear(image.transpose(2, 0, 1), size)
        return np.ascontiguousarray(np.rint(planes).astype(np.uint8).transpose(1, 2, 0))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that a frame of this size is brought to."""
        long = max(1, self.short * max(height, width) // min(height, width) // STEP) * STEP
        sides = (long, self.short) if height > width else (self.short, long)
        return whole_patches(sides[0], self.patch), whole_patches(sides[1], self.patch)


@dataclass(frozen=True)
class Followed:
    """A video with its masks found: its score, and the masks packed, since those of all of DAVIS are 800 MB."""

    video: Video
    score: VideoScore
    late: bool  # whether objects appear that the first mask does not hold
    size: tuple[int, int]
    packed: list[bytes]

    @property
    def sums(self) -> tuple[float, ...]:
        """J, F and their recalls, each summed over the objects, and the number of these."""
        return *self.score.object_means.sum(axis=0), *self.score.object_recalls.sum(axis=0), len(self.score.region)

    def details(self) -> dict[str, list[float]]:
        """Return J and F of each object in percent."""
        region, contour = 100 * self.score.object_means.T
        return {"J": region.round(2).tolist(), "F": contour.round(2).tolist()}

    def masks(self) -> Iterator[np.ndarray]:
        """Yield the mask of each frame, uint8 (H, W)."""
        return (np.frombuffer(zlib.decompress(each), np.uint8).reshape(self.size) for each in self.packed)


def read(root: Path, settings: VideoSettings) -> Davis:
    """List the videos of the validation list."""
    return read_davis(root)


def evaluate(data: Davis, extract: Extractor, settings: VideoSettings) -> Outcome:
    """Follow the objects of every video; a video with a file that cannot be read is left out whole, and counted."""
    found, problems, patch = [], [], extract.source.patch
    prepare = FrameSides(whole_patches(settings.size, patch), patch)
    for number, video in enumerate(data.videos, start=1):
        try:
            truth = _truth(video)
        except SaccadeError as error:
            problems.append(str(error))
            continue
        try:
            features = extract(video.frames, prepare, [TOKENS], label=f"{video.name}, {number} of {len(data.videos)}")
        except NothingReadableError as error:
            problems.append(str(error))
            continue
        if features.failed:
            problems.append(next(iter(features.failed.values())))
            continue
        with extract.bar(len(video.frames), f"{extract.source.label}: following {video.name}", unit="frame") as bar:
            found.append(_follow(video, truth, features.arrays[TOKENS], prepare, settings, bar.update))
    if not found:
        raise SaccadeError(f"none of {counted(len(data.videos), 'video')} can be used ({problems[0]})")
    # J and F are means over objects, but videos are what was drawn by chance: each gives its sums and its number of objects.
    samples = np.array([each.sums for each in found])
    return Outcome(
        _scores(samples.mean(axis=0)), samples, _j_and_f,
        notes=(*data.notes, *left_out_note("videos", problems, len(data.videos)), *_late_objects(found)),
        details={"videos": {each.video.name: each.details() for each in found}},
        pictures=lambda: _pictures(found),
    )  # fmt: skip


def _truth(video: Video) -> np.ndarray:
    """Return a video's masks, uint8 (frames, H, W), background where DAVIS says void. Raises SaccadeError."""
    masks = [read_mask(path) for path in video.masks]
    for path, mask in zip(video.masks, masks, strict=True):
        if mask.shape != masks[0].shape:
            have, want = (f"{each.shape[1]} x {each.shape[0]}" for each in (mask, masks[0]))
            raise SaccadeError(f"{path} is {have} px and the first mask of its video {want}; all must share one size")
    truth = np.stack(masks)
    truth[truth == VOID] = 0
    if not truth[0].any():
        raise SaccadeError(f"{video.masks[0]} holds no object, so there is nothing to follow")
    return truth


def _follow(
    video: Video,
    truth: np.ndarray,
    tokens: np.ndarray,
    prepare: FrameSides,
    settings: VideoSettings,
    progress: Callable[[int], object],
) -> Followed:
    """Pass the first mask on through all frames and score what arrives; `progress` hears of each frame."""
    size = (truth.shape[1], truth.shape[2])
    height, width = prepare.size(*size)
    first = first_labels(truth[0], (height // prepare.patch, width // prepare.patch))
    soft = propagate_labels(tokens, first, settings.radius, settings.last_frames, settings.top_k)
    masks = np.zeros_like(truth)
    masks[0] = truth[0]
    for number, labels in enumerate(soft, start=1):
        masks[number] = frame_mask(labels, prepare.patch, size)
        progress(1)
    late = bool((truth > truth[0].max()).any())
    return Followed(video, score_video(truth, masks), late, size, [zlib.compress(mask, 1) for mask in masks])


def _scores(mean: np.ndarray) -> tuple[Score, ...]:
    """Return the headline and its parts of the mean over videos of their sums."""
    region, contour, region_recall, contour_recall = 100 * mean[:4] / mean[4]
    parts = ("J", region), ("F", contour), ("J recall", region_recall), ("F recall", contour_recall)
    return Score("J&F", _j_and_f(mean)), *(Score(name, float(value)) for name, value in parts)


def _j_and_f(mean: np.ndarray) -> float:
    return float(50 * (mean[0] + mean[1]) / mean[4])


def _late_objects(found: list[Followed]) -> tuple[str, ...]:
    late = [each.video.name for each in found if each.late]
    if not late:
        return ()
    hold = f"{counted(len(late), 'video')} {agreeing(len(late), 'holds', 'hold')}"
    return (f"{hold} labels that the first mask does not, which are not scored, first: {late[0]}",)


def _pictures(found: list[Followed]) -> Iterator[tuple[str, Image.Image]]:
    """Yield the masks as VIDEO/FRAME.png, indexed, in the colours of the video's first annotation."""
    for each in found:
        palette = read_palette(each.video.masks[0])
        for frame, mask in zip(each.video.frames, each.masks(), strict=True):
            picture = Image.fromarray(mask)
            if palette:
                picture.putpalette(palette)
            yield f"{each.video.name}/{frame.stem}.png", picture


TASK = Task(
    "video", "video object segmentation by passing on the first mask (DAVIS 2017)",
    "JPEGImages/480p/VIDEO/*.jpg\n  Annotations/480p/VIDEO/*.png\n  ImageSets/2017/val.txt",
    VideoSettings, read, evaluate, on_lookwhere=True, requires=("scipy.ndimage",), has_pictures=True,
)  # fmt: skip
