"""Data sets with masks: each in its official folders, its labels as upstream's loops give them, faults by their message."""
from __future__ import annotations

import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saccade.errors import SaccadeError
from saccade.validate.datasets import cityscapes, coco, voc
from saccade.validate.datasets.masked_split import Labels, some_of
from saccade.validate.datasets.segmentation import Name, read_segmentation

SIDE = 12


def write(path: Path, numbers: list[int] | None = None, palette: bool = False) -> None:
    """Write an image, or a mask with these numbers in its first pixels, the rest being the first of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if numbers is None:
        Image.new("RGB", (SIDE, SIDE), "teal").save(path)
        return
    mask = np.full(SIDE * SIDE, numbers[0], np.uint8)
    mask[: len(numbers)] = numbers
    image = Image.fromarray(mask.reshape(SIDE, SIDE))
    if palette:
        image = image.convert("P")
        image.putpalette([(number * 7 + channel * 50) % 256 for number in range(256) for channel in range(3)])
    image.save(path)


def make_voc(root: Path) -> None:
    folder = root / "VOCSegmentation"
    for name in ("a", "b", "c"):
        write(folder / f"images/{name}.jpg")
        write(folder / f"SegmentationClass/{name}.png", [0, 20, 255], palette=True)
        write(folder / f"SegmentationClassAug/{name}.png", [1], palette=True)
    for split, names in (("train", "a"), ("trainaug", "a\nb"), ("val", "c")):
        (folder / "sets").mkdir(exist_ok=True)
        (folder / f"sets/{split}.txt").write_text(names + "\n")


def make_ade20k(root: Path) -> None:
    for split, name in (("training", "t"), ("validation", "v")):
        write(root / f"ADEChallengeData2016/images/{split}/{name}.jpg")
        write(root / f"ADEChallengeData2016/annotations/{split}/{name}.png", [0, 150])


def make_cityscapes(root: Path) -> None:
    for split in ("train", "val"):
        for city in ("ulm", "aachen"):
            stem = f"{city}_000000_000019"
            write(root / f"cityscapes/leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
            write(root / f"cityscapes/gtFine/{split}/{city}/{stem}_gtFine_labelIds.png", [0, 7, 33])
            write(root / f"cityscapes/gtFine/{split}/{city}/{stem}_gtFine_instanceIds.png", [0])


STUFF = [
    {"id": 92, "supercategory": "textile"},
    {"id": 100, "supercategory": "building"},
    {"id": 183, "supercategory": "other"},
]
PANOPTIC = [
    {"id": 1, "supercategory": "person", "isthing": 1},
    {"id": 17, "supercategory": "animal", "isthing": 1},
    {"id": 18, "supercategory": "animal", "isthing": 1},
    {"id": 200, "supercategory": "textile", "isthing": 0},
]


def make_coco_stuff(root: Path) -> None:
    folder = root / "annotations/annotations/stuff_annotations"  # as DATASET.md has it
    for split in ("train", "val"):
        for number in range(20 if split == "train" else 2):
            write(root / f"coco/images/{split}2017/{number:012}.jpg")
            write(folder / f"stuff_{split}2017_pixelmaps/{number:012}.png", [0, 92, 100, 183])
    (folder / "stuff_val2017.json").write_text(json.dumps({"images": [{"id": 5}], "categories": STUFF}))


def make_coco_things(root: Path) -> None:
    for split in ("train", "val"):
        for number in range(20 if split == "train" else 2):
            write(root / f"images/{split}2017/{number:012}.jpg")
            write(root / f"annotations/{split}2017/{number:012}.png", [0, 1, 17, 18, 200, 12])  # as the code has it
    (root / "annotations/panoptic_annotations").mkdir()
    file = root / "annotations/panoptic_annotations/panoptic_val2017.json"
    file.write_text(json.dumps({"info": {"year": 2018}, "categories": PANOPTIC, "annotations": []}))


# name -> (what makes it, classes, training images, validation images, classes of the numbers of its first validation mask)
SETS: dict[Name, tuple[Callable[[Path], None], int, int, int, list[int]]] = {
    "voc": (make_voc, 21, 2, 1, [0, 20, 255]),
    "ade20k": (make_ade20k, 151, 1, 1, [0, 150]),
    "cityscapes": (make_cityscapes, 19, 2, 2, [255, 0, 18]),
    "coco-stuff": (make_coco_stuff, 2, 2, 2, [255, 1, 0, 255]),  # a tenth of 20 for training
    "coco-things": (make_coco_things, 2, 2, 2, [255, 1, 0, 0, 255, 255]),
}


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_is_recognised_by_its_folders_and_listed(name: Name, tmp_path: Path) -> None:
    make, classes, train, val, expected = SETS[name]
    make(tmp_path)
    found = read_segmentation(tmp_path, "auto", train=True)
    assert (found.name, len(found.labels.classes)) == (name, classes)
    assert found.train is not None
    assert (len(found.train.images), len(found.val.images)) == (train, val)
    mask = found.labels.read(found.val.masks[found.val.images[0]], (SIDE, SIDE))
    assert mask.ravel()[: len(expected)].tolist() == expected
    assert found.train.notes == found.val.notes == ()
    assert read_segmentation(tmp_path, name).train is None


@pytest.mark.parametrize("name", ["voc", "ade20k", "cityscapes"])
def test_the_data_sets_own_folder_is_taken_as_well(name: Name, tmp_path: Path) -> None:
    SETS[name][0](tmp_path)
    (folder,) = tmp_path.iterdir()
    assert read_segmentation(folder, "auto").name == name


def test_voc_trains_on_the_augmented_masks_and_is_judged_on_its_own(tmp_path: Path) -> None:
    make_voc(tmp_path)
    found = read_segmentation(tmp_path, "voc", train=True)
    assert found.train is not None
    assert [path.parent.name for path in found.train.masks.values()] == ["SegmentationClassAug"] * 2
    assert [path.parent.name for path in found.val.masks.values()] == ["SegmentationClass"]


def test_cityscapes_labels_equal_the_official_table() -> None:
    # cityscapes_data.py: _key, for the ids -1 to 33
    key = [255] * 8 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, *range(6, 16), 255, 255, 16, 17, 18]
    assert cityscapes.LABELS.table[255] == key[0]
    assert cityscapes.LABELS.table[:34].tolist() == key[1:]


CATEGORIES = st.dictionaries(st.integers(1, 200), st.tuples(st.integers(0, 3), st.booleans()), min_size=1)


@given(CATEGORIES)
def test_things_are_merged_as_upstreams_loop_merges_them(categories: dict[int, tuple[int, bool]]) -> None:
    parts = ["animal", "person", "sports", "vehicle"]
    listed = [coco._Category(number, parts[part], int(thing)) for number, (part, thing) in categories.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco, "_categories", lambda path: listed)
        labels = coco.coco_labels(Path(), "things")
    things = sorted({parts[part] for part, thing in categories.values() if thing})
    merged = {number: things.index(parts[part]) if thing else 255 for number, (part, thing) in categories.items()}
    assert labels.classes == tuple(things)
    assert labels.table[:201].tolist() == [255] + [merged.get(number, 255) for number in range(1, 201)]


def test_numbers_are_read_and_not_the_colours_of_a_palette(tmp_path: Path) -> None:
    write(tmp_path / "mask.png", [3, 7, 255], palette=True)
    assert voc.LABELS.read(tmp_path / "mask.png", (SIDE, SIDE)).ravel()[:4].tolist() == [3, 7, 255, 3]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20))
def test_masks_are_resized_by_the_pixel_under_each_centre(height: int, width: int, rows: int, columns: int) -> None:
    numbers = np.arange(height * width, dtype=np.uint8).reshape(height, width) % 21
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saccade.validate.datasets.masked_split.read_mask", lambda path: numbers)
        found = voc.LABELS.read(Path(), (rows, columns))
    down = [Fraction((2 * row + 1) * height, 2 * rows) for row in range(rows)]
    across = [Fraction((2 * column + 1) * width, 2 * columns) for column in range(columns)]
    expected = numbers[np.ix_([int(place) for place in down], [int(place) for place in across])]
    sure = np.ix_([place.denominator > 1 for place in down], [place.denominator > 1 for place in across])
    assert np.array_equal(found[sure], expected[sure])  # where a centre is on a border, rounding decides


def test_a_share_is_some_in_their_order_and_at_least_one() -> None:
    pairs = [(Path(str(number)), Path(str(number))) for number in range(50)]
    found = some_of(pairs, 0.3)
    assert found == sorted(found, key=pairs.index)
    assert len(set(found)) == 15
    assert found == some_of(pairs, 0.3) != pairs[:15]
    assert len(some_of(pairs, 0.001)) == 1
    assert some_of(pairs, 1) == pairs


# ---- faults


def test_what_has_no_mask_or_one_of_another_size_is_left_out_and_named(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    folder = tmp_path / "cityscapes/gtFine/val"
    (folder / "aachen/aachen_000000_000019_gtFine_labelIds.png").unlink()
    found = read_segmentation(tmp_path, "auto")
    assert len(found.val.images) == 1
    (note,) = found.val.notes
    assert note.startswith("1 of 2 images of Cityscapes val is left out, first: ")
    assert "aachen_000000_000019_gtFine_labelIds.png: no such image file" in note
    Image.new("L", (SIDE, SIDE - 1)).save(folder / "ulm/ulm_000000_000019_gtFine_labelIds.png")
    with pytest.raises(SaccadeError, match="Cityscapes val: none of 2 images has a mask of its size"):
        read_segmentation(tmp_path, "auto")


def test_an_image_belongs_to_its_mask_as_it_lies_in_the_file_whatever_exif_says(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    folder = tmp_path / "ADEChallengeData2016"
    Image.new("L", (SIDE, SIDE // 2), 1).save(folder / "annotations/validation/turned.png")
    image = Image.new("RGB", (SIDE, SIDE // 2))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(folder / "images/validation/turned.jpg", exif=exif)
    found = read_segmentation(tmp_path, "auto")
    assert {path.name for path in found.val.images} == {"v.jpg", "turned.jpg"}


def test_nothing_two_and_another_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"holds no data set with masks that is known; give --dataset \(voc, ade20k"):
        read_segmentation(tmp_path, "auto")
    make_coco_things(tmp_path)
    with pytest.raises(SaccadeError, match="does not hold voc; its folders are expected as --help shows them"):
        read_segmentation(tmp_path, "voc")
    stuff = tmp_path / "annotations/stuff_annotations/stuff_val2017.json"
    stuff.parent.mkdir()
    stuff.write_text(json.dumps({"categories": STUFF}))
    with pytest.raises(SaccadeError, match="holds coco-stuff and coco-things; give --dataset"):
        read_segmentation(tmp_path, "auto")
    with pytest.raises(SaccadeError, match=r"stuff_val2017_pixelmaps: no such folder; COCO needs its masks of stuff there"):
        read_segmentation(tmp_path, "coco-stuff")
    assert read_segmentation(tmp_path, "coco-things").name == "coco-things"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Input data was truncated"),
        ("{}", "missing required field `categories`"),
        ('{"categories": []}', "its categories have no numbers between 0 and 255"),
        ('{"categories": [{"id": 700, "supercategory": "x"}]}', "its categories have no numbers between 0 and 255"),
        ('{"categories": [{"id": -1, "supercategory": "x"}]}', "its categories have no numbers between 0 and 255"),
        (
            '{"categories": [{"id": 1, "supercategory": "x"}, {"id": 1, "supercategory": "y"}]}',
            "a number is given to several categories",
        ),
        ('{"info": ' + "[" * 5000, "recursion"),
    ],
)
def test_annotations_that_are_not_cocos_are_refused(tmp_path: Path, content: str, message: str) -> None:
    make_coco_things(tmp_path)
    file = tmp_path / "annotations/panoptic_annotations/panoptic_val2017.json"
    file.write_text(content)
    with pytest.raises(SaccadeError, match=f"panoptic_val2017.json: .*{message}.*; give COCO's own file"):
        read_segmentation(tmp_path, "auto")


def test_a_list_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    make_voc(tmp_path)
    (names,) = tmp_path.rglob("sets/val.txt")
    names.unlink()
    os.mkfifo(names)
    with pytest.raises(SaccadeError, match=r"val.txt is no file; the data set's list of names is expected there"):
        read_segmentation(tmp_path, "voc")


def test_annotations_without_end_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_coco_things(tmp_path)
    monkeypatch.setattr(coco, "MAX_JSON_BYTES", 1 << 8)
    with pytest.raises(SaccadeError, match=r"panoptic_val2017\.json: more than 0 MiB; give COCO's own file"):
        read_segmentation(tmp_path, "auto")


@pytest.mark.parametrize("name", ["../../secret", "a/b", "..", "a\0b"])
def test_no_name_of_a_list_leaves_the_data_folder(tmp_path: Path, name: str) -> None:
    make_voc(tmp_path)
    (tmp_path / "VOCSegmentation/sets/val.txt").write_text(name + "\n")
    with pytest.raises(SaccadeError, match="is no plain name; give one name a line, without folders"):
        read_segmentation(tmp_path, "voc")


@pytest.mark.parametrize(
    ("labels", "number"), [(voc.LABELS, 21), (cityscapes.LABELS, 34), (cityscapes.LABELS, 254)], ids=["voc", "34", "254"]
)
def test_numbers_that_a_data_set_does_not_have_are_refused(tmp_path: Path, labels: Labels, number: int) -> None:
    write(tmp_path / "mask.png", [7, number, number])
    with pytest.raises(SaccadeError, match=rf"mask.png: 2 pixels hold labels that .* does not have \({number}\)"):
        labels.read(tmp_path / "mask.png", (SIDE, SIDE))


def test_a_mask_of_colours_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "mask.png")
    with pytest.raises(SaccadeError, match=r"mask\.png: a mask of mode RGB; give an 8-bit indexed or grey PNG"):
        voc.LABELS.read(tmp_path / "mask.png", (SIDE, SIDE))
