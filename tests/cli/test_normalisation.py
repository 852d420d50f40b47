"""The normalisation of a plain backbone: what export takes, what the bundle records, and what reaches the graph."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import saccade
from saccade import read_bundle
from saccade.cli.main import main
from saccade.cli.normalisation import assumption_of
from saccade.export.backbone_checkpoint import read_backbone
from saccade.export.reference import IMAGENET
from saccade.export.seeded import seeded_weights
from saccade.export.seeded_backbones import BackboneSizes, backbone_shapes

MEAN, STD = (0.5, 0.4, 0.25), (0.5, 0.25, 1.0)
GIVEN = ["--mean", *map(str, MEAN), "--std", *map(str, STD)]
SMALLEST = BackboneSizes(dim=64, patch=8, grid=4, depth=1, layer_scale=False, mask_token=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file in the names that DINO and timm share."""
    path = tmp_path_factory.mktemp("normalisation") / "vit.pt"
    weights = seeded_weights(backbone_shapes(SMALLEST), 1)
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, path)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    """Return its bundle, exported as timm's with statistics of its own."""
    path = checkpoint.with_suffix("")
    assert main(["export", str(checkpoint), "-o", str(path), "--family", "timm", *GIVEN]) == 0
    return path


def test_the_bundle_records_what_was_given_and_inspect_shows_it(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = read_bundle(bundle).manifest.image
    assert (image.mean, image.std) == (MEAN, STD)
    assert main(["inspect", str(bundle)]) == 0
    assert "  images: (pixels/255 - mean) / std, mean 0.5 0.4 0.25, std 0.5 0.25 1\n" in capsys.readouterr().out


def test_the_graph_is_fed_pixels_normalised_so(bundle: Path) -> None:
    """NumPy writes the formula out, and ONNX Runtime runs the file itself; the pipeline looks up 256 values a channel."""
    random = np.random.default_rng(1)
    image = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = (image.astype(np.float64) / 255 - MEAN) / STD
    feed = {"image": pixels.transpose(2, 0, 1)[None].astype(np.float32), "positions": np.load(bundle / "positions.npy")}
    session = onnxruntime.InferenceSession(str(bundle / "backbone.onnx"), providers=["CPUExecutionProvider"])
    tokens = dict(zip((o.name for o in session.get_outputs()), session.run(None, feed), strict=True))["tokens"]
    with saccade.load(bundle, engine="onnxruntime") as pipeline:
        np.testing.assert_allclose(pipeline(image, size=32).tokens, tokens, atol=1e-4)
        assert np.abs(tokens).max() > 0.5


def test_parity_runs_the_checkpoint_with_the_bundles_statistics(
    bundle: Path, checkpoint: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["parity", str(bundle), "--checkpoint", str(checkpoint), "--images", str(photo_folder / "00.png")]
    assert main([*command, "--engine", "onnxruntime"]) == 0
    assert "equals PyTorch on 1 image\n" in capsys.readouterr().out


def test_what_was_assumed_of_a_file_in_timms_names_is_said(checkpoint: Path) -> None:
    said = assumption_of(read_backbone(checkpoint, "timm"), None)
    assert said is not None
    assert said.startswith("the file does not say how pixels were normalised; ImageNet's statistics are assumed")
    assert assumption_of(read_backbone(checkpoint, "timm"), IMAGENET) is None  # they were given
    assert assumption_of(read_backbone(checkpoint, "dino"), None) is None  # whose models all have them


REFUSED = {
    "--mean 0.5 0.5 0.5": "--mean and --std belong together; give both",
    "--mean 123.7 116.3 103.5 --std 1 1 1": (
        "--mean 123.7 is out of range; give 0 to 1; pixels are divided by 255 before, so divide it too"
    ),
    "--mean 0 0 nan --std 1 1 1": "--mean nan is out of range; give 0 to 1",
    "--mean 0 0 0 --std 1 0 1": "--std 0 is out of range; give 0.001 to 1",
}


@pytest.mark.parametrize("options", REFUSED)
def test_statistics_that_cannot_be_are_one_line(
    options: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "new"), *options.split()]) == 1
    assert f"saccade: error: {REFUSED[options]}\n" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_lookwhere_takes_none(
    small_checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(small_checkpoint("dinov2")), "-o", str(tmp_path / "new"), *GIVEN]) == 1
    message = "--mean is for plain backbones: LookWhere has ImageNet's statistics; leave it out"
    assert message in capsys.readouterr().err
