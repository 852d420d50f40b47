"""The task retrieval on variants of photographs: easy ones are found, and each data problem says what it is."""
from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.errors import SaccadeError
from saccade.validate.datasets.revisited import read_revisited
from saccade.validate.evaluations.retrieval import readable_relevance
from saccade.validate.features import Features

Evaluated = Callable[..., dict[str, Any]]
SIDE = ["--side", 56]


@pytest.fixture
def oxford(photo_folder: Path, tmp_path: Path) -> Path:
    """Return a data folder: of each of eight photographs a paler and a cut copy (easy), a mirrored (hard), itself (junk)."""
    folder = tmp_path / "data/roxford5k"
    (folder / "jpg").mkdir(parents=True)
    names, gnd = [], []
    for number, path in enumerate(sorted(photo_folder.iterdir())[:8]):
        image = Image.open(path).crop((0, 0, 200, 150))
        variants = {
            "paler": Image.blend(image, Image.new("RGB", image.size, "white"), 0.2),
            "cut": image.crop((5, 5, 195, 150)),
            "mirrored": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            "same": image,
        }
        for variant, picture in variants.items():
            picture.save(folder / f"jpg/{number}_{variant}.jpg", quality=90)
            names.append(f"{number}_{variant}")
        image.save(folder / f"jpg/query_{number}.jpg", quality=95)
        row = 4 * number
        gnd.append({"bbx": [0.0] * 4, "easy": np.array([row, row + 1]), "hard": [row + 2], "junk": [row + 3]})
    write_truth(folder.parent, {"imlist": names, "qimlist": [f"query_{number}" for number in range(8)], "gnd": gnd})
    return folder.parent


