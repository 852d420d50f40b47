"""DAVIS 2017 in its own folders: JPEGImages/480p/VIDEO/*.jpg, Annotations/480p/VIDEO/*.png, ImageSets/2017/val.txt."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saccade.counted import counted
from saccade.errors import SaccadeError
from saccade.validate.datasets.mask_file import left_out_note, size_problem
from saccade.validate.datasets.name_list import read_names

FEWEST_FRAMES = 3  # the first and the last are not scored
FRAMES, MASKS, NAMES = "JPEGImages/480p", "Annotations/480p", "ImageSets/2017/val.txt"


@dataclass(frozen=True)
class Video:
    """The frames of a video in order, and a mask for each."""

    name: str
    frames: list[Path]
    masks: list[Path]


@dataclass(frozen=True)
class Davis:
    """The videos of the validation list that are whole."""

    videos: list[Video]
    notes: tuple[str, ...]


def read_davis(root: Path) -> Davis:
    """List frames and masks. Raises SaccadeError where the list is missing or not one video can be used.

    A video with a missing mask, or a mask of another size than its frame, is left out whole, and counted: labels are passed
    on from frame to frame, so that what follows a gap says nothing.
    """
    for folder in (FRAMES, MASKS):
        if not (root / folder).is_dir():
            raise SaccadeError(f"{root / folder}: no such folder; DAVIS 2017 is expected there, at 480p")
    names = read_names(root / NAMES)
    videos = [_video(root, name) for name in names]
    found = [(video, _problem(video)) for video in videos]
    problems = [problem for _, problem in found if problem]
    usable = [video for video, problem in found if not problem]
    if not usable:
        raise SaccadeError(f"{root}: none of {counted(len(names), 'video')} can be used ({problems[0]})")
    return Davis(usable, left_out_note("videos", problems, len(names)))


def _video(root: Path, name: str) -> Video:
    frames = sorted((root / FRAMES / name).glob("*.jpg"))
    return Video(name, frames, [root / MASKS / name / f"{frame.stem}.png" for frame in frames])


def _problem(video: Video) -> str | None:
    """Say why a video cannot be used, if so."""
    if len(video.frames) < FEWEST_FRAMES:
        return f"{video.name} has {counted(len(video.frames), 'frame')} in {FRAMES}, and {FEWEST_FRAMES} are the fewest"
    pairs = zip(video.frames, video.masks, strict=True)
    return next((problem for pair in pairs if (problem := size_problem(*pair))), None)
