"""The work behind `explain` and `demo`: run the methods, say what was found, write it down."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoscope.files import make_folder, replaced, size_text, write_text
from convoscope.cli.terminal import Progress, table
from convoscope.core.errors import SpecError, UnsupportedError, closest

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
    at: str | None = None
    batch_size: int = 32
    seed: int = 0
    attributions: list["Attribution"] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def run(self) -> None:
        """Run every method for every target; a default method that does not fit the network is left out."""
        from convoscope.method import explain

        for method in self.methods:
            try:
                for target in self.targets:
                    with Progress(method.name) as progress:
                        self.attributions.append(
                            explain(
                                self.net,
                                self.x,
                                method,
                                target,
                                at=self.at,
                                batch_size=self.batch_size,
                                seed=self.seed,
                                progress=progress,
                            )
                        )
            except UnsupportedError as error:
                if self.chosen:
                    raise
                self.left_out.append((method.name, str(error)))
        if not self.attributions:
            raise UnsupportedError(
                "none of the default methods can explain this network: "
                + "; ".join(f"{name}: {reason}" for name, reason in self.left_out)
            )


def choose_methods(texts: Sequence[str], settings: Mapping[str, str], options: Iterable[str]) -> list[Any]:
    """The methods to run: those named or the default set, with `settings` given to all that have them."""
    from convoscope.core.spec import fields_of, parse_spec
    from convoscope.method import methods

    known = methods()
    texts = list(texts) or [name for name, cls in known.items() if getattr(cls, "default", False)]
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
    return " · ".join(f"{p.category} {p.probability:.2f}" for p in list(predictions)[:count])


def check_of(diagnostics: Mapping[str, Any]) -> str:
    """Whether a map adds up: the completeness gap or the lost relevance of the worst image."""
    parts = []
    for name in ("completeness gap", "lost relevance"):
        if name in diagnostics:
            text = f"{name} {_worst(diagnostics[name]):.2g}"
            relative = diagnostics.get(f"{name} relative")
            parts.append(text if relative is None else f"{text} ({_worst(relative):.2%})")
    return ", ".join(parts)


def seconds_text(diagnostics: Mapping[str, Any]) -> str:
    """The time a method took."""
    seconds = diagnostics.get("seconds")
    return "" if seconds is None else f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def summary(work: Work) -> "Table":
    """One row for every attribution: what it explained, what it chose, whether it adds up, what it cost."""
    rows = []
    for a in work.attributions:
        d = a.diagnostics
        baseline = d.get("baseline", getattr(a.method, "baseline", getattr(a.method, "fill", "")))
        baseline = baseline if isinstance(baseline, str | float | int) else f"tensor {tuple(baseline.shape)}"
        where = d.get("layer") or a.at or "input"
        evaluations = d.get("evaluations", "")
        evaluations = f"{_worst(evaluations):g}" if evaluations != "" else ""
        rows.append((a.method.name, str(a.target), where, baseline, check_of(d), evaluations, seconds_text(d)))
    headings = ("method", "target", "layer", "baseline", "check", "evaluations", "time")
    return table(headings, rows, right=("evaluations", "time"))


def save_pictures(work: Work, folder: Path) -> list[Path]:
    """One PNG for every picture, method and target."""
    from convoscope.report import overlays

    make_folder(folder)
    paths = []
    for a in work.attributions:
        for i, picture in enumerate(overlays(work.net, work.x, a)):
            words = [f"{i + 1:03d}"] if len(work.names) > 1 else []
            words += [Path(work.names[i]).stem, a.method.name]
            words += [str(a.target)] if len(work.targets) > 1 else []
            path = folder / ("-".join(slug(w) for w in words) + ".png")
            with replaced(path) as partial:
                picture.save(partial, format="PNG")
            paths.append(path)
    return paths


def slug(text: str) -> str:
    """`text` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-") or "x"


def write_report(work: Work, out: Path, title: str, notes: Sequence[str] = ()) -> str:
    """Write the page; a line that says where it is and how large."""
    from convoscope.report import build_report, page

    report = build_report(work.net, work.x, work.names, work.attributions, title=title, notes=notes)
    write_text(out, page(report))
    return f"{out} ({size_text(out)}, one file, opens offline)"


def document(work: Work) -> dict[str, Any]:
    """What `--json` prints, before the paths are added."""
    from importlib.metadata import version

    net = work.net
    predictions = net.predict(work.x)
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
            for name, found in zip(work.names, predictions, strict=True)
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
        "left_out": [{"method": name, "reason": reason} for name, reason in work.left_out],
    }


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


def _worst(value: Any) -> float:
    values = value if isinstance(value, list | tuple) else [value]
    return max((float(v) for v in values), key=abs, default=0.0)
