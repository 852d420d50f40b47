"""A plain backbone's golden.npz holds what PyTorch gives, and anything that its model cannot have given is refused."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from saccade.backbone_golden import BackboneCase, backbone_cases_of
from saccade.bundle import Bundle, DataFile, read_bundle, sha256_of_file
from saccade.errors import SaccadeError
from saccade.export.backbone_checkpoint import read_backbone
from saccade.export.backbone_reference import BackboneReference
from saccade.golden import cases_of, write_cases

OUTPUTS = ("cls", "tokens", "attention", "cls_last4")
PATCH = 8


@pytest.fixture
def bundle(small_backbone: Callable[[str], Path]) -> Bundle:
    return read_bundle(small_backbone("dino"))


@pytest.fixture
def with_cases(bundle: Bundle, tmp_path: Path) -> Callable[[list[BackboneCase]], Bundle]:
    """Return a function that gives the bundle other golden cases, with their hash."""

    def write(cases: list[BackboneCase]) -> Bundle:
        path = tmp_path / "golden.npz"
        write_cases(path, cases)
        entry = DataFile(path.name, sha256_of_file(path))
        return Bundle(tmp_path, msgspec.structs.replace(bundle.manifest, golden=entry))

    return write


def test_there_is_an_image_at_the_training_size_and_a_batch_on_another_grid_that_is_not_square(bundle: Bundle) -> None:
    shapes = [case.images.shape for case in backbone_cases_of(bundle)]
    assert shapes == [(1, 6 * PATCH, 6 * PATCH, 3), (2, 3 * PATCH, 4 * PATCH, 3)]
    assert all(len(np.unique(image)) > 50 for case in backbone_cases_of(bundle) for image in case.images)


def test_its_outputs_are_those_of_the_checkpoint_in_pytorch(
    bundle: Bundle, small_backbone: Callable[[str], Path]
) -> None:
    reference = BackboneReference(read_backbone(small_backbone("dino").with_suffix(".pt")), ("attention", "cls_last4"))
    for case in backbone_cases_of(bundle):
        assert tuple(case.outputs) == OUTPUTS
        truth = reference(list(case.images))
        for name, array in case.outputs.items():
            np.testing.assert_allclose(array, truth[name], atol=1e-5)
            assert 0 < case.floor[name] < 1e-5


def test_cases_come_back_bit_for_bit(with_cases: Callable[[list[BackboneCase]], Bundle], bundle: Bundle) -> None:
    written = backbone_cases_of(bundle)
    for found, given in zip(backbone_cases_of(with_cases(written)), written, strict=True):
        np.testing.assert_array_equal(found.images, given.images)
        assert found.floor == given.floor
        for name in OUTPUTS:
            np.testing.assert_array_equal(found.outputs[name], given.outputs[name])


def other(case: BackboneCase, name: str, array: np.ndarray) -> BackboneCase:
    return replace(case, outputs=case.outputs | {name: array})


MISFITS: dict[str, tuple[Callable[[BackboneCase], BackboneCase], str]] = {
    "float images": (lambda c: replace(c, images=c.images / np.float32(255)), "images are no uint8 (B, H, W, 3)"),
    "no images": (lambda c: replace(c, images=c.images[:0]), "images are no uint8"),
    "grey images": (lambda c: replace(c, images=c.images[..., :1]), "images are no uint8"),
    "cut images": (lambda c: replace(c, images=c.images[:, :-1]), "images are 48 x 47 px, which the 8 px patch does not"),
    "missing": (lambda c: replace(c, outputs={"cls": c.outputs["cls"]}), "tokens must be float32 [1, 36, 64]"),
    "fewer tokens": (lambda c: other(c, "tokens", c.outputs["tokens"][:, 1:]), "tokens must be float32 [1, 36, 64]"),
    "other batch": (lambda c: other(c, "cls", np.repeat(c.outputs["cls"], 2, 0)), "cls must be float32 [1, 64]"),
    "double": (lambda c: other(c, "attention", np.float64(c.outputs["attention"])), "attention must be float32 [1, 1, 36]"),
    "nan": (lambda c: other(c, "cls_last4", c.outputs["cls_last4"] * np.nan), "cls_last4 holds NaN or infinity"),
    "negative floor": (lambda c: replace(c, floor={"cls": -1.0}), "floor.cls is -1.0, not a finite number from 0 on"),
}  # fmt: skip


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_the_model_cannot_have_given_is_refused(
    misfit: str, with_cases: Callable[[list[BackboneCase]], Bundle], bundle: Bundle
) -> None:
    change, message = MISFITS[misfit]
    changed = with_cases([change(backbone_cases_of(bundle)[0])])
    with pytest.raises(SaccadeError) as caught:
        backbone_cases_of(changed)
    assert f"golden.npz: case 0: {message}" in str(caught.value)
    assert str(caught.value).endswith("; export the bundle again")


def test_a_bundle_without_golden_outputs_says_so(bundle: Bundle) -> None:
    bare = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, golden=None))
    with pytest.raises(SaccadeError, match=r"has no golden.npz to verify against; export the bundle again"):
        backbone_cases_of(bare)


def test_a_golden_file_that_was_changed_is_refused_by_its_hash(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copy(bundle.path / "golden.npz", tmp_path)
    with (tmp_path / "golden.npz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(SaccadeError, match=r"golden.npz was changed or cut short"):
        backbone_cases_of(Bundle(tmp_path, bundle.manifest))


def test_it_is_not_taken_for_the_cases_of_lookwhere(bundle: Bundle) -> None:
    with pytest.raises(SaccadeError, match="is a plain dino backbone, not LookWhere"):
        cases_of(bundle)
