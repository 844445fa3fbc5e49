"""Every name that a file takes from this package is there: also in functions that no test calls."""

import ast
from functools import cache
from pathlib import Path

import pytest

import convoscope

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "convoscope"
FILES = sorted(path for folder in ("src", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def place(module: str) -> Path | None:
    """The file of a module of ours."""
    base = PACKAGE.parent.joinpath(*module.split("."))
    found = (base / "__init__.py", base.with_suffix(".py"))
    return next((path for path in found if path.exists()), None)


@cache
def known(module: str) -> frozenset[str]:
    """Everything that the module's file binds outside functions and classes, and the modules in its folder."""
    path = place(module)
    assert path is not None
    names = set(convoscope.__all__) | {"testing"} if module == "convoscope" else set()
    if path.name == "__init__.py":
        names |= {p.stem for p in path.parent.glob("*.py")} | {p.parent.name for p in path.parent.glob("*/__init__.py")}
    todo: list[ast.AST] = [parsed(path)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue  # what is bound inside is not the module's
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        todo += ast.iter_child_nodes(node) if not isinstance(node, ast.Call) else ()
    return frozenset(names | {"__file__", "__doc__", "__name__", "__version__"})


def missing(tree: ast.AST) -> list[str]:
    """What is imported from modules of ours, or taken from them by a dot, and is not there."""
    found, modules = [], dict[str, str]()
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom | ast.Attribute | ast.Name | ast.arg)]
    for node in nodes:
        if isinstance(node, ast.Import):
            for name in (alias.name for alias in node.names if alias.name.partition(".")[0] == "convoscope"):
                found += [name] if place(name) is None else []
            modules |= {a.asname: a.name for a in node.names if a.asname and a.name.partition(".")[0] == "convoscope"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "convoscope":
            if place(node.module or "") is None:
                found.append(str(node.module))
                continue
            for alias in node.names:
                if alias.name not in known(str(node.module)):
                    found.append(f"{node.module}.{alias.name}")
                elif place(f"{node.module}.{alias.name}"):
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    stored |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules.keys() - stored:
            module = modules[node.value.id]
            found += [] if node.attr in known(module) else [f"{module}.{node.attr}"]
    return found


def test_every_name_taken_from_a_module_of_ours_is_there() -> None:
    lost = {str(path.relative_to(ROOT)): missing(parsed(path)) for path in FILES}
    assert not {path: names for path, names in lost.items() if names}


@pytest.mark.parametrize(
    "text",
    [
        "import convoscope.cor",
        "import convoscope as cs\ncs.explian",
        "from convoscope.core.spec import Spek",
        "from convoscope.units import orientation\norientation.x",
        "def f():\n    from convoscope.nothing import at_all",
    ],
)
def test_what_is_not_there_is_found(text: str) -> None:
    assert missing(ast.parse(text))
