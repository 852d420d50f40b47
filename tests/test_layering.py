"""Who may import whom, what an import costs, and the few rules that hold for every file."""
from __future__ import annotations

import ast
import configparser
import importlib.metadata
import json
import re
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import saccade

ROOT = Path(__file__).parents[1]
PARTS = ("export", "engines", "runtime", "validate")
# What each part may import of the others; the command line may import all, and nothing imports the command line.
MAY_IMPORT = {"export": set(), "engines": set(), "runtime": {"engines"}, "validate": {"export", "engines", "runtime"}}
# The modules that all parts stand on, and what each may import of the package.
FOUNDATIONS = {
    "_version": set(), "counted": set(), "errors": set(), "locks": {"errors"}, "atomic": {"errors", "locks"},
    "golden": {"errors", "atomic", "bundle", "contract"}, "backbone_golden": {"errors", "bundle", "contract", "golden"},
    "bundle": {"errors", "atomic", "contract", "onnx_file"}, "onnx_file": set(),
    "contract": {"errors", "bundle"},
}  # fmt: skip
ENGINES = {"openvino", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "pycuda"}
TOOLS = {"torch", "onnx", "onnxscript", "onnx_ir", "polygraphy", "sklearn"}
SOURCES = sorted([*(ROOT / "src/saccade").rglob("*.py"), *(path for part in PARTS for path in (ROOT / part).rglob("*.py"))])
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 400, 60


def run_python(code: str) -> list[str]:
    """Run code in a process of its own, which prints a JSON list of words at its end, and return it."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOADED = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


# ---- what an import brings


def test_importing_saccade_imports_no_engine_and_no_tool() -> None:
    assert not (ENGINES | TOOLS) & set(run_python(f"import saccade\n{LOADED}"))


BLOCKED = """
    import importlib, json, pkgutil, sys

    for name in BLOCKED:
        sys.modules[name] = None  # makes every import of it fail
    import saccade

    found = []
    for part in PARTS:
        package = importlib.import_module(f"saccade.{part}")
        for module in pkgutil.walk_packages(package.__path__, f"saccade.{part}."):
            importlib.import_module(module.name)
            found.append(module.name)
    print(json.dumps(found))
"""


@pytest.mark.parametrize("blocked", [TOOLS, ENGINES], ids=["tools", "engines"])
def test_runtime_and_engines_import_without_torch_onnx_and_any_engine(blocked: set[str]) -> None:
    head = f"BLOCKED, PARTS = {sorted(blocked)!r}, ('runtime', 'engines')\n"
    found = run_python(head + textwrap.dedent(BLOCKED))
    assert {"saccade.runtime.chain", "saccade.runtime.kernels", "saccade.engines.store"} <= set(found)


def test_the_check_on_a_gpu_needs_torch_and_no_tool_or_engine_beside_it() -> None:
    names = ("gpu_check", "gpu_kernels", "gpu_model", "gpu_timing", "gpu_report", "torch_engine", "parity")
    head = f"import sys\nfor name in {sorted((TOOLS | ENGINES) - {'torch'})!r}:\n    sys.modules[name] = None\n"
    modules = ", ".join(f"saccade.validate.{name}" for name in names)
    found = run_python(f"{head}import {modules}, saccade.export.golden_cases\n{LOADED}")
    assert "torch" in found


COMMANDS = {
    "help": (["--help"], 0),
    "help of a command": (["export", "--help"], 0),
    "version": (["--version"], 0),
    "no command": ([], 2),
    "unknown command": (["fly"], 2),
    "unknown option": (["run", "bundle", "image.png", "--speed", "5"], 2),
    "wrong choice": (["build", "bundle", "--engine", "tvm"], 2),
    "wrong size": (["run", "bundle", "image.png", "--size", "large"], 2),
    "missing argument": (["parity", "bundle"], 2),
    "no bundle": (["run", "no-such-bundle", "image.png"], 1),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_help_and_argument_errors_import_neither_torch_nor_an_engine(case: str) -> None:
    arguments, expected = COMMANDS[case]
    code = f"""
        import sys
        from saccade.cli.main import main
        try:
            code = main({arguments!r})
        except SystemExit as error:
            code = error.code
        assert code == {expected}, code
        {LOADED}
    """
    assert not (ENGINES | TOOLS) & set(run_python(code))


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["fly"]], ids=" ".join)
def test_a_command_line_without_a_command_imports_no_part_and_no_package(arguments: list[str]) -> None:
    modules = set(run_python(f"""
        import contextlib, json, sys
        from saccade.__main__ import main
        sys.argv[1:] = {arguments!r}
        with contextlib.suppress(SystemExit):
            main()
        print(json.dumps(sorted(sys.modules)))
    """))
    parts = {f"saccade.{part}" for part in (*PARTS, "bundle")}
    assert not modules & (parts | {"numpy", "PIL", "msgspec", "tqdm"})
    commands = {name for name in modules if name.startswith("saccade.cli.")}
    assert commands == {"saccade.cli.main", "saccade.cli.console", "saccade.cli.interrupts"}


def test_only_the_command_evaluate_imports_the_evaluations() -> None:
    modules = "import json, sys; print(json.dumps([name for name in sys.modules if name.startswith('saccade.validate')]))"
    parse = "from saccade.cli.main import build_parser; build_parser().parse_args({!r}); "
    assert "saccade.validate.evaluations" not in run_python(parse.format(["run", "bundle", "image.png"]) + modules)
    assert "saccade.validate.evaluations" in run_python(parse.format(["evaluate", "knn", "bundle", "data"]) + modules)


def test_importing_saccade_imports_a_public_name_when_it_is_used() -> None:
    modules = "print(json.dumps([name for name in sys.modules if name.startswith('saccade.')]))"
    assert run_python(f"import json, sys, saccade\n{modules}") == []
    assert run_python(f"import json, sys, saccade\nsaccade.SaccadeError\n{modules}") == ["saccade.errors"]


def test_every_public_name_is_there() -> None:
    assert {*saccade.__all__} <= {*run_python("import json\nfrom saccade import *\nprint(json.dumps(dir()))")}
    assert {*saccade.__all__} <= {*dir(saccade)}
    assert all(getattr(saccade, name).__name__ == name for name in saccade.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="module 'saccade' has no attribute 'lod'"):
        saccade.lod  # type: ignore[attr-defined]  # noqa: B018


ENTRIES = {"module": ["-m", "saccade"], "console script": ["-c", "import sys; from ENTRY import main; sys.exit(main())"]}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_is_the_command(entry: str) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    script = config["options.entry_points"]["console_scripts"].partition("saccade = ")[2]
    assert script == "saccade.__main__:main"
    command = [sys.executable, *(word.replace("ENTRY", script.partition(":")[0]) for word in ENTRIES[entry]), "--version"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == f"saccade {saccade.__version__}\n"


# ---- who imports whom


def imports_of(path: Path) -> Iterator[str]:
    """Yield the full name of everything a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_used(path: Path) -> set[str]:
    """Return the modules and parts of the package that a file imports; `from saccade import name` is the package's own."""
    used = {name.split(".")[1] for name in imports_of(path) if name.startswith("saccade.")}
    assert "*" not in used, path
    return used


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_dependencies_run_one_way(part: str) -> None:
    allowed = {part} | MAY_IMPORT[part] | FOUNDATIONS.keys()
    for path in (ROOT / part).rglob("*.py"):
        assert not modules_used(path) - allowed, f"{path.relative_to(ROOT)} imports {modules_used(path) - allowed}"


