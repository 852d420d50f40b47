"""The PyTorch sides of a benchmark, and the one graph that a plain export of everything gives."""
from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.bundle import Model, read_bundle
from saccade.errors import SaccadeError
from saccade.export.backbone_checkpoint import read_backbone
from saccade.export.backbone_reference import BackboneReference
from saccade.export.checkpoint import Checkpoint, load_modules, read_checkpoint
from saccade.export.reference import Reference, normalised
from saccade.validate.bench_plan import AUTOCAST, COMPILE, Opened, Side, images_of
from saccade.validate.torch_attention import with_torch_attention

Step = Callable[[Tensor], tuple[Tensor, Tensor]]


@contextlib.contextmanager
def open_pytorch(side: Side) -> Iterator[Opened]:
    """Yield the checkpoint's modules on the full graph as upstream runs them: normalise, look, top-k, embed all, gather.

    Attention is torch's own fused kernel, which is what timm's modules call; ours is written out for the engines. What
    torch.compile compiles counts into loading, as it happens once.
    """
    torch.set_num_threads(side.threads)
    dtype = torch.bfloat16 if side.precision == "bf16" and side.engine != AUTOCAST else torch.float32
    images, step, contract = images_of(side), _step(side, dtype), read_bundle(side.bundle).manifest.image
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=side.engine == AUTOCAST)

    @torch.inference_mode()
    def frame() -> dict[str, float]:
        start = time.perf_counter_ns()
        with autocast:
            step(normalised(images, contract=contract).to(dtype))
        return {"frame": (time.perf_counter_ns() - start) / 1e6}

    if side.engine == COMPILE:
        step = torch.compile(step, dynamic=False)
        _compile(frame)
    yield Opened(frame, {"torch": torch.__version__}, {})


def _step(side: Side, dtype: torch.dtype) -> Step:
    """Return normalised images (B, 3, H, W) -> the features, as the bundle's kind of model computes them."""
    assert side.checkpoint is not None  # the plan has this side only where there is one
    manifest = read_bundle(side.bundle).manifest
    if isinstance(manifest.model, Model):
        reference = Reference(read_checkpoint(side.checkpoint), manifest.task, dtype)
        for module in (reference.selector, reference.extractor):
            with_torch_attention(module)
        return _full_graph(reference, side.k)
    key = manifest.provenance.get("checkpoint_key")
    backbone = BackboneReference(read_backbone(side.checkpoint, manifest.model.family, key), (), dtype)
    with_torch_attention(backbone.module)
    return _backbone(backbone, side.size)


def _backbone(reference: BackboneReference, size: tuple[int, int]) -> Step:
    """Return the module at one size: to its advantage positions are resized beforehand, and no extras are asked for."""
    patch = reference.model.patch
    positions = reference.positions((size[0] // patch, size[1] // patch))
    return lambda image: reference.module(image, positions)


def _full_graph(reference: Reference, k: int) -> Step:
    """Return normalised images (B, 3, H, W) -> (cls, logits or nothing; tokens)."""
    patch = reference.model.patch

    def step(image: Tensor) -> tuple[Tensor, Tensor]:
        raw, prefix = reference.look(image)
        cells = (image.shape[2] // patch, image.shape[3] // patch)
        scores = F.interpolate(raw.unsqueeze(1), cells, mode="bilinear", align_corners=False)
        kept = torch.topk(scores.flatten(1), k).indices
        return reference.extract(image, kept, prefix)

    return step


def _compile(frame: Callable[[], dict[str, float]]) -> None:
    """Run the first frame of a compiled side, which compiles it, or say that this cannot be done here."""
    try:
        frame()
    except Exception as error:  # dynamo, inductor and the C++ compiler behind it raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise SaccadeError(
            f"torch.compile does not work here ({reason}); install a C++ compiler, or leave compile out of --peers"
        ) from error


class OneGraph(nn.Module):
    """Everything behind the normalisation as one module: image (B, 3, H, W) -> the extractor's outputs.

    What `torch.onnx.export` gives without any thought of splitting: the whole image is embedded, and its rows gathered
    afterwards. To its advantage the position table is interpolated beforehand, k and all sizes are constants, and
    attention is written out as engines' fusions want it.
    """

    def __init__(self, checkpoint: Checkpoint, task: str, grid: tuple[int, int], k: int) -> None:
        super().__init__()
        self.selector, self.extractor = load_modules(checkpoint, task)
        self.grid, self.k, self.size = grid, k, checkpoint.model.selector_size
        table = checkpoint.base_positions.permute(2, 0, 1).unsqueeze(0)
        if grid != checkpoint.model.base_grid:
            table = F.interpolate(table, grid, mode="bicubic", align_corners=False)
        self.positions = nn.Buffer(table.flatten(2).transpose(1, 2).contiguous())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Run both networks; returns what the extractor returns for the task."""
        lowres = F.interpolate(image, (self.size, self.size), mode="bilinear", align_corners=False)
        raw, prefix = self.selector(lowres)
        scores = F.interpolate(raw.unsqueeze(1), self.grid, mode="bilinear", align_corners=False).flatten(1)
        kept = torch.topk(scores, self.k).indices.unsqueeze(-1)
        backbone, head = self.extractor.backbone, self.extractor.head
        embedded = backbone.patch_embed(image) + self.positions
        rows = torch.gather(embedded, 1, kept.expand(-1, -1, embedded.shape[-1]))
        x = backbone.encode(prefix, rows)
        cls, tokens = x[:, 0], x[:, prefix.shape[1] :]
        if head is None:
            return cls, tokens
        return (head(cls), tokens) if self.extractor.task == "classify" else (head(tokens),)


def export_one_graph(side: Side, path: Path) -> None:
    """Write the one graph for a side's size, k and batch."""
    from saccade.export.onnx_export import OPSET  # needs onnx-ir, which `make gpu-check` has not

    assert side.checkpoint is not None  # the plan has this side only where there is one
    checkpoint = read_checkpoint(side.checkpoint)
    patch = checkpoint.model.patch
    grid = (side.size[0] // patch, side.size[1] // patch)
    module = OneGraph(checkpoint, read_bundle(side.bundle).manifest.task, grid, side.k).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # its notes are about torch itself
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(side.batch, 3, *side.size),),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            verbose=False,
        )
