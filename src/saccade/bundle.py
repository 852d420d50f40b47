"""The bundle: a folder that describes itself. Reading it checks every size, name and hash before anything is used."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, Struct

from saccade import atomic
from saccade.errors import SaccadeError
from saccade.onnx_file import is_whole

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
ENGINES_FOLDER = "engines"
MAX_MANIFEST_BYTES = 4 << 20  # a manifest is a few kB; parity receipts add about 2 kB each
MAX_POSITIONS_BYTES = 1 << 30

# Names of files inside a bundle: one path component, nothing hidden, so that no manifest can point outside its folder.
FileName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Extent = Annotated[int, Meta(ge=1, le=1 << 16)]
Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
# A graph's own precision. int8 has two files with one set of scales: fp32 around it for CPUs, fp16 for TensorRT.
Variant: TypeAlias = Literal["fp32", "fp16", "bf16", "int8", "int8-fp16", "fp8"]
CALIBRATED = ("int8", "fp8")  # precisions whose activations need scales, measured on images
Task: TypeAlias = Literal["features", "classify", "segment"]
BackboneFamily: TypeAlias = Literal["neco", "dinov2", "dino", "timm"]
PositionRule: TypeAlias = Literal["scale-factor", "size-antialias"]  # runtime/positions.py says what they mean
RULE_WORDS: dict[PositionRule, str] = {
    "scale-factor": "by scale factor with 0.1 added, no antialias",
    "size-antialias": "by size, with antialias",
}


def host_type(dtype: str) -> str:
    """Return the type in which NumPy holds a tensor's."""
    return "uint16" if dtype == "bfloat16" else dtype


class TensorSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of a graph; a dimension is a number, or a name where it is dynamic."""

    name: str
    dtype: Literal["float32", "float16", "bfloat16"]
    shape: tuple[Extent | str, ...]

    @property
    def host_type(self) -> np.dtype[Any]:
        """How NumPy holds it: bfloat16, which it does not have, as its bits."""
        return np.dtype(host_type(self.dtype))


class GraphFile(Struct, frozen=True, forbid_unknown_fields=True):
    """One ONNX file: a role (`selector`, `extractor`) in one precision."""

    file: FileName
    sha256: Sha256
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class DataFile(Struct, frozen=True, forbid_unknown_fields=True):
    """Any other file of the bundle."""

    file: FileName
    sha256: Sha256


class ImageContract(Struct, frozen=True, forbid_unknown_fields=True):
    """How pixels become numbers: (x/255 - mean)/std per channel of an RGB uint8 HWC image."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    color: Literal["RGB"] = "RGB"
    layout: Literal["HWC"] = "HWC"
    dtype: Literal["uint8"] = "uint8"
    fit_filter: Literal["bicubic-antialias"] = "bicubic-antialias"
    selector_resize: Literal["bilinear"] = "bilinear"  # half-pixel centres, no antialias

    def in_words(self) -> str:
        """Return the normalisation in one line."""
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"(pixels/255 - mean) / std, mean {mean}, std {std}"


class Model(Struct, frozen=True, forbid_unknown_fields=True, tag_field="family", tag="lookwhere"):
    """The facts about LookWhere's two networks, all read from the checkpoint's keys and shapes."""

    dim: Extent
    heads: Extent
    depth: Extent
    selector_depth: Extent
    ffn: Literal["gelu", "swiglu"]
    hidden: Extent  # width inside the feed-forward network, after gating
    map_hidden: Extent  # width inside the selector's head
    prefix: Annotated[int, Meta(ge=1, le=64)]
    patch: Annotated[int, Meta(ge=1, le=64)]
    selector_size: Extent
    map_size: Extent
    base_grid: tuple[Extent, Extent]
    classes: Annotated[int, Meta(ge=0, le=1 << 20)] = 0


class BackboneModel(Struct, frozen=True, forbid_unknown_fields=True, tag_field="family"):
    """The facts about a plain backbone; family and position rule are the user's word where a file cannot tell."""

    position_rule: PositionRule
    dim: Extent
    heads: Extent
    depth: Extent
    ffn: Literal["gelu", "swiglu"]
    hidden: Extent  # width inside the feed-forward network, after gating
    layer_scale: bool
    registers: Annotated[int, Meta(ge=0, le=63)]
    patch: Annotated[int, Meta(ge=1, le=64)]
    base_grid: tuple[Extent, Extent]

    @property
    def prefix(self) -> int:
        """The number of tokens before the patches: cls and the registers."""
        return 1 + self.registers

    @property
    def family(self) -> str:
        """Whose code the model comes from, as bundle.json names it."""
        return family_of(self)


class Neco(BackboneModel, frozen=True, tag="neco"):
    """NeCo, on DINOv2 with or without registers, DINO, TimeT or Leopart."""


class DinoV2(BackboneModel, frozen=True, tag="dinov2"):
    """DINOv2 as torch.hub offers it."""


