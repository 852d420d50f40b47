"""A checkpoint is known by its content; whatever is not one is refused in one line, and nothing in it runs."""
from __future__ import annotations

import io
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.errors import SaccadeError
from saccade.export import weights_file
from saccade.export.checkpoint import load_modules, read_checkpoint, resolve_task
from saccade.export.seeded import Sizes, checkpoint_shapes, nested, seeded_weights

SIZES = Sizes(dim=64, depth=2, selector_depth=1, grid=3)
FUZZ = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
Tree = dict[str, Any]


def tensors(tree: Tree) -> Tree:
    return {name: tensors(node) if isinstance(node, dict) else torch.from_numpy(node) for name, node in tree.items()}


def weights(family: str = "lookwhere-dinov2", sizes: Sizes = SIZES) -> dict[str, Tensor]:
    """Every tensor of a checkpoint under its full dotted name."""
    return tensors(seeded_weights(checkpoint_shapes(family, sizes), 1))


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def nest(flat: dict[str, Tensor]) -> Tree:
    return nested(flat)  # type: ignore[arg-type]  # it only moves what it is given


def refusal(path: Path) -> str:
    """Return the one line with which a file is refused; nothing may be printed or warned."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SaccadeError) as caught:
            read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 200
    return message.removeprefix(str(path))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On busy cores two threads wait for each other far longer than a small tensor takes: 9 ms for one isfinite."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


CLASSES = Sizes(dim=64, depth=2, selector_depth=1, grid=3, classes=7)


@pytest.mark.parametrize(
    ("family", "sizes", "ffn", "hidden", "prefix", "layout"),
    [
        ("lookwhere-dinov2", SIZES, "gelu", 256, 5, "lookwhere"),
        ("lookwhere-franca", SIZES, "swiglu", 170, 1, "lookwhere"),
        ("lookwhere-dinov2", CLASSES, "gelu", 256, 5, "lookwhere-finetuned"),
        ("lookwhere-franca", CLASSES, "swiglu", 170, 1, "lookwhere-finetuned"),
    ],
)
def test_both_layouts_of_both_variants_are_recognised(
    path: Path, family: str, sizes: Sizes, ffn: str, hidden: int, prefix: int, layout: str
) -> None:
    flat = weights(family, sizes)
    found = read_checkpoint(saved(path, flat if sizes.classes else nest(flat)))
    assert (found.layout, found.model.ffn, found.model.hidden, found.model.prefix) == (layout, ffn, hidden, prefix)
    assert found.model.classes == sizes.classes


@pytest.mark.parametrize("dim", [128, 384, 768, 1024])
@pytest.mark.parametrize("family", ["lookwhere-dinov2", "lookwhere-franca"])
def test_the_sizes_of_a_width_are_read_from_shapes(path: Path, family: str, dim: int) -> None:
    sizes = Sizes(dim=dim, depth=1, selector_depth=1, grid=4)
    model = read_checkpoint(saved(path, nest(weights(family, sizes)))).model
    assert (model.dim, model.heads, model.map_hidden) == (dim, dim // 64, 4 * dim)
    assert model.hidden == (4 * dim if family == "lookwhere-dinov2" else int(dim * 2.66667))


@pytest.mark.parametrize(
    ("sizes", "facts"),
    [
        (Sizes(dim=64, depth=3, selector_depth=2, grid=5), {"depth": 3, "selector_depth": 2, "base_grid": (5, 5)}),
        (Sizes(dim=64, depth=11, selector_depth=1, grid=2), {"depth": 11}),
        (Sizes(dim=64, depth=1, selector_depth=1, grid=2, selector_grid=8), {"selector_size": 112, "map_size": 32}),
        (Sizes(dim=64, depth=1, selector_depth=1, grid=2, map_factor=3), {"selector_size": 154, "map_size": 33}),
        (Sizes(dim=64, depth=1, selector_depth=1, grid=2, patch=16), {"patch": 16, "selector_size": 176}),
        (Sizes(dim=64, depth=1, selector_depth=1, grid=2, registers=2), {"prefix": 3}),
    ],
)
def test_every_other_size_is_read_from_shapes(path: Path, sizes: Sizes, facts: dict[str, object]) -> None:
    model = read_checkpoint(saved(path, nest(weights(sizes=sizes)))).model
    assert {name: getattr(model, name) for name in facts} == facts


def test_every_tensor_arrives_under_the_name_of_its_module(path: Path) -> None:
    flat = weights(sizes=CLASSES)
    found = read_checkpoint(saved(path, flat))
    renamed = {name.replace("selector.model.", "selector.backbone."): tensor for name, tensor in flat.items()}
    parts = {f"selector.{name}": tensor for name, tensor in found.selector.items()}
    for name, tensor in found.extractor.items():
        parts[name if name.startswith("head.") else f"extractor.model.{name.removeprefix('backbone.')}"] = tensor
    assert parts.keys() == renamed.keys()
    assert all(torch.equal(parts[name], renamed[name]) for name in parts)


def test_the_position_table_is_row_major_on_its_grid(path: Path) -> None:
    flat = weights()
    table = read_checkpoint(saved(path, nest(flat))).base_positions
    assert table.shape == (3, 3, 64)
    assert torch.equal(table[1, 2], flat["extractor.pos_embed"][0, 5])


@pytest.mark.parametrize("name", ["lookwhere_franca.pt", "weights", "a b.bin", "ViT-S_int8.pth", "ünïcode.pt"])
def test_a_renamed_file_reads_alike(small_checkpoint: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    original = small_checkpoint("dinov2")
    shutil.copy(original, tmp_path / name)
    ours, theirs = read_checkpoint(tmp_path / name), read_checkpoint(original)
    assert (ours.model, ours.layout, ours.sha256) == (theirs.model, theirs.layout, theirs.sha256)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_read_as_float32(path: Path, dtype: torch.dtype) -> None:
    flat = {name: tensor.to(dtype) for name, tensor in weights().items()}
    found = read_checkpoint(saved(path, nest(flat)))
    name = "blocks.1.attn.qkv.weight"
    assert {tensor.dtype for tensor in (found.selector | found.extractor).values()} == {torch.float32}
    assert torch.equal(found.extractor[f"backbone.{name}"], flat[f"extractor.{name}"].float())


def test_a_flat_file_and_a_nested_file_read_alike(tmp_path: Path) -> None:
    flat = weights()
    ours, theirs = (
        read_checkpoint(saved(tmp_path / name, content)) for name, content in (("flat", flat), ("nested", nest(flat)))
    )
    assert (ours.model, ours.layout) == (theirs.model, theirs.layout)
    assert all(torch.equal(ours.extractor[name], theirs.extractor[name]) for name in theirs.extractor)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(torch.nn.Parameter, id="parameters"),
        pytest.param(lambda tensor: tensor.clone().requires_grad_(), id="gradients"),
        pytest.param(lambda tensor: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor, id="strides"),
    ],
)
def test_tensors_of_any_make_are_read(path: Path, prepare: Callable[[Tensor], Tensor]) -> None:
    flat = weights()
    found = read_checkpoint(saved(path, nest({name: prepare(tensor) for name, tensor in flat.items()})))
    assert found.base_positions.numpy().tobytes() == flat["extractor.pos_embed"].numpy().tobytes()
    assert not any(tensor.requires_grad for tensor in found.extractor.values())


def test_the_legacy_format_reads_alike(path: Path, tmp_path: Path) -> None:
    flat = weights()
    ours = read_checkpoint(saved(path, nest(flat), _use_new_zipfile_serialization=False))
    assert path.read_bytes()[:2] != b"PK"
    assert ours.model == read_checkpoint(saved(tmp_path / "zip.pt", nest(flat))).model
    assert torch.equal(ours.extractor["backbone.pos_embed"], flat["extractor.pos_embed"])


def test_reading_maps_the_file_instead_of_copying_it(path: Path) -> None:
    found = read_checkpoint(saved(path, nest(weights())))
    assert str(path) in Path("/proc/self/maps").read_text()
    del found


def test_reading_leaves_the_file_as_it_is(path: Path) -> None:
    before = saved(path, nest(weights())).read_bytes()
    found = read_checkpoint(path)
    found.extractor["backbone.pos_embed"].zero_()
    assert path.read_bytes() == before


def test_the_modules_are_in_eval_mode_and_share_the_checkpoints_memory(path: Path) -> None:
    found = read_checkpoint(saved(path, nest(weights())))
    for module, given_tensors in zip(load_modules(found, "features"), (found.selector, found.extractor), strict=True):
        assert not module.training
        for name, parameter in module.named_parameters():
            assert parameter.data_ptr() == given_tensors[name].data_ptr()
            assert not parameter.requires_grad


@pytest.mark.parametrize(("task", "has_head"), [("features", False), ("classify", True), ("segment", True)])
def test_the_head_is_loaded_where_the_task_needs_it(path: Path, task: str, has_head: bool) -> None:
    flat = weights(sizes=CLASSES)
    _, extractor = load_modules(read_checkpoint(saved(path, flat)), task)
    assert (extractor.head is not None) == has_head
    assert not has_head or torch.equal(extractor.head.weight, flat["head.weight"])


# Files that are no checkpoint at all


def test_an_absent_file_is_named_with_a_way_to_make_one(path: Path) -> None:
    assert refusal(path) == ": no such checkpoint file; 'saccade make-checkpoint' writes one to try things with"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == " is a folder, not a checkpoint; give the .pt file itself"


def test_an_empty_file_is_refused(path: Path) -> None:
    path.touch()
    assert refusal(path) == " is empty; copy it again"


@pytest.mark.parametrize(
    "data",
    [
        b"hello world\n",
        b"This is a text file.\n" * 100,
        b'{"selector": {}}',
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 443\n",
        b"<!DOCTYPE html><html>404</html>",
        b"\x00" * 1000,
        b"\xff\xd8\xff\xe0 JFIF",
        b"\x93NUMPY",
        b"PK",
        b"a",
        (300).to_bytes(8, "little") + b'{"__metadata__":{"format":"pt"}}',
    ],
    ids=["text", "longer text", "JSON", "git-lfs", "HTML", "zeros", "JPEG", "npy", "two bytes", "a byte", "safetensors"],
)
def test_a_file_of_another_kind_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert refusal(path) == " is not a PyTorch checkpoint; give a .pt file of tensors"


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_zip_is_refused(path: Path, share: float) -> None:
    data = saved(path, nest(weights())).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message = refusal(path)
    assert message.startswith(" is truncated or not a PyTorch checkpoint (RuntimeError PytorchStreamReader failed")
    assert message.endswith("; copy it again")


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.9999])
def test_a_truncated_legacy_file_is_refused(path: Path, share: float) -> None:
    data = saved(path, nest(weights()), _use_new_zipfile_serialization=False).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert refusal(path).startswith(" is truncated or not a PyTorch checkpoint (")


def test_a_zip_of_something_else_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "dear reader")
    assert " is truncated or not a PyTorch checkpoint (" in refusal(path)


def test_a_torchscript_archive_is_refused(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    assert "TorchScript archives" in refusal(path)


@FUZZ
@given(data=st.binary(max_size=40))
@example(b"\x80\x02a")
@example(b"\x80\x02G1")
@example(b"\x80\x02R.")
@example(b"\x80\x02}.")
@example(b"PK\x03\x04")
def test_bytes_of_any_kind_are_refused(path: Path, data: bytes) -> None:
    for start in (b"", b"\x80\x02", b"PK\x03\x04"):
        path.write_bytes(start + data)
        with pytest.raises(SaccadeError) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)


# Files that hold code


class Touch:
    """Unpickling one of these creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


