"""run, verify, parity and inspect on plain backbones, as a person and as a program uses them."""
from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

import saccade
from saccade import read_bundle
from saccade.bundle import write_manifest
from saccade.cli.main import main
from saccade.export.seeded import seeded_weights, weights_crc32
from saccade.export.seeded_backbones import BACKBONES, BackboneSizes, backbone_shapes, dino_training_checkpoint
from saccade.golden import relative_difference
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.sheet import GAP, caption_height

Say = Callable[..., str]
Refused = Callable[..., str]
PATCH, DIM, HEADS, SIDE = 8, 64, 1, 448  # small images are enlarged to at least SIDE pixels


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Say:
    """Return a function that runs a command, checks its exit code, and returns its stdout."""

    def run(*arguments: object, code: int = 0) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        return capfd.readouterr().out

    return run


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Return a function that runs a command which must fail before it loads anything, and returns its one line."""
    monkeypatch.setattr("saccade.cli.options.load", lambda *_, **__: pytest.fail("loaded for nothing"))

    def run(*arguments: object) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        out, err = capfd.readouterr()
        assert (out, err.count("\n"), list(tmp_path.iterdir())) == ("", 1, [])
        return err.removeprefix("saccade: error: ").strip()

    return run


@pytest.fixture
def bundle(small_backbone: Callable[[str], Path]) -> Path:
    return small_backbone("dino")


@pytest.fixture
def checkpoint_of(small_backbone: Callable[[str], Path]) -> Callable[[str], Path]:
    """Return a function from a family to the checkpoint of its small bundle."""
    return lambda family: small_backbone(family).with_suffix(".pt")


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle, without engines."""
    return shutil.copytree(bundle, tmp_path / "copy", ignore=shutil.ignore_patterns("engines"))


@pytest.fixture
def photos(photo_folder: Path) -> list[Path]:
    return sorted(photo_folder.iterdir())[:3]


# ---- make-checkpoint


def test_make_checkpoint_writes_the_weights_that_a_seed_says_in_the_sizes_that_are_given(say: Say, tmp_path: Path) -> None:
    path = tmp_path / "dino.pt"
    options = ["--dim", 64, "--depth", 5, "--grid", 6, "--seed", 3]
    made = json.loads(say("make-checkpoint", "dino-vits8", "-o", path, *options, "--json"))
    expected = seeded_weights(backbone_shapes(replace(BACKBONES["dino-vits8"], dim=64, depth=5, grid=6)), 3)
    assert made["crc32"] == weights_crc32(expected)
    model = json.loads(say("inspect", path, "--json"))["model"]
    found = {name: model[name] for name in ("family", "dim", "depth", "patch", "base_grid", "registers", "layer_scale")}
    assert found == {
        "family": "dino", "dim": 64, "depth": 5, "patch": 8, "base_grid": [6, 6], "registers": 0, "layer_scale": False,
    }  # fmt: skip