class Dino(BackboneModel, frozen=True, tag="dino"):
    """DINO, and PW-Self, which is trained like it."""


class Timm(BackboneModel, frozen=True, tag="timm"):
    """A vision transformer in timm's names."""


BACKBONES: dict[BackboneFamily, type[BackboneModel]] = {"neco": Neco, "dinov2": DinoV2, "dino": Dino, "timm": Timm}


class Defaults(Struct, frozen=True, forbid_unknown_fields=True):
    """What `run` uses where the caller says nothing: pixels as (height, width), and either k or its share of cells."""

    size: tuple[Extent, Extent]
    k: Annotated[int, Meta(ge=1)] | None = None
    k_ratio: Annotated[float, Meta(gt=0, le=1)] | None = None

    def k_on(self, cells: int) -> int:
        """Return how many patches these defaults keep of a grid: an explicit k stays k, a ratio follows the grid."""
        return self.k if self.k is not None else int((self.k_ratio or 0.0) * cells)


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of bundle.json."""

    format: int
    model: Model | Neco | DinoV2 | Dino | Timm
    task: Task
    defaults: Defaults
    image: ImageContract
    positions: DataFile
    graphs: dict[str, dict[Variant, GraphFile]]
    golden: DataFile | None = None
    provenance: dict[str, Any] = {}
    parity: tuple[dict[str, Any], ...] = ()


class Bundle:
    """A bundle on disk whose manifest has been read and checked; files are checked when they are asked for."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def model(self) -> Model:
        """The facts about LookWhere's networks; raises for a plain backbone, which has no selection."""
        model = self.manifest.model
        if not isinstance(model, Model):
            raise SaccadeError(f"{self.path} is a plain {family_of(model)} backbone, not LookWhere; give a LookWhere bundle")
        return model

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of its graphs, in the order they run in."""
        from saccade.contract import contracts_of

        return tuple(contract.role for contract in contracts_of(self.manifest))

    @property
    def engines_path(self) -> Path:
        """The folder of built engines; it may not exist yet."""
        return self.path / ENGINES_FOLDER

    def graph(self, role: str, variant: str) -> GraphFile:
        """Return the entry of one graph, or say which variants there are and how to make this one."""
        variants = self.manifest.graphs[role]
        for name, graph in variants.items():
            if name == variant:
                return graph
        precision = variant.removesuffix("-fp16")
        images = " --calibration IMAGES" if precision in CALIBRATED else ""
        raise SaccadeError(
            f"{self.path}: no {variant} graphs (it has: {', '.join(variants)}); "
            f"make them with 'saccade convert {self.path} --precision {precision}{images}'"
        )

    def checked_path(self, entry: GraphFile | DataFile) -> Path:
        """Return the path of a file after comparing its SHA-256 with the manifest's."""
        path = self.path / entry.file
        check_hash(path, entry.sha256, f"{self.path / MANIFEST}", "export the bundle again")
        return path

    def checked_graph(self, role: str, variant: str) -> Path:
        """Return the path of a graph after comparing its SHA-256; refuses weights in files of their own, which have none."""
        path = self.checked_path(self.graph(role, variant))
        if not is_whole(path):
            raise SaccadeError(f"{path} does not hold its weights itself, so nothing checks them; export the bundle again")
        return path

    def positions(self) -> np.ndarray:
        """Return the position table on its base grid, float32: (rows, columns, D), or (1 + cells, D) of a backbone.

        It lies row by row, as the kernels want it, though a .npy may hold its columns first.
        """
        path = self.checked_path(self.manifest.positions)
        table = read_npy(path)
        model = self.manifest.model
        expected = (*model.base_grid, model.dim) if isinstance(model, Model) else (1 + prod(model.base_grid), model.dim)
        if table.dtype != np.float32 or table.shape != expected:
            raise SaccadeError(f"{path}: expected float32 {expected}, found {table.dtype} {table.shape}; export again")
        return np.ascontiguousarray(table)


def read_npy(path: Path) -> np.ndarray:
    """Read one .npy array, refusing pickled objects and arrays beyond MAX_POSITIONS_BYTES."""
    if path.stat().st_size > MAX_POSITIONS_BYTES:
        raise SaccadeError(f"{path}: larger than any position table; export the bundle again")
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header makes NumPy raise anything: MemoryError, SyntaxError, TokenError, ...
        raise SaccadeError(f"{path}: not a plain .npy array ({error}); export the bundle again") from error
    if not isinstance(array, np.ndarray):
        raise SaccadeError(f"{path}: a {type(array).__name__}, not a plain .npy array; export the bundle again")
    return array


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, reading it in pieces."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)
    except OSError as error:
        raise SaccadeError(f"cannot read {path}: {error.strerror}; export or copy it again") from error


