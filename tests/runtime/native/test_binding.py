"""The binding of these tests is the header: layouts, defaults and numbers as a C compiler has them, and the version."""
from __future__ import annotations

import configparser
import ctypes
import re
import subprocess
from pathlib import Path

import binding
import pytest
from binding import STRUCTS, Library, Status

from saccade._version import VERSION

ROOT = Path(__file__).parents[3]
HEADER = ROOT / "runtime" / "native" / "include" / "saccade.h"


def c_prints(folder: Path, lines: list[str]) -> list[str]:
    """Compile the statements with the header, as C99, and return what they print, line by line."""
    source = folder / "probe.c"
    source.write_text('#include <stdio.h>\n#include "saccade.h"\nint main(void) {\n' + "\n".join(lines) + "\nreturn 0; }\n")
    compiler = ["cc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{HEADER.parent}"]
    subprocess.run([*compiler, str(source), "-o", str(folder / "probe")], check=True)
    return subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_lies_in_memory_as_in_c(tmp_path: Path, name: str) -> None:
    mirror = STRUCTS[name]
    fields = [field for field, *_ in mirror._fields_]
    lines = [f'printf("%zu\\n", sizeof({name}));']
    lines += [f'printf("%zu %zu\\n", offsetof({name}, {each}), sizeof((({name} *)0)->{each}));' for each in fields]
    found = [tuple(map(int, line.split())) for line in c_prints(tmp_path, lines)]
    places = [getattr(mirror, each) for each in fields]
    assert found == [(ctypes.sizeof(mirror),), *((place.offset, place.size) for place in places)]


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_begins_as_its_init_macro_says(tmp_path: Path, name: str) -> None:
    macro = f"{name.upper()}_INIT"
    lines = [f"static const {name} initial = {macro};", "for (size_t i = 0; i < sizeof initial; ++i)"]
    found = c_prints(tmp_path, [*lines, 'printf("%02x", ((const unsigned char *)&initial)[i]);'])
    assert found == [bytes(STRUCTS[name]()).hex()]


def test_the_header_has_no_struct_that_is_not_mirrored() -> None:
    assert set(re.findall(r"^} (saccade_\w+);", HEADER.read_text(), re.MULTILINE)) == set(STRUCTS)


def test_numbers_are_the_headers(tmp_path: Path) -> None:
    ours = {f"SACCADE_{each.name}": int(each) for each in Status}
    ours |= {f"SACCADE_{name.upper()}": number for number, name in enumerate(binding.PRECISIONS)}
    ours |= {f"SACCADE_FIT_{name.upper()}": number for number, name in enumerate(binding.FITS)}
    ours |= {"SACCADE_RGB": binding.RGB, "SACCADE_BGR": binding.BGR}
    ours |= {"SACCADE_LOG_INFO": binding.INFO, "SACCADE_LOG_WARNING": binding.WARNING}
    ours |= {f"SACCADE_TASK_{name}": getattr(binding, name) for name in ("FEATURES", "CLASSIFY", "SEGMENT")}
    found = c_prints(tmp_path, [f'printf("%d\\n", {name});' for name in ours])
    assert dict(zip(ours, map(int, found), strict=True)) == ours


def test_header_library_setup_and_package_have_one_version(library: Library, tmp_path: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    parts = ("MAJOR", "MINOR", "PATCH")
    found = c_prints(tmp_path, [f'printf("%d\\n", SACCADE_VERSION_{part});' for part in parts])
    assert ".".join(found) == setup["metadata"]["version"] == VERSION
    major, minor, patch = map(int, found)
    assert library.version() == major * 10000 + minor * 100 + patch