REFUSED = " holds objects other than tensors, which could run code: refused; save it again as a plain state dict of tensors"


def as_zip(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def as_legacy(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("encode", [as_zip, as_legacy, pickle.dumps], ids=["zip", "legacy", "pickle"])
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"selector": {"x": evil}}], ids=["bare", "nested"])
def test_code_is_refused_and_does_not_run(
    path: Path, tmp_path: Path, encode: Callable[[object], bytes], wrap: Callable[[object], object]
) -> None:
    path.write_bytes(encode(wrap(Touch(tmp_path / "ran"))))
    assert refusal(path) == REFUSED
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Touch(tmp_path / "ran")))  # the payload is live
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [torch.nn.Linear(2, 2), {"x": np.zeros(3)}, {"path": Path()}])
@pytest.mark.parametrize("encode", [as_zip, as_legacy])
def test_other_objects_are_refused(path: Path, encode: Callable[[object], bytes], content: object) -> None:
    path.write_bytes(encode(content))
    assert refusal(path) == REFUSED


# Tensors that are no LookWhere


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(3)], " holds a list, not a dict of tensors; save a state dict"),
        (torch.zeros(3), " holds a Tensor, not a dict of tensors; save a state dict"),
        ({"epoch": 3}, ": 'epoch' is of type int, not a floating-point tensor; save weights only"),
        ({"selector": {"name": "x"}}, ": 'selector.name' is of type str, not a floating-point tensor; save weights only"),
        ({"selector": None}, ": 'selector' is of type NoneType, not a floating-point tensor; save weights only"),
        ({"x": torch.zeros(3, dtype=torch.int64)}, ": 'x' is of type torch.int64, torch.strided on cpu, not a floating"),
        ({"x": torch.zeros(3, dtype=torch.complex64)}, ": 'x' is of type torch.complex64"),
        ({"x": torch.zeros(3).to_sparse()}, ": 'x' is of type torch.float32, torch.sparse_coo on cpu, not a floating"),
        ({"x": torch.zeros(3, device="meta")}, ": 'x' is of type torch.float32, torch.strided on meta, not a floating"),
        ({}, ": no 'selector' weights, so not a LookWhere checkpoint"),
        ({"layer1.0.conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(3)},
         ": no 'selector' weights, so not a LookWhere checkpoint (found keys like 'layer1.0.conv1.weight', 'fc.bias')"),
        ({f"blocks.{n}.norm.bias": torch.zeros(1) for n in range(9)}, "'blocks.2.norm.bias' and 6 more)"),
        ({"selector.backbone.cls_token": torch.zeros(1, 1, 64)}, ": no 'extractor' weights, so not a LookWhere checkpoint"),
        ({"model": {"selector": {"backbone": {"x": torch.zeros(1)}}}}, "(found keys like 'model.selector.backbone.x')"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encode", [as_zip, as_legacy])
def test_content_that_is_no_lookwhere_is_named(
    path: Path, encode: Callable[[object], bytes], content: object, words: str
) -> None:
    path.write_bytes(encode(content))
    assert words in refusal(path)


def test_a_dict_that_holds_itself_is_refused(path: Path) -> None:
    content: Tree = {}
    content["again"] = content
    assert " is nested too deeply; save a plain state dict of tensors" in refusal(saved(path, content))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("extractor.cls_token", ": extractor lacks key 'cls_token'; the checkpoint is incomplete"),
        ("extractor.pos_embed", ": extractor lacks key 'pos_embed'; the checkpoint is incomplete"),
        ("extractor.blocks.0.mlp.fc2.weight", ": extractor lacks key 'blocks.0.mlp.fc2.weight'; the"),
        ("extractor.blocks.1.ls2.gamma", ": extractor lacks key 'blocks.1.ls2.gamma'; the checkpoint is incomplete"),
        ("extractor.norm.bias", ": extractor lacks key 'norm.bias'; the checkpoint is incomplete"),
        ("selector.backbone.norm.weight", ": selector lacks key 'norm.weight'; the checkpoint is incomplete"),
        ("selector.backbone.reg_token", ": selector lacks key 'reg_token'; the checkpoint is incomplete"),
        ("selector.head.w1.weight", ": selector lacks key 'head.w1.weight'; the checkpoint is incomplete"),
        ("selector.head.w2.bias", ": selector lacks key 'head.w2.bias'; the checkpoint is incomplete"),
    ],
)
def test_a_missing_key_is_named(path: Path, key: str, words: str) -> None:
    flat = weights()
    del flat[key]
    assert words in refusal(saved(path, nest(flat)))


