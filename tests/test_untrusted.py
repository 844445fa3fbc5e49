"""No line of the package runs what a file says: the calls that could are nowhere, but for a few named with their reason."""

import ast
from pathlib import Path

import pytest

from convoscope.core.errors import UsageError
from convoscope.engine import plan
from convoscope.units.book_files import LayerEntry, stem_of

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "convoscope"
FILES = sorted(PACKAGE.rglob("*.py"))

NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "marshal.loads", "shelve.open", "joblib.load", "yaml.load", "yaml.unsafe_load", "dill.load", "cloudpickle.load",
    "cloudpickle.loads", "torch.jit.load", "torch.export.load", "torch.hub.load", "torch.package.PackageImporter",
    "torch.ops.load_library", "shutil.unpack_archive", "tarfile.open", "np.load", "numpy.load", "runpy.run_path",
}  # fmt: skip
MODULES = {"pickle", "marshal", "shelve", "joblib", "yaml", "dill", "cloudpickle", "tarfile"}
# What a process gets from the one that started it over a pipe is its own, no file.
FINE = {("engine/local.py", "pickle.loads"), ("engine/local.py", "pickle"), ("engine/ray.py", "ray.cloudpickle")}


def dotted(node: ast.expr) -> str:
    """`torch.hub.load` of such an expression; nothing of others."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def trusting(source: str, name: str) -> list[str]:
    """The calls and imports of a file that could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called, options = dotted(node.func), {k.arg: k.value for k in node.keywords}
            if called in NEVER:
                found.append(called)
            only = options.get("weights_only")
            if called == "torch.load" and not (isinstance(only, ast.Constant) and only.value is True):
                found.append("torch.load without weights_only=True")
            if called.split(".")[-1] in ("run", "Popen", "call", "check_output") and "shell" in options:
                found.append("a shell")
            if called == "Image.open" and "formats" not in options:
                found.append("a picture of any format")
            if called.split(".")[-1] in ("extract", "extractall"):
                found.append("an archive written to disk")
            if called.split(".")[-1] == "load_state_dict_from_url":
                found.append("weights from an address")
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            found += [f"{module}.{a.name}" for a in node.names if module.split(".")[0] in MODULES or a.name in MODULES]
    return [f for f in found if (name, f) not in FINE]


def test_nothing_trusts_a_file() -> None:
    names = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
    assert len(names) > 100
    assert {name: found for name, text in names.items() if (found := trusting(text, name))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(p, weights_only=safe)", "import pickle",
        "from joblib import load", "eval(text)", "np.load(p, allow_pickle=True)", "torch.hub.load('a', 'b')", "yaml.load(f)",
        "torch.export.load(p)", "subprocess.run(text, shell=True)", "zip.extractall(folder)", "from ray import cloudpickle",
        "Image.open(path)",
    ],
)  # fmt: skip
def test_the_reader_sees(line: str) -> None:
    assert trusting(line, "x.py")


def test_names_in_a_book_stay_in_the_book() -> None:
    entry = {"address": "a", "stem": "01-layer1.relu", "units": 3, "grid": [2, 2], "field": None, "stride": None}
    assert LayerEntry.from_dict(entry).stem == "01-layer1.relu"
    for stem in ("../../etc", "/etc/x", "a/b", "..", ".", "", "a\\b", "a\0", "C:x", "~root", "%2e%2e"):
        with pytest.raises(UsageError, match="no name of files"):
            LayerEntry.from_dict(entry | {"stem": stem})
    for address in ("../../x", "/etc/passwd", "..", "a\0b", "layer4[0].relu#2", "%2e%2e/"):
        assert LayerEntry.from_dict(entry | {"stem": stem_of(3, address)}).stem.startswith("03-")


def test_a_store_does_not_choose_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chosen_by_a_store.py").write_text("open('canary', 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for module, kind in (
        ("chosen_by_a_store", "X"),
        ("os", "system"),
        ("convoscope.loading", "load"),
        ("convoscope.none", "X"),
    ):
        with pytest.raises(UsageError, match="cannot be imported here"):
            plan._made("x", {"module": module, "class": kind, "settings": {}})
    assert not (tmp_path / "canary").exists()


def test_what_is_fine_is_still_there() -> None:
    """An exception that nobody needs any more goes."""
    for name, call in FINE:
        assert call.split(".")[-1] in (PACKAGE / name).read_text(encoding="utf-8")