def write_truth(root: Path, truth: dict[str, Any]) -> None:
    (root / "roxford5k/gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth, 2))


def read_truth(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = pickle.loads((root / "roxford5k/gnd_roxford5k.pkl").read_bytes())
    return found


def scores(found: dict[str, Any]) -> dict[str, float]:
    return {score["name"]: score["value"] for score in found["sides"][0]["scores"]}


@pytest.mark.parametrize("multiscale", ["no", "yes"])
def test_copies_are_found_and_an_engine_equals_itself(
    multiscale: str, small_backbone: Callable[[str], Path], oxford: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    options = [*SIDE, "--multiscale", multiscale, "--features", tmp_path / "features", "--compare", "openvino:fp32"]
    found = evaluated("retrieval", small_backbone("neco"), oxford, *options, "--max-drop", 0)
    reached = scores(found)
    assert list(reached)[:3] == ["mAP medium", "mAP hard", "mAP easy"]
    assert reached["mAP easy"] > 60  # by chance about 12 %
    assert reached["mP@1 easy"] > 80
    assert found["metric"] == "mAP medium"
    (difference,) = found["differences"]
    assert (difference["difference"], difference["low"], difference["high"], difference["samples"]) == (0, 0, 0, 8)
    assert difference["first"] == pytest.approx(reached["mAP medium"])
    by_query = found["sides"][0]["details"]["ap_by_query"]
    assert np.mean([each["hard"] for each in by_query.values()]) == pytest.approx(reached["mAP hard"])
    assert found["notes"] == [
        "8 queries and 32 images; the published roxford5k has 70 and 4993",
        "intervals rest on 8 independent samples or groups of them; of fewer than 20 they are too narrow",
    ]


def test_an_engine_that_sees_nothing_is_caught(
    small_backbone: Callable[[str], Path], damaged: Callable[[Path], Path], oxford: Path, tmp_path: Path,
    evaluated: Evaluated,
) -> None:  # fmt: skip
    options = [*SIDE, "--features", tmp_path / "features", "--compare", "onnxruntime:int8", "--max-drop", 1]
    found = evaluated("retrieval", damaged(small_backbone("neco")), oxford, *options, code=1)
    assert found["differences"][0]["high"] < 0
    assert not found["passed"]


def test_queries_without_a_positive_are_counted_and_left_out(
    small_backbone: Callable[[str], Path], oxford: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    truth = read_truth(oxford)
    for entry in truth["gnd"]:
        entry["hard"] = []
    truth["gnd"][0]["easy"] = []
    truth["gnd"][2]["easy"] = truth["gnd"][1]["easy"]  # two queries of one landmark
    write_truth(oxford, truth)
    options = [*SIDE, "--features", tmp_path / "features", "--compare", "openvino:fp32"]
    found = evaluated("retrieval", small_backbone("neco"), oxford, *options)
    assert not [name for name in scores(found) if "hard" in name]
    assert (found["differences"][0]["samples"], found["differences"][0]["units"]) == (7, 6)
    assert found["notes"][1:-1] == [
        "1 of 8 queries has no medium positive and is left out of its means",
        "8 of 8 queries have no hard positive and are left out of its means",
        "1 of 8 queries has no easy positive and is left out of its means",
    ]
    assert found["sides"][0]["details"]["ap_by_query"]["query_0"] == {"medium": None, "easy": None}
    for entry in truth["gnd"]:
        entry["easy"] = []
    write_truth(oxford, truth)
    refused = evaluated("retrieval", small_backbone("neco"), oxford, *options, code=1)
    assert refused["error"] == "retrieval: no query has a positive image in medium; look at the ground truth file"


def test_unreadable_missing_and_narrow_images_are_noted_and_the_rest_is_ranked(
    small_backbone: Callable[[str], Path], oxford: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    jpg = oxford / "roxford5k/jpg"
    (jpg / "0_paler.jpg").unlink()
    (jpg / "3_same.jpg").write_bytes(b"no picture")
    Image.new("RGB", (400, 20)).save(jpg / "query_7.jpg")
    options = [*SIDE, "--features", tmp_path / "features"]
    found = evaluated("retrieval", small_backbone("neco"), oxford, *options)
    assert found["notes"][1:] == [
        f"2 of 32 images of the database cannot be read and are left out, first {jpg / '0_paler.jpg'} "
        f"({jpg / '0_paler.jpg'}: no such image file)",
        f"1 of 8 images of the queries cannot be read and is left out, first {jpg / 'query_7.jpg'} "
        f"({jpg / 'query_7.jpg'}: 56 x 3 px is too narrow; 14 px are needed)",
    ]
    assert list(found["sides"][0]["details"]["ap_by_query"]) == [f"query_{number}" for number in range(7)]


def test_rows_move_up_where_images_are_left_out(oxford: Path) -> None:
    data = read_revisited(oxford, "roxford5k")

    def features(paths: list[Path], *failed: int) -> Features:
        names = [str(path) for number, path in enumerate(paths) if number not in failed]
        return Features(names, {}, {str(paths[number]): "" for number in failed})

    found = readable_relevance(data, features(data.database, 1, 6), features(data.queries, 0))
    assert len(found) == 7
    assert [found[0].easy.tolist(), found[0].hard.tolist(), found[0].junk.tolist()] == [[3, 4], [], [5]]
    assert [found[1].easy.tolist(), found[1].hard.tolist(), found[1].junk.tolist()] == [[6, 7], [8], [9]]


def test_lookwhere_ranks_at_every_scale_or_says_that_k_is_too_large(
    small_bundle: Callable[[str], Path], oxford: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    options = ["--side", 112, "--multiscale", "yes", "--features", tmp_path / "features", "--k"]
    found = evaluated("retrieval", small_bundle("dinov2"), oxford, *options, 6, 12)
    assert [side["k"] for side in found["sides"]] == [6, 12]
    assert scores(found)["mAP easy"] > 30
    refused = evaluated("retrieval", small_bundle("dinov2"), oxford, *options, 13, code=1)
    assert refused["error"] == "k 13 is not to be had: this grid has 12 patches, so give 1 to 12"


def test_a_ground_truth_that_wants_to_be_run_is_refused(
    small_backbone: Callable[[str], Path], oxford: Path, evaluated: Evaluated
) -> None:
    (oxford / "roxford5k/gnd_roxford5k.pkl").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    refused = evaluated("retrieval", small_backbone("neco"), oxford, code=1)
    assert "names 'os system', which plain data do not need" in refused["error"]
    with pytest.raises(SaccadeError, match="os system"):
        read_revisited(oxford, "roxford5k")