def test_many_missing_keys_are_counted(path: Path) -> None:
    flat = {name: tensor for name, tensor in weights().items() if not name.startswith("extractor.blocks.0.attn")}
    message = refusal(saved(path, nest(flat)))
    assert message == (
        ": extractor lacks keys 'blocks.0.attn.qkv.weight', 'blocks.0.attn.qkv.bias', 'blocks.0.attn.proj.weight' "
        "and 1 more; the checkpoint is incomplete"
    )


def test_a_gap_between_blocks_is_a_missing_block(path: Path) -> None:
    flat = {name.replace("extractor.blocks.1.", "extractor.blocks.4."): tensor for name, tensor in weights().items()}
    assert "extractor lacks keys 'blocks.1." in refusal(saved(path, nest(flat)))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("extractor.mask_token", ": extractor has unexpected key 'mask_token'; this is another architecture"),
        ("extractor.blocks.0.attn.q_norm.weight", ": extractor has unexpected key 'blocks.0.attn.q_norm.weight'; this"),
        ("extractor.blocks.1000.ls1.gamma", ": extractor has unexpected key 'blocks.1000.ls1.gamma'; this is"),
        ("extractor.head.weight", ": extractor has unexpected key 'head.weight'; this is another architecture"),
        ("selector.backbone.head.weight", ": selector has unexpected key 'head.weight'; this is another architecture"),
        ("selector.head.w3.weight", ": selector has unexpected key 'head.w3.weight'; this is another architecture"),
        ("optimizer.state", ": unexpected key 'optimizer.state'; this is not a plain LookWhere checkpoint"),
        ("selector.teacher.x", ": unexpected key 'selector.teacher.x'; this is not a plain LookWhere checkpoint"),
        ("head.weight", ": unexpected key 'head.weight'; this is not a plain LookWhere checkpoint"),
    ],
)
def test_an_unexpected_key_is_named(path: Path, key: str, words: str) -> None:
    assert words in refusal(saved(path, weights() | {key: torch.zeros(64)}))


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("extractor.blocks.1.attn.qkv.weight", (64, 64), "extractor key 'blocks.1.attn.qkv.weight' has shape [64, 64], "
         "expected [192, 64]"),
        ("extractor.blocks.1.mlp.fc1.bias", (255,), "extractor key 'blocks.1.mlp.fc1.bias' has shape [255], expected [256]"),
        ("extractor.norm.weight", (1, 64), "extractor key 'norm.weight' has shape [1, 64], expected [64]"),
        ("extractor.norm.weight", (), "extractor key 'norm.weight' has shape [], expected [64]"),
        ("extractor.cls_token", (64,), "extractor key 'cls_token' has shape [64], expected 3 axes"),
        ("extractor.cls_token", (1, 1, 0), "extractor key 'cls_token' has shape [1, 1, 0], expected 3 axes"),
        ("extractor.cls_token", (1, 1, 100), "width 100 is no multiple of 64, the head size of these models"),
        ("extractor.cls_token", (1, 2, 64), "extractor key 'cls_token' has shape [1, 2, 64], expected [1, 1, 64]"),
        ("extractor.patch_embed.proj.weight", (64, 3, 14, 7), "expected [64, 3, 7, 7]"),
        ("extractor.patch_embed.proj.weight", (64, 1, 14, 14), "expected [64, 3, 14, 14]"),
        ("selector.backbone.cls_token", (1, 1, 128), "selector key 'cls_token' has shape [1, 1, 128], expected [1, 1, 64]"),
        ("selector.backbone.reg_token", (1, 3, 64), "selector key 'reg_token' has shape [1, 3, 64], expected [1, 4, 64]"),
        ("selector.head.w2.weight", (15, 256), "selector key 'head.w2.weight' has shape [15, 256], expected [9, 256]"),
    ],
)  # fmt: skip
def test_a_misshapen_key_is_named_with_both_shapes(path: Path, key: str, shape: tuple[int, ...], words: str) -> None:
    assert words in refusal(saved(path, nest(weights() | {key: torch.zeros(shape)})))