# ---- run


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_run_writes_what_the_pipeline_gives(
    engine: str, bundle: Path, photos: list[Path], say: Say, tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    data = json.loads(say("run", bundle, *photos, "--engine", engine, "--size", "40x64", "--dense", "-o", out, "--json"))
    with saccade.load(bundle, engine=engine) as pipe:
        assert isinstance(pipe, BackbonePipeline)
        expected = pipe(photos, size=(40, 64))
    with np.load(out) as stored:
        arrays = dict(stored)
    assert arrays.pop("images").tolist() == [str(path) for path in photos]
    assert {name: list(array.shape) for name, array in arrays.items()} == data["outputs"] == {
        "cls": [3, DIM], "tokens": [3, 40, DIM], "attention": [3, HEADS, 40], "cls_last4": [3, 4, DIM],
        "dense": [3, DIM, 5, 8],
    }  # fmt: skip
    for name, array in (expected.arrays() | {"dense": expected.dense}).items():
        assert arrays[name].dtype == np.float32
        assert relative_difference(arrays[name], array) < 1e-5, name
    assert set(data["ms_per_image"]) == {"decode", "fit", "normalize", "backbone"}
    assert "static_k" not in data


def test_without_dense_there_is_no_second_copy_of_the_tokens(bundle: Path, photos: list[Path], say: Say) -> None:
    assert "dense" not in json.loads(say("run", bundle, photos[0], "--json"))["outputs"]


def test_images_beyond_one_call_are_in_their_order(bundle: Path, photos: list[Path], say: Say, tmp_path: Path) -> None:
    many = [*photos * 3, photos[0]]
    say("run", bundle, *many, "-o", tmp_path / "out.npz")
    tokens = np.load(tmp_path / "out.npz")["tokens"]
    assert len(tokens) == 10
    for i, array in enumerate(tokens):
        assert relative_difference(array[None], tokens[i % 3][None]) < 1e-5
    assert relative_difference(tokens[:1], tokens[1:2]) > 0.1


def test_the_pca_picture_shows_every_image_beside_the_colours_of_pca_rgb(
    bundle: Path, photos: list[Path], say: Say, tmp_path: Path
) -> None:
    out = say("run", bundle, *photos[:2], "--size", "56x112", "--pca", tmp_path / "pca.png")
    assert f"wrote {tmp_path / 'pca.png'}" in out
    picture = np.asarray(Image.open(tmp_path / "pca.png"))
    width, height = SIDE, SIDE // 2
    step = caption_height(width) + height + GAP
    assert picture.shape == (2 * step + GAP, 2 * width + 3 * GAP, 3)  # a row for each image
    with saccade.load(bundle) as pipe:
        assert isinstance(pipe, BackbonePipeline)
        colours = pipe(photos[:2], size=(56, 112)).pca_rgb()
    for i in range(2):
        top, left = GAP + i * step + caption_height(width), 2 * GAP + width
        shown = picture[top : top + height : 32, left : left + width : 32].astype(int)
        np.testing.assert_allclose(shown, colours[i], atol=1)


@pytest.mark.parametrize("mass", [None, 0.6])
def test_the_attention_picture_has_one_map_for_each_head(
    mass: float | None, small_backbone: Callable[[str], Path], photos: list[Path], say: Say, tmp_path: Path
) -> None:
    options = ["--attention", tmp_path / "a.png", *(["--attention-mass", mass] if mass else [])]
    data = json.loads(say("run", small_backbone("neco"), photos[0], "--size", "126", *options, "--json"))
    assert data["attention"] == str(tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    side = 4 * 126  # the smallest whole factor that reaches 448
    line = caption_height(side)
    assert picture.shape == (line + side + 2 * GAP, 3 * side + 4 * GAP, 3)  # the image and two heads
    white = (picture[GAP + line : -GAP, side + 2 * GAP : 2 * side + 2 * GAP] == 255).all(axis=-1)
    assert white.any() == (mass is not None)


def test_pca_colours_the_filled_tokens_of_lookwhere(
    small_bundle: Callable[[str], Path], photos: list[Path], say: Say, tmp_path: Path
) -> None:
    for kind, dense in (("dinov2", ["--dense"]), ("segment", [])):
        path = tmp_path / f"{kind}.png"
        say("run", small_bundle(kind), photos[0], "--size", "112", "--k", 20, *dense, "--pca", path)
        assert Image.open(path).size == (2 * SIDE + 3 * GAP, caption_height(SIDE) + SIDE + 2 * GAP)


LOOKWHERE_ALONE = [["--k", 5], ["--k-ratio", 0.1], ["--static"], ["--look"], ["--cls-only"], ["--overlay", "o.png"]]


@pytest.mark.parametrize("options", LOOKWHERE_ALONE, ids=lambda options: options[0])
def test_what_only_lookwhere_has_is_refused(
    options: list[object], bundle: Path, photos: list[Path], refused: Refused
) -> None:
    message = refused("run", bundle, photos[0], *options)
    assert message == f"{options[0]} means nothing to a plain backbone, which sees every patch; leave it out"


REFUSED = {
    "lookwhere has no attention": ("lookwhere --attention a.png", "--attention draws what a plain backbone gives and"),
    "lookwhere without fill": ("lookwhere --pca a.png", "--pca colours every cell, and LookWhere fills them only with"),
    "mass alone": ("dino --attention-mass 0.6", "--attention-mass is drawn into the heat maps of --attention; give that"),
    "mass of nothing": ("dino --attention a.png --attention-mass 0", "--attention-mass 0.0 is no share; give more than 0"),
    "mass not a number": ("dino --attention a.png --attention-mass nan", "--attention-mass nan is no share"),
    "one file for two": ("dino --attention a.png --pca a.png", "--pca and --attention name one file; give each picture"),
    "no png": ("dino --pca a.jpg", "--pca a.jpg: it is written as .png; end the name so"),
    "size": ("dino --size 50", "size 50x50 is not a multiple of the 8 px patch; the nearest is 48x48"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_do_not_fit_are_refused_before_anything_is_loaded(
    case: str,
    small_bundle: Callable[[str], Path],
    small_backbone: Callable[[str], Path],
    photos: list[Path],
    refused: Refused,
) -> None:
    (kind, *options), message = REFUSED[case][0].split(), REFUSED[case][1]
    path = small_bundle("dinov2") if kind == "lookwhere" else small_backbone(kind)
    assert refused("run", path, photos[0], *options).startswith(message)


# ---- verify


def test_verify_tells_a_faithful_engine_from_another_position_table(copy: Path, say: Say) -> None:
    text = say("verify", copy, "--engine", "onnxruntime")
    assert text.startswith("onnxruntime fp32 equals PyTorch on 3 images\n")
    assert [line.split()[0] for line in text.splitlines()[2:]] == [
        "cls", "patches", "patches_p1", "cls_last4", "attention", "difference",
    ]  # fmt: skip
    np.save(copy / "positions.npy", np.load(copy / "positions.npy")[::-1])
    manifest = read_bundle(copy).manifest
    sha256 = hashlib.sha256((copy / "positions.npy").read_bytes()).hexdigest()
    entry = msgspec.structs.replace(manifest.positions, sha256=sha256)
    write_manifest(copy, msgspec.structs.replace(manifest, positions=entry))
    assert "DIFFERS from PyTorch" in say("verify", copy, "--engine", "onnxruntime", code=1)


def test_verify_of_a_static_engine_is_refused(bundle: Path, refused: Refused) -> None:
    assert refused("verify", bundle, "--static").startswith("--static means nothing to a plain backbone")


# ---- parity


def test_parity_on_photographs_leaves_a_report_tensors_and_a_receipt(
    copy: Path, checkpoint_of: Callable[[str], Path], photos: list[Path], say: Say, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for photo in photos[:2]:
        shutil.copy(photo, tmp_path / "photos")
    places = ["--images", tmp_path / "photos", "--report", tmp_path / "r.html", "--results", tmp_path / "results"]
    data = json.loads(
        say("parity", copy, "--checkpoint", checkpoint_of("dino"), "--size", "40x64", *places, "--json")
    )
    assert (data["passed"], data["images"], set(data["graphs"])) == (True, 2, {"backbone"})
    assert set(data["tensors"]) == {f"backbone.{name}" for name in ("cls", "tokens", "attention", "cls_last4")}
    assert all(values["cosine"] > 0.99999 for values in data["tensors"].values())
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "backbone.inputs.json", "backbone.outputs.json", "backbone.accuracy.json",
    }  # fmt: skip
    assert read_bundle(copy).manifest.parity[-1]["key"] == data["key"]
    assert "parity: openvino fp32 equal to PyTorch on 2 images" in say("inspect", copy)
    check_page((tmp_path / "r.html").read_text())


def check_page(page: str) -> None:
    """The page shows, for both images, the image and both sides' features in the same colours."""
    assert 'Parity with PyTorch: <span class="pass">equal' in page
    assert len(re.findall("<figcaption>64 x 40 px, 40 patches: 1 - cosine ", page)) == 2
    found = re.findall(r'alt="(\w+)" src="data:image/jpeg;base64,([^"]+)"', page)
    assert [name for name, _ in found] == ["image", "reference", "engine"] * 2
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int) for _, data in found]
    assert {picture.shape for picture in shown} == {(40, 64, 3)}
    for image, reference, engine in (shown[:3], shown[3:]):
        assert np.abs(reference - engine).max() <= 8  # of JPEG
        assert np.abs(reference - image).mean() > 20


def test_parity_on_its_own_images_needs_no_others(
    copy: Path, checkpoint_of: Callable[[str], Path], say: Say
) -> None:
    text = say("parity", copy, "--checkpoint", checkpoint_of("dino"), "--engine", "onnxruntime")
    assert text.startswith("onnxruntime fp32 equals PyTorch on 3 images\n")


def test_parity_reads_the_network_of_a_training_checkpoint_that_the_bundle_was_made_of(
    copy: Path, tmp_path: Path, say: Say
) -> None:
    """Its teacher has the small bundle's weights, its student others."""
    sizes = BackboneSizes(dim=64, patch=8, grid=6, depth=5, layer_scale=False, mask_token=False)
    torch.save(tensors(dino_training_checkpoint(sizes, 1)), tmp_path / "training.pth")
    sha256 = hashlib.sha256((tmp_path / "training.pth").read_bytes()).hexdigest()
    for key, code in (("teacher", 0), ("student", 1)):
        manifest = read_bundle(copy).manifest
        provenance = manifest.provenance | {"checkpoint_sha256": sha256, "checkpoint_key": key}
        write_manifest(copy, msgspec.structs.replace(manifest, provenance=provenance))
        say("parity", copy, "--checkpoint", tmp_path / "training.pth", "--engine", "onnxruntime", code=code)


def tensors(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: tensors(value) for name, value in tree.items()}
    return torch.from_numpy(np.asarray(tree)) if isinstance(tree, (np.ndarray, np.generic)) else tree


def test_another_checkpoint_is_refused_whatever_its_family(
    bundle: Path,
    checkpoint_of: Callable[[str], Path],
    small_checkpoint: Callable[[str], Path],
    refused: Refused,
) -> None:
    for path in (checkpoint_of("neco"), small_checkpoint("dinov2")):
        message = refused("parity", bundle, "--checkpoint", path)
        assert message == f"{path} is not the checkpoint that {bundle} was made of; give that file, or export again"
    assert "gone.pt: no such checkpoint file" in refused("parity", bundle, "--checkpoint", "gone.pt")


@pytest.mark.parametrize("option", [["--k", 3], ["--k-ratio", 0.5]], ids=["k", "k-ratio"])
def test_parity_refuses_a_k(
    option: list[object], bundle: Path, checkpoint_of: Callable[[str], Path], refused: Refused
) -> None:
    message = refused("parity", bundle, "--checkpoint", checkpoint_of("dino"), *option)
    assert message == f"{option[0]} means nothing to a plain backbone, which sees every patch; leave it out"


# ---- inspect


def test_inspect_of_a_checkpoint_says_what_the_bundle_says(
    bundle: Path, checkpoint_of: Callable[[str], Path], say: Say
) -> None:
    checkpoint = checkpoint_of("dino")
    data = json.loads(say("inspect", checkpoint, "--json"))
    manifest = read_bundle(bundle).manifest
    assert data["layout"] == manifest.provenance["checkpoint_layout"]
    assert data["sha256"] == manifest.provenance["checkpoint_sha256"]
    assert data["model"] == json.loads(msgspec.json.encode(manifest.model))
    text = say("inspect", checkpoint)
    shared = [line for line in text.splitlines()[1:] if "SHA" not in line]
    assert len(shared) == 4
    assert "prefix: 1 row (cls and no registers)" in text
    assert all(line in say("inspect", bundle) for line in shared)


def test_inspect_of_a_checkpoint_takes_the_family_that_it_cannot_tell(
    checkpoint_of: Callable[[str], Path], say: Say, refused: Refused
) -> None:
    checkpoint = checkpoint_of("neco")
    assert "say --family neco or --family dinov2" in refused("inspect", checkpoint)
    assert "to other grids by size, with antialias" in say("inspect", checkpoint, "--family", "dinov2")
    assert "to other grids by scale factor with 0.1 added" in say("inspect", checkpoint, "--family", "neco")


def test_inspect_of_a_lookwhere_checkpoint_says_both_networks(
    small_checkpoint: Callable[[str], Path], say: Say
) -> None:
    text = say("inspect", small_checkpoint("dinov2"))
    assert "lookwhere, lookwhere\n  extractor: 2 blocks, width 128, 2 heads, gelu, patch 14\n  selector: 1 block," in text
