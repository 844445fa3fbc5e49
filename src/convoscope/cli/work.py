"""The work behind `explain` and `demo`: run the methods, say what was found, write it down."""

import math
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoscope.cli.terminal import Progress, table
from convoscope.core.errors import SpecError, UnsupportedError, closest
from convoscope.files import make_folder, replaced, size_text, write_text

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from convoscope.network import Network
    from convoscope.results import Attribution
    from convoscope.targets import Target


@dataclass
class Work:
    """What to explain and how; `attributions` and `left_out` fill while it runs."""

    net: "Network"
    x: "Tensor"
    names: list[str]
    methods: list[Any]
    targets: list["Target | None"]
    chosen: bool = False
    at: list[str] | None = None
    batch_size: int | str = 32
    seed: int = 0
    attributions: list["Attribution"] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def run(self) -> None:
        """Run every method for every target, with a bar; raises UnsupportedError if none fits the network."""
        with Progress(", ".join(m.name for m in self.methods[:3]) + (", ..." if len(self.methods) > 3 else "")) as progress:
            self.attempt(progress)
        if not self.attributions:
            raise UnsupportedError(
                "none of the methods can explain this network: "
                + "; ".join(f"{name}: {reason}" for name, reason in self.left_out)
            )

    def attempt(self, progress: Any) -> None:
        """Run every method for every target; one that nobody chose and that does not fit the network is left out."""
        try:
            self.attributions = self._explain(self.methods, progress)
        except UnsupportedError:
            if self.chosen:
                raise
            self._one_by_one(progress)

    def _explain(self, methods: list[Any], progress: Any) -> list["Attribution"]:
        """All at once: what several methods, targets and layers need alike is computed once."""
        from convoscope.method import explain

        settings: dict[str, Any] = {"at": self.at, "batch_size": self.batch_size, "seed": self.seed, "progress": progress}
        return explain(self.net, self.x, methods, self.targets, **settings)

    def _one_by_one(self, progress: Any) -> None:
        for method in self.methods:
            try:
                self.attributions += self._explain([method], progress)
            except UnsupportedError as error:
                self.left_out.append((method.name, str(error)))


def choose_methods(texts: Sequence[str], settings: Mapping[str, str], options: Iterable[str]) -> list[Any]:
    """The methods to run: those named or the default set, with `settings` given to all that have them."""
    from convoscope.core.spec import fields_of, parse_spec
    from convoscope.method import methods

    known = methods()
    texts = [t for text in texts for name in split_methods(text) for t in (known if name == "all" else [name])]
    texts = texts or [name for name, cls in known.items() if getattr(cls, "default", False)]
    made, used = [], set()
    for text in texts:
        name, _, given = text.strip().partition(":")
        has = {f.name for f in fields_of(known[name])} if name in known else set()
        flags = [f"{key}={value}" for key, value in settings.items() if key in has]
        used |= has & set(settings)
        # The last one counts: what stands with the method itself wins over what is said to all.
        made.append(parse_spec("method", f"{name}:{','.join([*flags, given])}"))
    for key in settings:
        if key not in used:
            raise SpecError(_unknown_option(key, [m.name for m in made], options))
    return made


def split_methods(text: str) -> list[str]:
    """`grad-cam,rise:masks=9,grid=5` as its two methods: what has no name before an equals sign is a setting."""
    found: list[str] = []
    for piece in text.split(","):
        colon, equals = (piece.find(sign) % (len(piece) + 1) for sign in ":=")
        inside = found and found[-1].count("(") > found[-1].count(")")
        if found and (inside or equals < colon):
            found[-1] += f",{piece}"
        else:
            found.append(piece.strip())
    return [name for name in found if name]


def switches() -> set[str]:
    """Settings that are yes or no, of any method: they need no value on the command line."""
    from convoscope.core.spec import describe_type, fields_of
    from convoscope.method import methods

    found = [f for cls in methods().values() for f in fields_of(cls)]
    return {f.name for f in found if describe_type(f.type) == "yes or no"}


def _unknown_option(key: str, chosen: Sequence[str], options: Iterable[str]) -> str:
    from convoscope.core.spec import fields_of
    from convoscope.method import methods

    flag = "--" + key.replace("_", "-")
    having = [name for name, cls in methods().items() if key in {f.name for f in fields_of(cls)}]
    if having:
        return f"none of {', '.join(chosen)} has a setting {key!r}; these methods have it: {', '.join(having)}"
    names = {f.name for cls in methods().values() for f in fields_of(cls)}
    near = closest(flag, [*options, *("--" + n.replace("_", "-") for n in sorted(names))])
    hint = "; did you mean " + ", ".join(near) + "?" if near else "; 'convoscope methods NAME' lists the settings"
    return f"no option {flag}{hint}"


