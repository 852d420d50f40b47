"""What an embedder meets first: the installed library, its header, the README's C and the projects in examples/embed."""
from __future__ import annotations

import configparser
import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builds import BUILDS, ROOT
from PIL import Image

import saccade

EXAMPLES = ROOT / "runtime" / "native" / "examples"
HEADER = ROOT / "runtime" / "native" / "include" / "saccade.h"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
PHOTO = ROOT / "examples" / "china.jpg"

pytestmark = pytest.mark.skipif(
    not (ROOT / "build" / "lib" / "libsaccade.so").exists(), reason="the C library is not built; `make lib` builds it"
)


def output_of(*command: str | Path, **environment: str) -> str:
    """Return what a command prints; a failed one shows all that it said."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the prefix of an installed library, chosen when it is installed and not when it is configured."""
    prefix = tmp_path_factory.mktemp("prefix")
    output_of("cmake", "--install", BUILDS / "release", "--prefix", prefix)
    return prefix


def pkg_config(prefix: Path, *options: str) -> list[str]:
    return output_of("pkg-config", *options, "saccade", PKG_CONFIG_PATH=str(prefix / "lib" / "pkgconfig")).split()


def header_version() -> str:
    parts = re.findall(r"^#define SACCADE_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", HEADER.read_text(), re.MULTILINE)
    assert len(parts) == 3
    return ".".join(parts)


# ---- the installed files ----


def test_install_lays_out_what_linker_and_loader_look_for(installed: Path) -> None:
    version = header_version()
    major = version.split(".")[0]
    library = installed / "lib" / "libsaccade.so"
    assert library.readlink() == Path(f"libsaccade.so.{major}")
    assert library.with_name(f"libsaccade.so.{major}").readlink() == Path(f"libsaccade.so.{version}")
    assert (installed / "include" / "saccade.h").read_bytes() == HEADER.read_bytes()
    assert (installed / "lib" / "cmake" / "saccade" / "saccadeConfig.cmake").exists()


def test_every_version_is_the_same(installed: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    number = ctypes.CDLL(str(installed / "lib" / "libsaccade.so")).saccade_version()
    library = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    (package,) = pkg_config(installed, "--modversion")
    cmake = (installed / "lib" / "cmake" / "saccade" / "saccadeConfigVersion.cmake").read_text()
    assert {header_version(), setup["metadata"]["version"], library, package} == {saccade.__version__}
    assert f'set(PACKAGE_VERSION "{saccade.__version__}")' in cmake


def test_the_library_shows_only_its_own_functions(installed: Path) -> None:
    symbols = output_of("nm", "-D", "--defined-only", installed / "lib" / "libsaccade.so").split("\n")[:-1]
    names = {line.split()[-1] for line in symbols}
    declared = set(re.findall(r"^SACCADE_API [\w *]*?(saccade_\w+)\(", HEADER.read_text(), re.MULTILINE))
    assert names == declared


def test_the_library_needs_no_engine_and_carries_no_search_path(installed: Path) -> None:
    dynamic = output_of("readelf", "-d", installed / "lib" / "libsaccade.so")
    needed = {name.split(".so")[0] for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)}
    assert {"libcrypto", "libc"} <= needed <= {"libcrypto", "libstdc++", "libm", "libgcc_s", "libc", "ld-linux-x86-64"}
    assert re.findall(r"\(SONAME\).*\[(.*)\]", dynamic) == [f"libsaccade.so.{header_version().split('.')[0]}"]
    assert not re.findall(r"\((?:RPATH|RUNPATH)\)", dynamic)


def test_no_installed_file_names_a_folder_of_the_machine_that_built_it(installed: Path) -> None:
    for path in installed.rglob("*"):
        if path.is_file():
            found = re.findall(rb"/(?:usr/(?:local/)?(?:include|lib)|home|root|tmp|opt|build)/[\w./-]+", path.read_bytes())
            assert (path.name, found) == (path.name, [])
            assert str(ROOT).encode() not in path.read_bytes()


# ---- the header ----


@pytest.mark.parametrize(
    ("compiler", "language", "standard"),
    [(compiler, *language) for compiler in ("gcc", "clang") for language in (("c", "c99"), ("c", "c11"), ("c++", "c++17"))],
)
def test_the_header_compiles_alone_without_a_warning(tmp_path: Path, compiler: str, language: str, standard: str) -> None:
    found = shutil.which(compiler) or shutil.which(f"{compiler}-14")
    if found is None:
        pytest.skip(f"{compiler} is not installed")
    source = tmp_path / "alone"
    source.write_text('#include "saccade.h"\n')
    output_of(found, "-x", language, f"-std={standard}", *STRICT, f"-I{HEADER.parent}", "-fsyntax-only", source)