def _digest(file: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def check_hash(path: Path, expected: str, recorded_in: str, remedy: str) -> None:
    """Raise if the file is missing or its SHA-256 differs from `expected`."""
    if not path.is_file():
        raise SaccadeError(f"{path} is missing, but {recorded_in} names it; {remedy}")
    if sha256_of_file(path) != expected:
        raise SaccadeError(f"{path} was changed or cut short: its SHA-256 is not the one in {recorded_in}; {remedy}")


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle folder and check its manifest."""
    folder = Path(path)
    manifest_path = folder / MANIFEST
    if not folder.is_dir():
        raise SaccadeError(f"{folder} is not a bundle folder; make one with 'saccade export CHECKPOINT -o {folder}'")
    if not manifest_path.is_file():
        raise SaccadeError(f"{manifest_path} is missing: {folder} is not a bundle, or its export did not finish")
    return Bundle(folder, read_manifest(manifest_path))


# What msgspec raises for bytes that are no manifest: its own errors, bytes that are not UTF-8, and brackets 100,000 deep.
_JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_manifest(path: Path) -> Manifest:
    """Read and check one bundle.json."""
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise SaccadeError(f"{path}: larger than {MAX_MANIFEST_BYTES >> 20} MiB, so not a manifest; export again")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SaccadeError(f"cannot read {path}: {error.strerror}; export or copy it again") from error
    try:
        version = msgspec.json.decode(data, type=_VersionOnly).format
    except _JSON_ERRORS as error:
        raise SaccadeError(f"{path}: not a manifest ({error}); export the bundle again") from error
    if version != FORMAT_VERSION:
        raise SaccadeError(
            f"{path}: bundle format {version}, but this saccade reads format {FORMAT_VERSION}; "
            f"{'upgrade saccade' if version > FORMAT_VERSION else 'export the bundle again'}"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except _JSON_ERRORS as error:
        raise SaccadeError(f"{path}: {error}; export the bundle again") from error
    _check_consistency(path, manifest)
    return manifest


class _VersionOnly(Struct):
    """Just the format version, so that a newer manifest is refused by its number and not by its first new field."""

    format: int


def family_of(model: Model | BackboneModel) -> str:
    """Return the family that a model's tag names."""
    return str(type(model).__struct_config__.tag)


def _check_consistency(path: Path, manifest: Manifest) -> None:
    """Check what the types alone cannot say."""
    from saccade.contract import contracts_of

    model = manifest.model
    problems = [
        (model.heads * 64 != model.dim, f"dim {model.dim} is not heads x 64"),
        (any(extent % model.patch for extent in manifest.defaults.size), "the default size is no multiple of the patch"),
        (any(not 1e-3 <= value <= 1e3 for value in manifest.image.std), "image.std must lie between 0.001 and 1000"),
        (any(not -1e3 <= value <= 1e3 for value in manifest.image.mean), "image.mean must lie within 1000 of 0"),
    ]
    problems += _lookwhere_problems(manifest, model) if isinstance(model, Model) else _backbone_problems(manifest)
    roles = {contract.role for contract in contracts_of(manifest)}
    problems.append((set(manifest.graphs) != roles, f"graphs must be {sorted(roles)}"))
    problems += [(True, what) for what in _graph_problems(manifest)]
    for wrong, what in problems:
        if wrong:
            raise SaccadeError(f"{path}: {what}; export the bundle again")


def _lookwhere_problems(manifest: Manifest, model: Model) -> list[tuple[bool, str]]:
    chosen = manifest.defaults
    return [
        (model.selector_size % model.patch != 0, f"selector_size {model.selector_size} is no multiple of the patch"),
        ((chosen.k is None) == (chosen.k_ratio is None), "defaults need either k or k_ratio"),
        ((manifest.task == "features") != (model.classes == 0), f"task {manifest.task} with {model.classes} classes"),
    ]


def _backbone_problems(manifest: Manifest) -> list[tuple[bool, str]]:
    chosen = manifest.defaults
    return [
        (chosen.k is not None or chosen.k_ratio is not None, "a plain backbone keeps every patch, so it has no k"),
        (manifest.task != "features", f"task {manifest.task} without a head"),
    ]


def _graph_problems(manifest: Manifest) -> Iterator[str]:
    """Compare every graph's tensors with what the model's facts say they must be; types may differ by precision."""
    from saccade.contract import contracts_of

    def shapes(tensors: tuple[TensorSpec, ...]) -> dict[str, tuple[int | str, ...]]:
        return {tensor.name: tensor.shape for tensor in tensors}

    for contract in contracts_of(manifest):
        expected = shapes(contract.inputs), shapes(contract.outputs)
        for precision, graph in manifest.graphs.get(contract.role, {}).items():
            if not graph.file.endswith(".onnx"):  # engines go by the name, and other kinds have weights in further files
                yield f"the {precision} {contract.role} is {graph.file}, not a file that ends in .onnx"
            if (shapes(graph.inputs), shapes(graph.outputs)) != expected:
                yield f"the tensors of the {precision} {contract.role} do not fit the model's sizes"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write bundle.json in one step, readable and with a stable key order."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    atomic.write_bytes(folder / MANIFEST, data + b"\n")