@pytest.mark.parametrize(
    ("key", "part", "rows"), [("extractor.pos_embed", "extractor", 9), ("selector.backbone.pos_embed", "selector", 121)]
)
def test_a_position_table_with_a_row_for_cls_is_explained(path: Path, key: str, part: str, rows: int) -> None:
    message = refusal(saved(path, nest(weights() | {key: torch.zeros(1, rows + 1, 64)})))
    assert message == (
        f": {part} key 'pos_embed' has {rows + 1} rows, which is no square grid "
        "(a row for cls too? LookWhere files have none)"
    )


def test_a_position_table_that_is_no_square_is_refused(path: Path) -> None:
    message = refusal(saved(path, nest(weights() | {"extractor.pos_embed": torch.zeros(1, 12, 64)})))
    assert message == ": extractor key 'pos_embed' has 12 rows, which is no square grid"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("extractor.blocks.1.mlp.fc2.weight", "extractor key 'blocks.1.mlp.fc2.weight'"),
        ("selector.backbone.norm.bias", "selector key 'norm.bias'"),
        ("selector.head.w1.weight", "selector key 'head.w1.weight'"),
    ],
)
def test_a_weight_that_is_not_finite_is_named(path: Path, key: str, named: str, value: float) -> None:
    flat = weights()
    flat[key].flatten()[-1] = value
    assert refusal(saved(path, nest(flat))) == f": {named} holds NaN or infinity; the checkpoint is damaged"