def test_the_example_in_the_header_compiles_as_it_stands(tmp_path: Path, installed: Path) -> None:
    comment = HEADER.read_text().split("*/")[0]
    example = re.findall(r"^ \*     (.*)$", comment, re.MULTILINE)
    assert 15 <= len(example) <= 30
    source = tmp_path / "example.c"
    includes = "".join(f"#include <{name}>\n" for name in ("stdio.h", "stdlib.h", "saccade.h"))
    source.write_text(f"{includes}void example(const uint8_t* pixels) {{\n" + "\n".join(example) + "\n}\n")
    output_of("cc", "-std=c99", *STRICT, *pkg_config(installed, "--cflags"), "-c", source, "-o", tmp_path / "example.o")


# ---- projects that use it ----


def kept_of_disc(bundle: Path) -> list[str]:
    """Return, as embed/main.c prints it, what Python's chain keeps of the picture that it paints."""
    rows, columns = np.mgrid[:240, :320]
    disc = np.where((rows - 80) ** 2 + (columns - 200) ** 2 < 50**2, 220, 30).astype(np.uint8)
    with saccade.load(bundle) as pipe:
        out = pipe(np.repeat(disc[:, :, None], 3, axis=2))
    columns = out.score_map.shape[2]
    return [f"row {index // columns}, column {index % columns}" for index in out.indices[0]]


def test_a_project_finds_the_library_by_cmake(
    tmp_path: Path, installed: Path, built_bundle: Callable[[str], Path], engine_library: Path
) -> None:
    project = shutil.copytree(EXAMPLES / "embed", tmp_path / "embed")
    output_of("cmake", "-S", project, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    output_of("cmake", "--build", tmp_path / "build")
    bundle = built_bundle("dinov2")
    printed = output_of(tmp_path / "build" / "embed", bundle, engine_library).splitlines()
    assert printed[0] == "128 channels, patches of 14 px, 126 x 126 px by default"
    assert printed[1:] == kept_of_disc(bundle)


def test_a_program_finds_the_library_by_pkg_config(
    tmp_path: Path, installed: Path, built_bundle: Callable[[str], Path], engine_library: Path
) -> None:
    sources = [EXAMPLES / "classify.c", EXAMPLES / "ppm.c"]
    program = tmp_path / "classify"
    output_of("cc", "-std=c99", *STRICT, *sources, *pkg_config(installed, "--cflags", "--libs"), "-o", program)
    bundle = built_bundle("classify")
    Image.open(PHOTO).save(tmp_path / "photo.ppm")
    arguments = (bundle, tmp_path / "photo.ppm", "fp32", engine_library)
    printed = output_of(program, *arguments, LD_LIBRARY_PATH=str(installed / "lib"))
    with saccade.load(bundle) as pipe:
        logits = pipe(PHOTO).logits[0]
    best = np.argsort(-logits)[:5]
    assert printed.splitlines()[1:] == [f"{i}. class {best[i - 1]}, logit {logits[best[i - 1]]:.4f}" for i in range(1, 6)]


def test_the_c_of_the_readme_runs_as_written(
    tmp_path: Path, installed: Path, built_bundle: Callable[[str], Path], engine_library: Path
) -> None:
    (code,) = re.findall(r"^```c\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(code.splitlines()) <= 25
    (tmp_path / "app.c").write_text(code)
    flags = pkg_config(installed, "--cflags", "--libs")
    output_of("cc", "-std=c99", *STRICT, tmp_path / "app.c", *flags, "-o", tmp_path / "app")
    bundle = built_bundle("dinov2")
    (tmp_path / "lookwhere").symlink_to(bundle)
    search = f"{installed}/lib:{engine_library.parent}"
    printed = output_of("env", "-C", tmp_path, f"LD_LIBRARY_PATH={search}", "./app")
    with saccade.load(bundle) as pipe:
        out = pipe(np.zeros((480, 640, 3), np.uint8))
    assert printed == f"{out.indices.shape[1]} patches kept, cls[0] = {out.cls[0, 0]:.6f}\n"
