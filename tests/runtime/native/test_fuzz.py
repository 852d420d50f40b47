"""What the fuzz targets start from, and what the fuzzer has found, is replayed under AddressSanitizer."""
from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from builds import BUILDS

CORPUS = Path(__file__).parent / "corpus"
PROGRAMS = BUILDS / "asan" / "tests"
REFUSED = {
    "backbone_k", "backbone_with_k.json",
    "changed_conditions.json", "huge.json", "missing_field.json", "newer.json", "other_key.json", "other_tensors.json",
    "cut.npy", "double.npy", "fortran.npy", "header_beyond.npy", "magic_alone.npy",
    "largest", "long_stride", "no_images", "no_ratio", "overlapping_rows", "too_narrow", "two_ks",
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    not (PROGRAMS / "fuzz_bundle").exists(), reason="the fuzz targets are not built; `make lib-test` builds them"
)


def replayed(target: str, *files: Path) -> dict[str, str]:
    """Return how the library took each file, by its name; whatever the sanitizers say ends the program."""
    done = subprocess.run([PROGRAMS / f"fuzz_{target}", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    return {Path(path).name: taken for taken, path in lines}


@pytest.mark.parametrize("target", ["bundle", "image"])
def test_the_corpus_is_taken_as_it_should_be(target: str) -> None:
    files = sorted((CORPUS / target).iterdir())
    assert replayed(target, *files) == {
        file.name: "refused" if file.name in REFUSED else "accepted" for file in files
    }


def test_what_python_writes_is_accepted_whole_and_refused_when_cut(
    tmp_path: Path, built_bundle: Callable[[str], Path]
) -> None:
    bundle = built_bundle("segment")
    engine = next((bundle / "engines").glob("openvino-*"))
    inputs = {
        "manifest": b"m" + (bundle / "bundle.json").read_bytes(),
        "positions": b"n" + (bundle / "positions.npy").read_bytes(),
        "receipt": f"r{engine.name}\n".encode() + (engine / "receipt.json").read_bytes(),
    }
    for name, content in inputs.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"cut {name}").write_bytes(content.rstrip()[:-1])
    taken = replayed("bundle", *tmp_path.iterdir())
    assert taken == dict.fromkeys(inputs, "accepted") | {f"cut {name}": "refused" for name in inputs}
