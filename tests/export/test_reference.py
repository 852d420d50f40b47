"""The PyTorch reference against LookWhere written once more in NumPy, from the checkpoint's tensors alone.

Against the official code's outputs the reference is compared in test_golden_outputs.py, as the runner `pytorch`.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf

from saccade.bundle import Defaults, ImageContract
from saccade.errors import SaccadeError
from saccade.export.checkpoint import Checkpoint, read_checkpoint
from saccade.export.golden_cases import golden_cases, synthetic_image
from saccade.export.reference import IMAGENET, Reference, fill, normalised, reference_case, top_k
from saccade.golden import ReferenceOutput
from saccade.runtime import reference as specification

KINDS = {"dinov2": "features", "franca": "features", "classify": "classify", "segment": "segment"}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PATCH, HEAD = 14, 64
Small = Callable[[str], Path]
Weights = dict[str, np.ndarray]


# LookWhere in NumPy and float64


def interpolation(size_in: int, size_out: int, kernel: Callable[[np.ndarray], np.ndarray], reach: int) -> np.ndarray:
    """The matrix (size_out, size_in) of a resize with half-pixel centres whose border values repeat, no antialiasing."""
    centres = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    matrix = np.zeros((size_out, size_in))
    for row, centre in enumerate(centres):
        for tap in range(int(np.floor(centre)) - reach + 1, int(np.floor(centre)) + reach + 1):
            matrix[row, np.clip(tap, 0, size_in - 1)] += kernel(np.abs(centre - tap))
    return matrix


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # (..., H, W)
    rows, columns = (interpolation(image.shape[axis], size[axis], lambda x: np.maximum(1 - x, 0), 1) for axis in (-2, -1))
    return rows @ image @ columns.T


def cubic(x: np.ndarray) -> np.ndarray:
    near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)  # Keys' kernel with a = -0.75
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def bicubic(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:  # (h, w, D) -> (gh, gw, D)
    rows, columns = (interpolation(table.shape[axis], grid[axis], cubic, 2) for axis in (0, 1))
    return np.einsum("Rr,Cc,rcd->RCd", rows, columns, table)


def layer_norm(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def attention(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    q, k, v = np.split(linear(x, weights, f"{name}.qkv"), 3, axis=-1)
    mixed = []
    for head in range(x.shape[-1] // HEAD):
        part = slice(head * HEAD, (head + 1) * HEAD)
        scores = q[:, part] @ k[:, part].T / 8
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        mixed.append(weight / weight.sum(-1, keepdims=True) @ v[:, part])
    return linear(np.concatenate(mixed, -1), weights, f"{name}.proj")


def feed_forward(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    inner = linear(x, weights, f"{name}.fc1")
    if weights[f"{name}.fc2.weight"].shape[1] == inner.shape[-1]:
        return linear(gelu(inner), weights, f"{name}.fc2")
    gate, value = np.split(inner, 2, axis=-1)  # the first half is the gate
    return linear(gate / (1 + np.exp(-gate)) * value, weights, f"{name}.fc2")


def transformer(x: np.ndarray, weights: Weights) -> np.ndarray:
    index = 0
    while f"blocks.{index}.norm1.weight" in weights:
        name = f"blocks.{index}"
        mixed = attention(layer_norm(x, weights, f"{name}.norm1"), weights, f"{name}.attn")
        x = x + mixed * weights[f"{name}.ls1.gamma"]
        inner = feed_forward(layer_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp")
        x = x + inner * weights[f"{name}.ls2.gamma"]
        index += 1
    return layer_norm(x, weights, "norm")


def embedded(image: np.ndarray, weights: Weights) -> np.ndarray:  # (3, H, W) -> (cells, D)
    _, height, width = image.shape
    cells = image.reshape(3, height // PATCH, PATCH, width // PATCH, PATCH).transpose(1, 3, 0, 2, 4)
    flat = cells.reshape(-1, 3 * PATCH * PATCH)
    kernel = weights["patch_embed.proj.weight"]
    return flat @ kernel.reshape(len(kernel), -1).T + weights["patch_embed.proj.bias"]


@dataclass
class NumpyLookWhere:
    """One image at a time, in float64, from the tensors under upstream's names."""

    selector: Weights
    extractor: Weights
    head: Weights

    def look(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the 44x44 map and the prefix rows of a normalised image (3, H, W)."""
        weights = self.selector
        patches = embedded(bilinear(image, (154, 154)), weights) + weights["pos_embed"][0]
        prefix = [weights[name][0] for name in ("cls_token", "reg_token") if name in weights]
        x = transformer(np.concatenate([*prefix, patches]), weights)
        count = len(x) - len(patches)
        scores = linear(gelu(linear(x[count:], self.head, "w1")), self.head, "w2")
        raw = np.zeros((44, 44))
        for token, channels in enumerate(scores):
            row, column = divmod(token, 11)
            raw[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = channels.reshape(4, 4)
        return raw, x[:count]

    def extract(self, image: np.ndarray, kept: np.ndarray, prefix: np.ndarray) -> np.ndarray:
        """Return all rows: prefix, then the kept patches."""
        weights = self.extractor
        grid = (image.shape[1] // PATCH, image.shape[2] // PATCH)
        side = int(len(weights["pos_embed"][0]) ** 0.5)
        table = weights["pos_embed"][0].reshape(side, side, -1)
        positions = table if grid == (side, side) else bicubic(table, grid)
        rows = embedded(image, weights) + positions.reshape(-1, table.shape[-1])
        return transformer(np.concatenate([prefix, rows[kept]]), weights)


def numpy_lookwhere(path: Path) -> NumpyLookWhere:
    """Read a checkpoint's tensors by upstream's names, without our reader."""
    content = torch.load(path, weights_only=True)
    if "selector" in content:
        trees = (content["selector"]["backbone"], content["extractor"], content["selector"]["head"])
        parts = [{name: tensor.double().numpy() for name, tensor in tree.items()} for tree in trees]
    else:
        parts = [
            {name.removeprefix(p): tensor.double().numpy() for name, tensor in content.items() if name.startswith(p)}
            for p in ("selector.model.", "extractor.model.", "selector.head.")
        ]
    return NumpyLookWhere(*parts)


# The comparison


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On busy cores two threads wait for each other far longer than a small tensor takes: 9 ms for one isfinite."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoints(small_checkpoint: Small) -> Callable[[str], Checkpoint]:
    made: dict[str, Checkpoint] = {}

    def make(kind: str) -> Checkpoint:
        if kind not in made:
            made[kind] = read_checkpoint(small_checkpoint(kind))
        return made[kind]

    return make


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def photographs_at(size: tuple[int, int], photographs: list[np.ndarray]) -> list[np.ndarray]:
    """Corners of the two photographs, (height, width, 3) uint8."""
    return [np.ascontiguousarray(photograph[: size[0], : size[1]]) for photograph in photographs]


# Nearly all of it comes from the source coordinates of the first resize, which PyTorch computes in float32.
FLOAT32_BOUND = 1e-4  # measured: 2.6e-5
SIZES = [((126, 126), 8), ((98, 182), 13), ((280, 224), 60)]  # the base grid, and two others


@pytest.mark.parametrize(("size", "k"), SIZES)
def test_the_reference_in_float64_equals_lookwhere_in_numpy(
    checkpoints, small_checkpoint: Small, photographs: list[np.ndarray], kind: str, size: tuple[int, int], k: int
) -> None:
    images = photographs_at(size, photographs)
    out = Reference(checkpoints(kind), KINDS[kind], torch.float64)(images, k)
    for index, image in enumerate(images):
        assert_equals_numpy(numpy_lookwhere(small_checkpoint(kind)), checkpoints(kind), KINDS[kind], image, out, index)


def assert_equals_numpy(
    model: NumpyLookWhere, checkpoint: Checkpoint, task: str, image: np.ndarray, out: ReferenceOutput, index: int
) -> None:
    pixels = ((image / 255 - MEAN) / STD).transpose(2, 0, 1)
    raw, prefix = model.look(pixels)
    scores = bilinear(raw, out.score_map.shape[1:])
    kept = np.lexsort((np.arange(scores.size), -scores.ravel()))[: out.indices.shape[1]]
    rows = model.extract(pixels, kept, prefix)
    cls, tokens = rows[0], rows[len(prefix) :]
    if task != "features":
        weight, bias = (checkpoint.extractor[f"head.{part}"].double().numpy() for part in ("weight", "bias"))
        cls = cls @ weight.T + bias
        tokens = tokens @ weight.T + bias if task == "segment" else tokens
    np.testing.assert_array_equal(out.indices[index], kept)
    pairs = {"raw_score_map": raw, "score_map": scores, "prefix": prefix, "tokens": tokens}
    for name, expected in (pairs if task == "segment" else pairs | {"pooled": cls}).items():
        np.testing.assert_allclose(getattr(out, name)[index], expected, atol=1e-11, err_msg=name)


@pytest.mark.parametrize(("size", "k"), SIZES)
def test_float32_stays_near_float64(
    checkpoints, photographs: list[np.ndarray], kind: str, size: tuple[int, int], k: int
) -> None:
    images = photographs_at(size, photographs)
    exact = Reference(checkpoints(kind), KINDS[kind], torch.float64)(images, k)
    out = Reference(checkpoints(kind), KINDS[kind])(images, k, indices=exact.indices)
    for name in ("raw_score_map", "score_map", "prefix", "tokens", "pooled"):
        np.testing.assert_allclose(getattr(out, name), getattr(exact, name), atol=FLOAT32_BOUND, err_msg=name)


def test_outputs_are_float32_arrays_of_their_shapes(checkpoints, photographs: list[np.ndarray], kind: str) -> None:
    out = Reference(checkpoints(kind), KINDS[kind])(photographs_at((98, 182), photographs), 13)
    prefix = 1 if kind == "franca" else 5
    width, pooled = {"classify": (128, 10), "segment": (7, 0)}.get(kind, (128, 128))
    assert out.raw_score_map.shape == (2, 44, 44)
    assert (out.score_map.shape, out.prefix.shape) == ((2, 7, 13), (2, prefix, 128))
    assert (out.indices.shape, out.tokens.shape, out.pooled.shape) == ((2, 13), (2, 13, width), (2, pooled))
    assert out.indices.dtype == np.int32
    floats = (out.raw_score_map, out.score_map, out.prefix, out.tokens, out.pooled)
    assert {array.dtype for array in floats} == {np.dtype(np.float32)}


def test_an_image_alone_gives_what_it_gives_in_a_batch(checkpoints, photographs: list[np.ndarray], kind: str) -> None:
    reference = Reference(checkpoints(kind), KINDS[kind])
    images = photographs_at((126, 126), photographs)
    together, alone = reference(images, 9), reference(images[1:], 9)
    np.testing.assert_array_equal(together.indices[1], alone.indices[0])
    np.testing.assert_allclose(together.tokens[1], alone.tokens[0], atol=1e-5)


def test_given_cells_and_prefix_replace_the_selectors_own(checkpoints, photographs: list[np.ndarray]) -> None:
    reference = Reference(checkpoints("dinov2"), "features")
    images = photographs_at((126, 126), photographs)
    cells = np.array([[80, 0, 41], [1, 2, 3]], np.int32)
    prefix = np.random.default_rng(0).standard_normal((2, 5, 128), dtype=np.float32)
    out = reference(images, 3, indices=cells, prefix=prefix)
    np.testing.assert_array_equal(out.indices, cells)
    np.testing.assert_array_equal(out.prefix, prefix)
    own = reference(images, 3)
    assert not np.allclose(out.pooled, own.pooled, atol=0.1)
    np.testing.assert_array_equal(out.score_map, own.score_map)


def test_the_order_of_the_cells_only_orders_the_tokens(checkpoints, photographs: list[np.ndarray]) -> None:
    reference = Reference(checkpoints("franca"), "features")
    images = photographs_at((126, 126), photographs)[:1]
    cells = np.array([[3, 50, 11, 80, 0]], np.int32)
    straight = reference(images, 5, indices=cells)
    turned = reference(images, 5, indices=np.ascontiguousarray(cells[:, ::-1]))
    np.testing.assert_allclose(turned.tokens, straight.tokens[:, ::-1], atol=1e-5)


def test_k_may_be_every_cell(checkpoints, photographs: list[np.ndarray]) -> None:
    out = Reference(checkpoints("dinov2"), "features")(photographs_at((126, 126), photographs), 81)
    assert all(sorted(kept) == list(range(81)) for kept in out.indices.tolist())


def test_calling_twice_gives_the_same_bits_and_no_gradients(checkpoints, photographs: list[np.ndarray]) -> None:
    reference = Reference(checkpoints("dinov2"), "features")
    images = photographs_at((126, 126), photographs)
    first, second = reference(images, 9), reference(images, 9)
    assert first.tokens.tobytes() == second.tokens.tobytes()


# Its parts


def test_pixels_become_numbers_by_imagenets_mean_and_deviation() -> None:
    image = np.random.default_rng(1).integers(0, 256, (14, 28, 3), np.uint8)
    found = normalised([image, image[::-1]])
    assert (found.shape, found.dtype) == ((2, 3, 14, 28), torch.float32)
    np.testing.assert_allclose(found[0].permute(1, 2, 0), (image / 255 - MEAN) / STD, atol=1e-6)
    assert (IMAGENET.mean, IMAGENET.std, IMAGENET.color) == (tuple(MEAN), tuple(STD), "RGB")


def test_pixels_become_numbers_by_the_statistics_that_are_given() -> None:
    image = np.random.default_rng(1).integers(0, 256, (14, 28, 3), np.uint8)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.5, 0.25, 1.0])
    found = normalised([image], torch.float64, ImageContract(mean=tuple(mean), std=tuple(std)))
    np.testing.assert_allclose(found[0].permute(1, 2, 0), (image / 255 - mean) / std, atol=1e-12)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.0, 2.0, 1.0], [1, 2, 0]),
        ([1.0, 1.0, 1.0], [0, 1, 2]),
        ([0.0, 1.0, 0.0, 1.0, 0.0], [1, 3, 0, 2, 4]),
        ([-0.0, 0.0, -0.0], [0, 1, 2]),
    ],
)
def test_equal_scores_go_to_the_lower_cell(scores: list[float], kept: list[int]) -> None:
    assert top_k(torch.tensor([scores]), len(kept)).tolist() == [kept]


def test_top_k_equals_a_full_sort_where_many_scores_are_equal() -> None:
    scores = np.random.default_rng(2).integers(0, 5, (3, 500)).astype(np.float32)
    expected = [np.lexsort((np.arange(500), -row))[:77] for row in scores]
    np.testing.assert_array_equal(top_k(torch.from_numpy(scores), 77), expected)


@pytest.mark.parametrize(("grid", "k"), [((9, 9), 5), ((7, 13), 20), ((1, 30), 8), ((16, 16), 256)])
def test_the_fill_equals_the_specification(grid: tuple[int, int], k: int) -> None:
    random = np.random.default_rng(k)
    indices = np.stack([random.permutation(grid[0] * grid[1])[:k] for _ in range(2)]).astype(np.int32)
    tokens = random.standard_normal((2, k, 3), dtype=np.float32)
    filled = fill(torch.from_numpy(tokens), torch.from_numpy(indices), grid)
    for found, kept, values in zip(filled, indices, tokens, strict=True):
        np.testing.assert_allclose(found, specification.fill(values, kept, grid), atol=1e-6)


def test_a_kept_cell_keeps_its_token_in_the_fill() -> None:
    tokens = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1))
    indices = torch.tensor([[0, 7, 8, 12, 20, 24]], dtype=torch.int32)
    filled = fill(tokens, indices, (5, 5)).flatten(2)[0].T
    torch.testing.assert_close(filled[indices[0].long()], tokens[0], atol=1e-6, rtol=0)


def test_of_patches_equally_far_the_one_of_higher_score_counts() -> None:
    grid, cell = (5, 5), 12  # the centre: four cells at distance 1, four at sqrt(2), and four at 2
    indices = torch.tensor([[7, 11, 13, 17, 6, 8, 16, 18]], dtype=torch.int32)
    tokens = torch.eye(8).unsqueeze(0)
    weights = fill(tokens, indices, grid)[0].flatten(1)[:, cell]
    assert (weights > 0).tolist() == [True] * 5 + [False] * 3
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("k", [1, 4])
def test_too_few_patches_cannot_be_filled(k: int) -> None:
    with pytest.raises(SaccadeError, match=f"dense output needs at least 5 kept patches, got {k}"):
        fill(torch.zeros(1, k, 3), torch.arange(k).unsqueeze(0), (3, 3))


@pytest.mark.parametrize("grid", [(9, 9), (4, 4), (18, 12), (37, 9)])
def test_positions_are_resized_bicubically_by_size(checkpoints, grid: tuple[int, int]) -> None:
    checkpoint = checkpoints("dinov2")
    image = torch.zeros(1, 3, grid[0] * PATCH, grid[1] * PATCH)
    found = Reference(checkpoint, "features")._positions_on(image)[0].reshape(*grid, -1)
    np.testing.assert_allclose(found, bicubic(checkpoint.base_positions.double().numpy(), grid), atol=1e-5)


def test_the_noise_floor_is_that_of_float32(checkpoints, photographs: list[np.ndarray], kind: str) -> None:
    checkpoint, task = checkpoints(kind), KINDS[kind]
    images = photographs_at((126, 126), photographs)
    case = reference_case(Reference(checkpoint, task), Reference(checkpoint, task, torch.float64), images, 9)
    assert set(case.floor) == ({"tokens"} if kind == "segment" else {"tokens", "pooled"})
    assert all(1e-9 < value < 1e-5 for value in case.floor.values())
    assert (case.images.shape, case.images.dtype) == ((2, 126, 126, 3), np.uint8)


@pytest.mark.parametrize(
    ("defaults", "kept"),
    [
        (Defaults(size=(126, 126), k_ratio=0.1), 8),
        (Defaults(size=(126, 126), k=20), 20),
        (Defaults(size=(70, 196), k_ratio=0.3), 21),
        (Defaults(size=(14, 14), k=1), 1),
    ],
)
def test_golden_cases_have_the_default_k_and_a_batch_on_another_grid(
    checkpoints, defaults: Defaults, kept: int
) -> None:
    heard: list[str] = []
    first, second = golden_cases(checkpoints("dinov2"), "features", defaults, heard.append)
    assert (first.images.shape[1:3], first.output.indices.shape) == (defaults.size, (1, kept))
    assert len(second.images) == 3
    assert second.output.score_map.shape[1] != second.output.score_map.shape[2]
    assert second.output.indices.shape[1] >= 5
    assert heard


def test_synthetic_images_are_the_same_every_time_and_differ_by_seed() -> None:
    first, again, other = synthetic_image((42, 70), 1), synthetic_image((42, 70), 1), synthetic_image((42, 70), 2)
    assert (first.dtype, first.shape) == (np.uint8, (42, 70, 3))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.std() > 20
