"""golden.npz comes back as it was written, and anything else is refused in one line."""
from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saccade import golden
from saccade.bundle import Bundle, DataFile, read_bundle, sha256_of_file
from saccade.errors import SaccadeError
from saccade.golden import MAX_CASES, Case, ReferenceOutput, cases_of, read_cases, relative_difference, write_cases

FUZZ = settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
OUTPUTS = [member.name for member in fields(ReferenceOutput)]


def case(seed: int = 0, batch: int = 2, k: int = 4, width: int = 3) -> Case:
    random = np.random.default_rng(seed)

    def noise(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    output = ReferenceOutput(
        raw_score_map=noise(batch, 4, 4),
        score_map=noise(batch, 3, 2),
        prefix=noise(batch, 1, 8),
        indices=np.stack([random.permutation(6)[:k] for _ in range(batch)]).astype(np.int32),
        tokens=noise(batch, k, width),
        pooled=noise(batch, 0 if width == 3 else 8),
    )
    return Case(random.integers(0, 256, (batch, 42, 28, 3), np.uint8), output, {"tokens": 1e-7 * (1 + seed)})


def arrays_of(cases: list[Case], path: Path) -> dict[str, np.ndarray]:
    """What a file of these cases holds, by name."""
    write_cases(path, cases)
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "golden.npz"


def refusal(path: Path) -> str:
    with pytest.raises(SaccadeError) as caught:
        read_cases(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("; export the bundle again")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("count", [1, 2, MAX_CASES])
def test_cases_come_back_bit_for_bit_in_their_order(path: Path, count: int) -> None:
    written = [case(seed, batch=1 + seed % 3, k=1 + seed % 6, width=3 + seed % 2) for seed in range(count)]
    write_cases(path, written)
    read = read_cases(path)
    assert [found.floor for found in read] == [given.floor for given in written]
    for found, given_case in zip(read, written, strict=True):
        for name in ("images", *OUTPUTS):
            ours, theirs = (getattr(c if name == "images" else c.output, name) for c in (found, given_case))
            assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


@pytest.mark.parametrize("kind", ["dinov2", "classify", "segment"])
def test_the_golden_file_of_an_exported_bundle_has_a_single_image_and_a_batch_on_another_grid(
    small_bundle: Callable[[str], Path], kind: str
) -> None:
    bundle = read_bundle(small_bundle(kind))
    cases = read_cases(bundle.path / "golden.npz")
    assert [len(found.images) for found in cases] == [1, 3]
    assert cases[0].images.shape[1:3] == bundle.manifest.defaults.size
    grids = [found.output.score_map.shape[1:] for found in cases]
    assert len({grids[0], grids[1], grids[1][::-1]}) == 3
    assert all(0 < floor < 1e-5 for found in cases for floor in found.floor.values())


def test_writing_the_same_cases_twice_gives_the_same_arrays_without_a_pickle(path: Path) -> None:
    write_cases(path, [case()])
    first = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert all(archive.read(name).startswith(b"\x93NUMPY") for name in archive.namelist())
    write_cases(path, [case()])
    assert path.read_bytes() == first


@pytest.mark.parametrize("name", ["images", *OUTPUTS])
def test_a_missing_array_is_named(path: Path, name: str) -> None:
    arrays = arrays_of([case(0), case(1)], path)
    del arrays[f"1.{name}"]
    np.savez(path, **arrays)
    assert f"case 1 lacks '1.{name}'" in refusal(path)


def test_a_gap_in_the_numbering_is_refused(path: Path) -> None:
    arrays = arrays_of([case()], path)
    np.savez(path, **{name.replace("0.", "1.", 1): array for name, array in arrays.items()})
    assert "case 0 lacks '0.images'" in refusal(path)


@pytest.mark.parametrize("count", [0, MAX_CASES + 1])
def test_a_number_of_cases_that_is_not_written_is_refused(path: Path, count: int) -> None:
    np.savez(path, **{f"{index}.images": np.zeros(1) for index in range(count)})
    assert f": {count} cases; " in refusal(path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("images", np.zeros((2, 42, 28, 3), np.float32)),
        ("images", np.zeros((2, 42, 28), np.uint8)),
        ("images", np.uint8(0)),
        ("raw_score_map", np.zeros((2, 4, 4), np.float64)),
        ("score_map", np.zeros((2, 6), np.float32)),
        ("prefix", np.zeros((2, 1, 8), np.float16)),
        ("indices", np.zeros((2, 4), np.int64)),
        ("tokens", np.float32(0)),
        ("tokens", np.zeros((2, 4, 3), "c8")),
        ("pooled", np.array([["a"], ["b"]])),
        ("pooled", np.zeros((2, 8), [("x", "<f4")])),
        ("floor.tokens", np.zeros(2)),
        ("floor.tokens", np.array("text")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype}{list(value.shape)}",
)
def test_an_array_of_another_dtype_or_rank_is_refused(path: Path, name: str, array: np.ndarray) -> None:
    np.savez(path, **arrays_of([case()], path) | {f"0.{name}": array})
    assert "case 0 has an array of the wrong kind" in refusal(path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("images", np.zeros((3, 42, 28, 3), np.uint8)),
        ("images", np.zeros((2, 42, 28, 4), np.uint8)),
        ("prefix", np.zeros((1, 1, 8), np.float32)),
        ("indices", np.zeros((2, 3), np.int32)),
        ("indices", np.full((2, 4), 6, np.int32)),
        ("indices", np.full((2, 4), -1, np.int32)),
        ("tokens", np.zeros((2, 5, 3), np.float32)),
        ("score_map", np.zeros((2, 0, 0), np.float32)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(list(value.shape)),
)
def test_arrays_that_contradict_each_other_are_refused(path: Path, name: str, array: np.ndarray) -> None:
    np.savez(path, **arrays_of([case()], path) | {f"0.{name}": array})
    assert "case 0 has arrays that do not belong together" in refusal(path)


def test_a_case_without_images_is_refused(path: Path) -> None:
    arrays = {name: array[:0] if array.ndim else array for name, array in arrays_of([case()], path).items()}
    np.savez(path, **arrays)
    assert "do not belong together" in refusal(path)


class Touch:
    """Unpickling one of these creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_pickled_arrays_are_refused_and_do_not_run(path: Path, tmp_path: Path) -> None:
    payload = np.array([Touch(tmp_path / "ran")], dtype=object)
    np.savez(path, **arrays_of([case()], path) | {"0.tokens": payload})
    assert "allow_pickle=False" in refusal(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("member", ["0.tokens.npy", "0.tokens"])
def test_a_member_that_is_a_bare_pickle_is_refused_and_does_not_run(path: Path, tmp_path: Path, member: str) -> None:
    arrays = arrays_of([case()], path)
    del arrays["0.tokens"]
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, pickle.dumps(Touch(tmp_path / "ran")))
    refusal(path)
    assert not (tmp_path / "ran").exists()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for index in range(5):
            with archive.open(f"{index}.npy", "w") as member:
                for _ in range(8):
                    member.write(bytes(1 << 20))
    monkeypatch.setattr(golden, "MAX_UNPACKED_BYTES", (40 << 20) - 1)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    assert path.stat().st_size < 1 << 20
    assert "unpacks to more than 39 MiB" in refusal(path)


def test_the_bound_on_the_unpacked_size_is_half_a_gigabyte_over_all_arrays() -> None:
    assert golden.MAX_UNPACKED_BYTES == 512 << 20


def test_a_size_that_the_directory_understates_is_not_believed(path: Path) -> None:
    np.savez_compressed(path, **arrays_of([case()], path) | {"0.large": np.zeros(10_000)})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"0.large.npy"))  # its line in the central directory
    struct.pack_into("<I", data, entry + 24, 100)
    path.write_bytes(data)
    refusal(path)


def test_an_array_that_claims_more_than_the_memory_is_refused(path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 3), np.float32))
    claim = buffer.getvalue().replace(b"(3, 3), }          ", b"(3, 1099511627776)}")
    assert b"1099511627776" in claim
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.images.npy", claim)
    assert "Unable to allocate" in refusal(path)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"some text", id="text"),
        pytest.param(b"PK\x03\x04" + bytes(200), id="zip in name only"),
        pytest.param(b"\x93NUMPY\x01\x00", id="npy"),
        pytest.param(pickle.dumps({"0.images": 1}), id="pickle"),
    ],
)
def test_a_file_that_is_no_zip_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert "not a golden file" in refusal(path)


def test_an_absent_file_is_refused(path: Path) -> None:
    assert "No such file" in refusal(path)


def test_a_folder_is_refused(path: Path) -> None:
    path.mkdir()
    assert "Is a directory" in refusal(path)


def test_every_truncation_is_refused(path: Path) -> None:
    write_cases(path, [case()])
    size = path.stat().st_size
    for length in range(size - 1, 0, -size // 40):
        os.truncate(path, length)
        refusal(path)


def encrypted(data: bytearray) -> None:
    for signature, flag_offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flag_offset] |= 1


def unknown_compression(data: bytearray) -> None:
    for signature, method_offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(signature) + method_offset] = 77


def broken_stream(data: bytearray) -> None:
    start = data.index(b"0.images.npy") + len("0.images.npy") + 24
    data[start : start + 12] = b"\xff" * 12


@pytest.mark.parametrize("damage", [encrypted, unknown_compression, broken_stream])
def test_a_zip_that_cannot_be_unpacked_is_refused(path: Path, damage: Callable[[bytearray], None]) -> None:
    write_cases(path, [case()])
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    assert "not a golden file" in refusal(path)


@pytest.mark.filterwarnings("ignore")  # NumPy parses a damaged header as Python, which warns of odd escapes
@FUZZ
@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_bytes_changed_reads_or_is_refused(path: Path, edits: list[tuple[int, int]]) -> None:
    np.savez(path, **arrays_of([case()], path))  # not compressed, so that changes reach the arrays' headers
    data = bytearray(path.read_bytes())
    for place, value in edits:
        data[place % len(data)] = value
    path.write_bytes(data)
    try:
        assert len(read_cases(path)) == 1
    except SaccadeError as error:
        assert "\n" not in str(error)


# ---- against the bundle it lies in


def holding(bundle: Path, path: Path, cases: list[Case]) -> Bundle:
    """Return a bundle like `bundle` whose golden file is `path`, with these cases in it."""
    write_cases(path, cases)
    entry = DataFile(path.name, sha256_of_file(path))
    return Bundle(path.parent, msgspec.structs.replace(read_bundle(bundle).manifest, golden=entry))


def misfit(bundle: Path, path: Path, case: Case) -> str:
    """Return what `cases_of` says of a second, wrong case: the part between the file and the remedy."""
    first = read_cases(bundle / "golden.npz")[0]
    with pytest.raises(SaccadeError) as caught:
        cases_of(holding(bundle, path, [first, case]))
    before, after = f"{path}: case 1: ", "; export the bundle again"
    message = str(caught.value)
    assert message.startswith(before)
    assert message.endswith(after)
    return message.removeprefix(before).removesuffix(after)


def with_output(case: Case, **arrays: np.ndarray) -> Case:
    return replace(case, output=replace(case.output, **arrays))


# kind -> prefix rows, width of the tokens, width of pooled; all are 128 wide and look with a map of 44 x 44
WIDTHS = {"dinov2": (5, 128, 128), "franca": (1, 128, 128), "classify": (5, 128, 10), "segment": (5, 7, 0)}


@pytest.mark.parametrize("kind", WIDTHS)
def test_the_golden_file_of_an_exported_bundle_fits_its_model(small_bundle: Callable[[str], Path], kind: str) -> None:
    found = cases_of(read_bundle(small_bundle(kind)))
    assert [case.output.prefix.shape[1:] for case in found] == 2 * [(WIDTHS[kind][0], 128)]


@settings(FUZZ, max_examples=150)
@given(data=st.data(), kind=st.sampled_from(sorted(WIDTHS)))
def test_exactly_the_shapes_that_the_model_gives_are_read(
    small_bundle: Callable[[str], Path], path: Path, kind: str, data: st.DataObject
) -> None:
    prefix, width, pooled = WIDTHS[kind]

    def near(right: int) -> int:
        return data.draw(st.sampled_from([right] * 12 + [right + 1, right + 14, max(0, right - 1)]))

    sides, grid, k = (near(42), near(70)), (near(3), near(5)), data.draw(st.integers(1, 6))
    shapes = {
        "raw_score_map": (near(44), near(44)), "score_map": grid, "prefix": (near(prefix), near(128)), "indices": (k,),
        "tokens": (k, near(width)), "pooled": (near(pooled),),
    }  # fmt: skip
    right = {
        "raw_score_map": (44, 44), "score_map": (sides[0] // 14, sides[1] // 14), "prefix": (prefix, 128),
        "indices": (k,), "tokens": (k, width), "pooled": (pooled,),
    }  # fmt: skip
    arrays = {name: np.ones((2, *shape), np.float32) for name, shape in shapes.items()}
    arrays["indices"] = np.stack([np.arange(k, dtype=np.int32)] * 2)
    case = Case(np.zeros((2, *sides, 3), np.uint8), ReferenceOutput(**arrays))
    bundle = holding(small_bundle(kind), path, [case])
    if shapes == right and sides[0] % 14 == sides[1] % 14 == 0:
        assert len(cases_of(bundle)) == 1
        return
    with pytest.raises(SaccadeError, match=r"golden\.npz: case 0.*; export the bundle again$"):
        cases_of(bundle)


@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [
        ("raw_score_map", (3, 44, 43), "[3, 44, 44]"),
        ("score_map", (3, 5, 3), "[3, 3, 5]"),
        ("prefix", (3, 4, 128), "[3, 5, 128]"),
        ("tokens", (3, 3, 127), "[3, 3, 128]"),
        ("pooled", (3, 0), "[3, 128]"),
    ],
)
def test_an_output_of_another_models_shape_is_named_with_both_shapes(
    small_bundle: Callable[[str], Path], path: Path, name: str, wrong: tuple[int, ...], expected: str
) -> None:
    bundle = small_bundle("dinov2")
    case = read_cases(bundle / "golden.npz")[1]
    case = with_output(case, indices=case.output.indices[:, :3], tokens=case.output.tokens[:, :3])
    spoilt = with_output(case, **{name: np.zeros(wrong, np.float32)})
    assert misfit(bundle, path, spoilt) == f"{name} must be {expected}, found {list(wrong)}"


def test_images_that_the_patch_does_not_divide_are_named(small_bundle: Callable[[str], Path], path: Path) -> None:
    bundle = small_bundle("dinov2")
    case = read_cases(bundle / "golden.npz")[1]
    message = misfit(bundle, path, replace(case, images=case.images[:, :, :-1]))
    assert message == "images are 69 x 42 px, which the 14 px patch does not divide"


@pytest.mark.parametrize("name", sorted(set(OUTPUTS) - {"indices"}))
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_an_output_with_a_value_that_is_no_number_is_named(
    small_bundle: Callable[[str], Path], path: Path, name: str, value: float
) -> None:
    bundle = small_bundle("dinov2")
    case = read_cases(bundle / "golden.npz")[1]
    getattr(case.output, name)[..., -1] = value
    assert misfit(bundle, path, case) == f"{name} holds NaN or infinity"


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-9])
def test_a_floor_that_is_no_distance_is_named(small_bundle: Callable[[str], Path], path: Path, value: float) -> None:
    bundle = small_bundle("dinov2")
    case = replace(read_cases(bundle / "golden.npz")[1], floor={"tokens": 1e-7, "pooled": value})
    assert misfit(bundle, path, case) == f"floor.pooled is {value}, not a finite number from 0 on"


def test_a_cell_that_is_kept_twice_is_no_selection(small_bundle: Callable[[str], Path], path: Path) -> None:
    bundle = small_bundle("dinov2")
    case = read_cases(bundle / "golden.npz")[1]
    case.output.indices[2, -1] = case.output.indices[2, 0]
    assert misfit(bundle, path, case) == "indices name a cell twice"


def test_a_bundle_without_golden_outputs_has_no_cases(small_bundle: Callable[[str], Path]) -> None:
    bundle = read_bundle(small_bundle("dinov2"))
    bare = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, golden=None))
    with pytest.raises(SaccadeError, match=r"has no golden\.npz to verify against; export the bundle again"):
        cases_of(bare)


# ---- distances


def test_the_relative_difference_from_zero_is_none_or_infinite_and_never_hides_a_nan() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert relative_difference(zeros, zeros) == 0
    assert relative_difference(zeros + np.float32([[0], [1e-30]]), zeros) == np.inf
    assert np.isnan(relative_difference(zeros + np.float32([[0], [np.nan]]), zeros))


def test_the_relative_difference_is_that_of_the_worst_image() -> None:
    truth = np.array([[3.0, 4.0], [6.0, 8.0]], np.float32)
    value = truth + np.array([[0.0, 0.5], [1.0, 0.0]], np.float32)
    assert relative_difference(value, truth) == pytest.approx(0.1)  # 0.5/5 and 1/10


def test_the_relative_difference_is_taken_in_float64() -> None:
    truth = np.full((1, 1000), 1e30, np.float32)
    assert relative_difference(np.nextafter(truth, np.float32(np.inf)), truth) == pytest.approx(6e-8, rel=0.3)


def test_writing_needs_the_folder(tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"golden\.npz: its folder does not exist; create it first"):
        write_cases(tmp_path / "none" / "golden.npz", [case()])
