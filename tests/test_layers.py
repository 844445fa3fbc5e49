"""The house rules: which part may import which, how long a file may be, what must not be written down."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "convoscope"
FILES = sorted(PACKAGE.rglob("*.py"))

FAMILIES = {
    "attribution",
    "units",
    "synthesis",
    "training_data",
    "surrogates",
    "generalization",
    "interpretable",
    "evaluation",
}
VOCABULARY = {
    "citation", "network", "loading", "method", "targets", "files", "interrupts", "results", "rules", "images", "data",
    "engine",
}  # fmt: skip
FACES = {"cli", "web"}
# What a part may import beside itself. `report` turns results into a page, for the faces and for notebooks;
# `testing` and the package itself offer everything below the faces.
MAY_IMPORT = {
    "show": set(),
    "core": set(),
    **{part: VOCABULARY | {"core", "show"} for part in VOCABULARY},
    **{family: VOCABULARY | {"core", "show"} for family in FAMILIES},
    "files": {"core"},
    "interrupts": set(),
    "results": VOCABULARY | {"core", "show", "report"},
    "report": VOCABULARY | {"core", "show"},
    "testing": VOCABULARY | FAMILIES | {"core"},
    "__init__": VOCABULARY | FAMILIES | {"core", "report", "testing"},
    **{face: VOCABULARY | FAMILIES | {"core", "show", "report", "__init__"} for face in FACES},
    "__main__": {"cli"},
}
# Arrows that point up all the same, each with its reason.
EXCEPTIONS = {
    ("method.py", "convoscope.attribution"): "methods() fills the registry when it is first asked",
}
REPORT_IS_FOR = FACES | {"results", "__init__"}
CORE_DEPENDENCIES = {"torch", "jaxtyping", "numpy"} | set(sys.stdlib_module_names)


def part_of(module: str) -> str:
    """'convoscope.core.spec' -> 'core'; the package itself -> '__init__'."""
    words = module.split(".")
    return words[1] if len(words) > 1 else "__init__"


@cache
def parsed(path: Path) -> list[ast.AST]:
    """The imports and functions of a file."""
    kinds = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)]


@cache
def imports(path: Path) -> set[str]:
    """The absolute names of all modules a file imports, also inside functions and under TYPE_CHECKING."""
    here = ["convoscope", *path.relative_to(PACKAGE).with_suffix("").parts]
    package = here[:-1]
    found: set[str] = set()
    for node in parsed(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            if module == "convoscope":
                found |= {f"convoscope.{alias.name}" for alias in node.names}
            else:
                found.add(module)
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 10


def test_the_reader_of_imports_sees_every_kind() -> None:
    assert {"convoscope.core.errors", "torch"} <= imports(PACKAGE / "core" / "spec.py")
    assert "convoscope.cli" in imports(PACKAGE / "__main__.py")


@pytest.mark.parametrize("path", FILES, ids=name)
def test_arrows_point_down(path: Path) -> None:
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert part in MAY_IMPORT, f"{name(path)} belongs to no layer of the design"
    for module in imports(path):
        if module.split(".")[0] != "convoscope" or (path.relative_to(PACKAGE).as_posix(), module) in EXCEPTIONS:
            continue
        other = part_of(module)
        # A face and the package itself also import names (`from convoscope import load`), which are no parts.
        fine = other == part or other in MAY_IMPORT[part] or (other not in MAY_IMPORT and part in {*FACES, "__init__"})
        assert fine, f"{name(path)} imports {module}: {part} may not import {other}"
        assert other != "report" or part in REPORT_IS_FOR, f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=name)
def test_core_depends_on_torch_alone(path: Path) -> None:
    foreign = {m.split(".")[0] for m in imports(path)} - CORE_DEPENDENCIES - {"convoscope"}
    assert not foreign


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=name)
def test_functions_are_short(path: Path) -> None:
    for node in parsed(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = node.body[0].lineno  # the signature, with its options and their help, does not count
            assert (node.end_lineno or start) - start <= 40, f"{name(path)}: {node.name} is too long"


def test_core_is_small() -> None:
    lines = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in (PACKAGE / "core").rglob("*.py"))
    assert lines < 4100  # a thousand are receptive fields, exact through any graph; eight hundred replay local changes


def test_importing_the_package_and_the_command_line_imports_no_torch() -> None:
    code = "import sys, convoscope, convoscope.cli.app; print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_file_names_a_machine() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    places = re.compile(r"(?<![\w.])/(work|home|root|opt|Users)/\w")
    for file in listed.stdout.split():
        path = ROOT / file
        if path.suffix in {".py", ".md", ".toml", ".txt", ".cff", ".html", ".css", ".js"} or path.name == "run":
            found = places.search(path.read_text(encoding="utf-8"))
            assert found is None, file