def test_a_value_beyond_float32_is_refused(path: Path) -> None:
    flat = {name: tensor.double() for name, tensor in weights().items()}
    flat["extractor.norm.bias"][0] = 1e300
    assert "'norm.bias' holds NaN or infinity" in refusal(saved(path, nest(flat)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head.weight": (7, 32)}, ": extractor key 'head.weight' has shape [7, 32], expected [7, 64]"),
        ({"head.bias": (8,)}, ": extractor key 'head.bias' has shape [8], expected [7]"),
        ({"head.weight": (7,)}, ": extractor key 'head.weight' has shape [7], expected 2 axes"),
        ({"head.bias": None}, ": extractor lacks key 'head.bias'; the checkpoint is incomplete"),
        ({"head.weight": None}, ": extractor has unexpected key 'head.bias'; this is another architecture"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(path: Path, changes: dict[str, Any], words: str) -> None:
    flat = weights(sizes=CLASSES)
    for name, shape in changes.items():
        flat.pop(name) if shape is None else flat.update({name: torch.zeros(shape)})
    assert refusal(saved(path, flat)) == words


def test_a_head_that_is_not_finite_is_refused(path: Path) -> None:
    flat = weights(sizes=CLASSES)
    flat["head.weight"][0, 0] = float("nan")
    assert "extractor key 'head.weight' holds NaN" in refusal(saved(path, flat))


def test_a_file_that_cannot_be_opened_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"x")

    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(SaccadeError, match=r"^cannot read .*weights\.pt: Permission denied; copy it again$"):
        read_checkpoint(path)


# The task


@pytest.mark.parametrize("task", ["features", "classify", "segment"])
def test_a_head_serves_the_task_that_is_named(path: Path, task: str) -> None:
    assert resolve_task(read_checkpoint(saved(path, weights(sizes=CLASSES))), task) == task


def test_a_head_without_a_task_asks_which(path: Path) -> None:
    found = read_checkpoint(saved(path, weights(sizes=CLASSES)))
    with pytest.raises(SaccadeError, match=r"has a head of 7 classes, .* say --task classify or --task segment"):
        resolve_task(found, None)


@pytest.mark.parametrize("task", [None, "features"])
def test_without_a_head_the_task_is_features(path: Path, task: str | None) -> None:
    assert resolve_task(read_checkpoint(saved(path, nest(weights()))), task) == "features"


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_without_a_head_no_other_task_is_to_be_had(path: Path, task: str) -> None:
    with pytest.raises(SaccadeError, match=f"has no head, so --task {task} is not to be had; use --task features"):
        resolve_task(read_checkpoint(saved(path, nest(weights()))), task)


def test_nothing_but_tensors_is_ever_unpickled() -> None:
    source = "".join(path.read_text() for path in Path(weights_file.__file__).parent.glob("*.py"))
    assert source.count("torch.load(") == source.count("weights_only=True") == 1
    assert "pickle.load" not in source
