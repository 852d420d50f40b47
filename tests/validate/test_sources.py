"""Sources of features give what the runtime and PyTorch give, in one form."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from saccade.bundle import read_bundle, sha256_of_file
from saccade.errors import SaccadeError
from saccade.export.backbone_checkpoint import read_backbone
from saccade.export.checkpoint import read_checkpoint
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.chain import Pipeline
from saccade.runtime.loading import load
from saccade.validate.reference_source import reference_sources
from saccade.validate.sources import BackboneSource, Kept, Lanes, LookWhereSource, outputs_of


@pytest.fixture
def backbone(small_backbone: Callable[[str], Path]) -> Path:
    return small_backbone("neco")


@pytest.fixture
def lookwhere(small_bundle: Callable[[str], Path]) -> Path:
    return small_bundle("dinov2")


@pytest.fixture
def plain(backbone: Path) -> Iterator[BackboneSource]:
    with load(str(backbone)) as pipeline:
        assert isinstance(pipeline, BackbonePipeline)
        yield BackboneSource(pipeline)


@pytest.fixture
def images(photographs: list[np.ndarray]) -> list[np.ndarray]:
    """Return two images of 5 x 7 patches."""
    return [np.ascontiguousarray(photo[100:170, 200:298]) for photo in photographs]


def test_a_backbone_gives_all_its_outputs_and_only_those_asked_for(
    plain: BackboneSource, images: list[np.ndarray]
) -> None:
    assert tuple(plain.outputs) == ("cls", "tokens", "attention", "cls_last4")
    found = plain.run(images, plain.outputs)
    shapes = {name: array.shape for name, array in found.items()}
    assert shapes == {"cls": (2, 128), "tokens": (2, 35, 128), "attention": (2, 2, 35), "cls_last4": (2, 4, 128)}
    np.testing.assert_array_equal(found["cls_last4"][:, -1], found["cls"])  # both after the final norm
    assert list(plain.run(images, ["tokens"])) == ["tokens"]
    assert (plain.label, plain.k, plain.patch) == ("openvino fp32", None, 14)


def test_pytorch_gives_what_the_engine_gives(plain: BackboneSource, backbone: Path, images: list[np.ndarray]) -> None:
    checkpoint = read_backbone(backbone.with_suffix(".pt"), "neco")
    (reference,) = reference_sources(read_bundle(backbone), checkpoint, [None])
    assert (reference.label, reference.k, reference.patch) == ("PyTorch fp32", None, 14)
    assert tuple(reference.outputs) == tuple(plain.outputs)
    ours, theirs = plain.run(images, plain.outputs), reference.run(images, plain.outputs)
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=2e-4, err_msg=name)
    assert reference.recipe != plain.recipe


def test_lookwhere_gives_the_dense_fill_as_tokens_for_every_k(lookwhere: Path, images: list[np.ndarray]) -> None:
    with load(str(lookwhere)) as pipeline:
        assert isinstance(pipeline, Pipeline)
        few, many = LookWhereSource(pipeline, Kept(6)), LookWhereSource(pipeline, Kept(20))
        assert (few.label, few.k, tuple(few.outputs)) == ("openvino fp32 k=6", Kept(6), ("cls", "tokens"))
        assert few.recipe != many.recipe
        expected = pipeline(images, k=20, size=(70, 98), dense=True)
        found = many.run(images, ["cls", "tokens"])
        assert (few.run(images, ["cls"])["cls"] != found["cls"]).any()
    assert expected.dense is not None
    np.testing.assert_array_equal(found["cls"], expected.cls)
    np.testing.assert_array_equal(found["tokens"][:, 7 * 2 + 3], expected.dense[:, :, 2, 3])  # row 2, column 3 of 7


def test_pytorch_s_lookwhere_gives_what_the_engine_gives(
    lookwhere: Path, small_checkpoint: Callable[[str], Path], images: list[np.ndarray]
) -> None:
    ks = [Kept(6), Kept(20), Kept(ratio=0.6), Kept(21)]
    references = reference_sources(read_bundle(lookwhere), read_checkpoint(small_checkpoint("dinov2")), ks)
    labels = [each.label for each in references]
    assert labels == ["PyTorch fp32 k=6", "PyTorch fp32 k=20", "PyTorch fp32 k-ratio=0.6", "PyTorch fp32 k=21"]
    with load(str(lookwhere)) as pipeline:
        assert isinstance(pipeline, Pipeline)
        ours = LookWhereSource(pipeline, Kept(20)).run(images, ["cls", "tokens"])
    theirs = references[1].run(images, ["cls", "tokens"])
    for name in ours:
        cosines = np.sum(ours[name] * theirs[name], -1) / np.linalg.norm(ours[name], axis=-1)
        np.testing.assert_allclose(cosines / np.linalg.norm(theirs[name], axis=-1), 1, atol=1e-4)
    assert list(references[0].run(images, ["cls"])) == ["cls"]
    np.testing.assert_array_equal(references[2].run(images, ["cls"])["cls"], references[3].run(images, ["cls"])["cls"])


def test_a_share_is_kept_of_every_grid(lookwhere: Path, images: list[np.ndarray]) -> None:
    with load(str(lookwhere)) as pipeline:
        assert isinstance(pipeline, Pipeline)
        share = LookWhereSource(pipeline, Kept(ratio=0.3))
        assert share.label == "openvino fp32 k-ratio=0.3"
        assert share.recipe != LookWhereSource(pipeline, Kept(3)).recipe
        for height, width, kept in ((70, 98, 10), (28, 56, 2)):  # 35 and 8 cells
            cut = [np.ascontiguousarray(image[:height, :width]) for image in images]
            expected = LookWhereSource(pipeline, Kept(kept)).run(cut, ["cls"])["cls"]
            np.testing.assert_array_equal(share.run(cut, ["cls"])["cls"], expected)


@pytest.mark.parametrize("change", ["mean", "std", "positions", "position_rule"])
def test_a_bundle_with_other_pixels_or_positions_has_another_recipe_on_the_same_engine(
    change: str, plain: BackboneSource, backbone: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "changed"
    shutil.copytree(backbone, copy)
    manifest = json.loads((copy / "bundle.json").read_text())
    if change == "positions":
        np.save(copy / "positions.npy", np.load(copy / "positions.npy") + 1)
        manifest["positions"]["sha256"] = sha256_of_file(copy / "positions.npy")
    elif change == "position_rule":
        manifest["model"]["position_rule"] = "size-antialias"
        assert manifest["model"] != json.loads((backbone / "bundle.json").read_text())["model"]
    else:
        manifest["image"][change] = [0.4, 0.4, 0.4]
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with load(str(copy)) as pipeline:
        assert isinstance(pipeline, BackbonePipeline)
        other = BackboneSource(pipeline).recipe
    assert other["receipt"] == plain.recipe["receipt"]
    assert other != plain.recipe


def test_a_bundle_that_gives_no_features_is_refused(small_bundle: Callable[[str], Path]) -> None:
    with pytest.raises(SaccadeError, match=r"is made for classify, and evaluations read features; export with --task feat"):
        outputs_of(read_bundle(small_bundle("classify")))


def test_a_stream_left_before_its_end_has_ended_when_its_lanes_close(
    backbone: Path, plain: BackboneSource, images: list[np.ndarray]
) -> None:
    opened: list[BackbonePipeline] = []

    def pipeline() -> BackbonePipeline:
        found = load(str(backbone), streams=2)
        assert isinstance(found, BackbonePipeline)
        opened.append(found)
        return found

    pipelined = load(str(backbone))
    assert isinstance(pipelined, BackbonePipeline)
    with pipelined:
        source = BackboneSource(pipelined, Lanes(pipeline))
        left = source.stream([images] * 9, ["cls"])
        np.testing.assert_allclose(next(left)["cls"], plain.run(images, ["cls"])["cls"], atol=1e-4)
        assert len(list(source.stream([images] * 2, ["cls"]))) == 2
        assert len(opened) == 1
        source.rest()
        assert list(left) == []
        assert len(list(source.stream([images], ["cls"]))) == 1
        assert len(opened) == 2  # it had been closed
        source.rest()