def predictions_line(predictions: Iterable[Any], count: int = 3) -> str:
    """`tabby 0.71 · tiger cat 0.19`."""
    return " · ".join(f"{p.category} {p.probability:.2f}" for p in list(predictions)[:count]) or "no categories"


def check_of(attribution: "Attribution") -> str:
    """Whether a map adds up: the completeness gap or the lost relevance of the worst image."""
    from convoscope.report import CHECKS, check

    found = []
    for name in CHECKS:
        checks = [check(attribution, name, i) for i in range(len(attribution))]
        text, _ = max(checks, key=lambda c: c[1] or 0.0)
        found += [f"{name} {text}"] if text else []
    return ", ".join(found)


def seconds_text(seconds: float) -> str:
    """The time a method took."""
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def summary(work: Work) -> "Table":
    """One row for every attribution: what it explained, what it chose, whether it adds up, what it cost."""
    from convoscope.report import baseline_of, layer_of, target_text

    rows = []
    for a in work.attributions:
        targets = list(dict.fromkeys(target_text(a, i) for i in range(len(a))))
        shown = ", ".join(targets[:2]) + (f" and {len(targets) - 2} more" if len(targets) > 2 else "")
        seconds = seconds_text(a.diagnostics["seconds"])
        cost = f"{a.diagnostics['evaluations'] / len(a):.0f}"
        rows.append((a.method.name, shown, layer_of(a), baseline_of(a.method), check_of(a), cost, seconds))
    headings = ("method", "target", "layer", "baseline", "check", "evaluations", "time")
    return table(headings, rows, right=("evaluations", "time"))


def save_pictures(work: Work, folder: Path) -> list[Path]:
    """One PNG for every picture, method and target."""
    from convoscope.report import picture, target_text

    make_folder(folder)
    paths: list[Path] = []
    for a in work.attributions:
        for i, name in enumerate(work.names):
            words = [Path(name).stem, a.method.name, target_text(a, i)]
            path = _unused(folder / "-".join(slug(w) for w in words), paths)
            with replaced(path) as partial:
                picture(a, work.x, [i]).save(partial, format="PNG")
            paths.append(path)
    return paths


def slug(text: str) -> str:
    """`text` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-") or "x"


def _unused(path: Path, paths: Sequence[Path]) -> Path:
    numbered = (path.with_name(f"{path.name}{n}.png") for n in ("", *(f"-{k}" for k in range(2, len(paths) + 3))))
    return next(p for p in numbered if p not in paths)


def write_report(parts: Mapping[str, Work], out: Path, title: str, lede: str = "") -> str:
    """Write the page, each part with its note; a line that says where it is and how large."""
    from convoscope.report import build_report, page, pictures_of

    first = next(iter(parts.values()))
    notes = [f"Left out {name}: {reason}" for name, reason in first.left_out]
    report = build_report(
        first.net, first.x, first.names, first.attributions, title=title, lede=lede, notes=notes, command=command_line()
    )
    more = [p for note, w in list(parts.items())[1:] for p in pictures_of(w.net, w.x, w.names, w.attributions, note)]
    write_text(out, page(replace(report, pictures=(*report.pictures, *more))))
    return f"{out} ({size_text(out)}, one file, opens offline)"


def command_line() -> str:
    """What was typed, ready to be typed again."""
    return shlex.join(["convoscope", *sys.argv[1:]])


def document(work: Work) -> dict[str, Any]:
    """What `--json` prints, before the paths are added."""
    from importlib.metadata import version

    from convoscope.report import predictions

    net = work.net
    said = predictions(net, work.x)
    return {
        "schema": "convoscope.explain/1",
        "version": version("convoscope"),
        "network": {"name": net.name, "hash": net.hash, "size": list(work.x.shape[2:])},
        "seed": work.seed,
        "images": [
            {
                "name": name,
                "predictions": [
                    {"index": p.index, "category": p.category, "probability": jsonable(p.probability)} for p in found
                ],
            }
            for name, found in zip(work.names, said, strict=True)
        ],
        "attributions": [
            {
                "method": jsonable(a.method.to_dict()),
                "target": jsonable(a.target.to_dict()),
                "at": a.at,
                "shape": list(a.values.shape),
                "diagnostics": jsonable(a.diagnostics),
            }
            for a in work.attributions
        ],
    } | refused_json(work.left_out)


def refused_json(left_out: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The methods that were left out, for JSON."""
    return {"left_out": [{"method": name, "reason": reason} for name, reason in left_out]}


def jsonable(value: Any) -> Any:
    """`value` in JSON's own types; numbers that are none become null."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
