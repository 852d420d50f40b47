"""A model for a machine with a GPU and torch: seeded weights, a bundle without ONNX files, and the chain on it."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from saccade._version import VERSION
from saccade.bundle import Bundle, DataFile, Defaults, GraphFile, Manifest, Task
from saccade.contract import GraphContract, extractor_contract, selector_contract
from saccade.engines.store import Receipt
from saccade.export.checkpoint import Checkpoint, load_modules, read_checkpoint
from saccade.export.reference import IMAGENET
from saccade.export.seeded import Sizes, checkpoint_shapes, nested, seeded_weights
from saccade.runtime.device import Device
from saccade.runtime.gpu_chain import GpuPipeline
from saccade.validate.torch_attention import with_torch_attention
from saccade.validate.torch_engine import TorchEngine, in_precision

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# The published ViT-B, and one to try the script with.
MODELS = {"base": Sizes(), "small": Sizes(dim=128, depth=2, selector_depth=1)}
TASK: Task = "features"


@dataclass(frozen=True)
class Subject:
    """A checkpoint and the bundle that describes it; its graphs are torch's modules and no files."""

    checkpoint: Checkpoint
    bundle: Bundle


def seeded_subject(folder: Path, sizes: Sizes, seed: int) -> Subject:
    """Write seeded weights into a folder, read them as any checkpoint, and describe them."""
    weights = seeded_weights(checkpoint_shapes("lookwhere-dinov2", sizes), seed)
    path = folder / "seeded.pt"
    torch.save(_tensors(nested(weights)), path)
    checkpoint = read_checkpoint(path)
    positions = folder / "positions.npy"
    np.save(positions, np.ascontiguousarray(checkpoint.base_positions.numpy()))
    model = checkpoint.model
    pixels = model.base_grid[0] * model.patch
    manifest = Manifest(
        format=1,
        model=model,
        task=TASK,
        defaults=Defaults(size=(pixels, pixels), k_ratio=0.1),
        image=IMAGENET,
        positions=DataFile(positions.name, hashlib.sha256(positions.read_bytes()).hexdigest()),
        graphs={each.role: {"fp32": _graph(each)} for each in (selector_contract(model), extractor_contract(model, TASK))},
    )
    return Subject(checkpoint, Bundle(folder, manifest))


def _tensors(tree: dict[str, object]) -> dict[str, object]:
    return {
        name: _tensors(each) if isinstance(each, dict) else torch.from_numpy(np.asarray(each)) for name, each in tree.items()
    }


def _graph(contract: GraphContract) -> GraphFile:
    return GraphFile(f"{contract.role}.pt", "0" * 64, contract.inputs, contract.outputs)


def open_chain(
    subject: Subject, device: Device, precision: str, *, compiled: bool = False, graphs: bool = True, where: str = "cuda"
) -> GpuPipeline:
    """Return the chain with torch's modules as its networks."""
    modules = load_modules(subject.checkpoint, TASK)
    engines = {}
    for role, module in zip(("selector", "extractor"), modules, strict=True):
        graph = subject.bundle.graph(role, "fp32")
        fused = in_precision(with_torch_attention(module), TYPES[precision], where)
        engines[role] = TorchEngine(role, graph, fused, compiled=compiled)
    receipt = Receipt(
        key="", engine="torch", precision=precision, conditions={"version": torch.__version__}, files={}, sha256={},
        realised="torch's modules" + " compiled" * compiled, audit=None, seconds=0.0, saccade=VERSION,
    )  # fmt: skip
    return GpuPipeline(subject.bundle, engines, receipt, device, graphs=graphs)