@pytest.mark.parametrize("name", FOUNDATIONS)
def test_what_all_parts_stand_on_stands_on_none_of_them(name: str) -> None:
    path = ROOT / "src/saccade" / f"{name}.py"
    assert modules_used(path) <= FOUNDATIONS[name]


def test_every_module_has_its_place_in_the_order() -> None:
    found = {path.stem for path in (ROOT / "src/saccade").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__init__", "__main__", "__pycache__"} == {*PARTS, "cli", *FOUNDATIONS}


@pytest.mark.parametrize("part", ["runtime", "engines"])
def test_runtime_and_engines_never_import_torch_or_onnx(part: str) -> None:
    for path in (ROOT / part).rglob("*.py"):
        found = {name.split(".")[0] for name in imports_of(path)} & TOOLS
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_nothing_imports_a_part_without_the_name_of_the_package() -> None:
    """`engines.store` would be a second copy of `saccade.engines.store`."""
    for path in [*SOURCES, *(ROOT / "tests").rglob("*.py"), ROOT / "setup.py"]:
        found = {name.split(".")[0] for name in imports_of(path)} & {*PARTS, "src", "tests", "conftest"}
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_reached_through_its_link(part: str) -> None:
    link = ROOT / "src/saccade" / part
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / part
    assert not (ROOT / "tests" / part / "__init__.py").exists()  # it would shadow the part


# ---- rules for every file


def test_a_clone_that_is_not_installed_has_its_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert runpy.run_path(str(ROOT / "src/saccade/_version.py"))["VERSION"] == saccade.__version__


def test_versions_agree() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == saccade.__version__


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_and_no_function_is_too_long(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{path}:{node.lineno}: {node.name}"


def test_no_file_holds_a_path_of_one_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone, so it is not known which files belong to it")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout.split(b"\0")
    homes = re.compile(rb"(?<![\w.~$])/(?:home|root|Users|work|tmp/\w+|mnt)/[\w.-]+")
    found = {}
    for name in filter(None, names):
        path = ROOT / name.decode()
        if path.is_file() and (places := homes.findall(path.read_bytes())):
            found[path.name] = places[:3]
    assert not found


def test_every_golden_file_of_a_plain_backbone_is_named_by_a_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    files = [path.stem for kind in ("neco", "pwself") for path in (ROOT / "tests/golden").glob(f"{kind}_*.npz")]
    assert files
    assert [name for name in files if name not in tests] == []
