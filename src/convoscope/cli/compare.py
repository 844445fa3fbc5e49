"""`convoscope compare-methods`: all methods on one picture, on one sheet."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convoscope.cli import options as opt

if TYPE_CHECKING:
    from torch import Tensor

    from convoscope.network import Network
    from convoscope.results import Attribution

DEFAULT_OUT, DEFAULT_PNG = Path("convoscope-compare.html"), Path("convoscope-compare.png")
EFFORTS = {"quick": 64, "normal": 1024, "full": None}  # passes for each method and picture
FEWEST = 4  # steps, samples, ... below which a method is not worth showing


def compare_methods(
    context: typer.Context,
    image: Annotated[list[str], typer.Argument(metavar="IMAGE", help="The picture: JPEG, PNG, WebP, TIFF, ...")],
    model: opt.Model,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:SETTING=VALUE,...]", help="Only these methods; may be repeated. Default: all."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|INDEX|top", help="The class to explain; each gets a sheet of its own. Default: top."),
    ] = None,
    effort: Annotated[
        Literal["quick", "normal", "full"],
        typer.Option(
            help=f"Settings are lowered until a method needs at most {EFFORTS['quick']} (quick) or {EFFORTS['normal']} "
            "(normal) passes; full: as they are."
        ),
    ] = "normal",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"The page. Default: {DEFAULT_OUT}; none with --json.")
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"The picture; of several targets, one for each. Default: {DEFAULT_PNG}; none with --json."
        ),
    ] = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    batch_size: opt.BatchSize = "auto",
    seed: opt.Seed = 0,
    device: opt.Device = None,
    as_json: opt.JSON = False,
) -> None:
    """Lay the maps of all methods for one picture side by side, by family.

    Each with its time, the passes it ran and whether it adds up; methods that this network does not fit are named with
    the reason. Settings of methods are options too, as for 'explain'.
    """
    from convoscope.cli import work as do
    from convoscope.cli.pictures import PAGE, PICTURE, check_out
    from convoscope.cli.terminal import console, print_json
    from convoscope.core.errors import UsageError
    from convoscope.report import predictions

    out, png = (out, png) if as_json or out or png else (DEFAULT_OUT, DEFAULT_PNG)
    check_out(out, PAGE)
    check_out(png, PICTURE, "--png")
    pictures, settings = opt.split_settings(image, do.switches())
    if len(pictures) != 1:
        raise UsageError(f"methods are compared on one picture; got {len(pictures)}")
    known = [name for p in context.command.params for name in p.opts if name.startswith("--")]
    methods = do.choose_methods(method or ["all"], settings, known)
    net = opt.load_network(model, arch, weights, allow_partial, device)
    x = net.read(pictures)
    said = predictions(net, x)[0]  # the top class is asked for once, not by every method
    texts = [str(said[0].index) if t == "top" and said else t for t in target or ["top"]]
    targets = [opt.find_target(net, t) for t in dict.fromkeys(texts)]
    job = Comparison(net, x, pictures[0], methods, targets, EFFORTS[effort], batch_size, seed)
    job.run()
    wrote = _write(job, out, png)
    if as_json:
        print_json(document(job) | {"wrote": wrote})
        return
    _tell(job)
    for path in wrote:
        console().print(path)


@dataclass
class Row:
    """One method with its maps, one for each target, and what all of them together cost."""

    method: Any
    family: str
    attributions: list["Attribution"]

    @property
    def seconds(self) -> float:
        return sum(a.diagnostics["seconds"] for a in self.attributions)

    @property
    def passes(self) -> int:
        return sum(a.diagnostics["evaluations"] for a in self.attributions)


@dataclass
class Comparison:
    """All methods on one picture; `rows` and `left_out` fill while it runs."""

    net: "Network"
    x: "Tensor"
    name: str
    methods: list[Any]
    targets: list[Any]
    most: int | None = None
    batch_size: int | str = 32
    seed: int = 0
    rows: list[Row] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def run(self) -> None:
        """Run one method after the other, each for all targets; one that fails is left out with the reason."""
        from convoscope.attribution.families import families
        from convoscope.cli.terminal import Progress
        from convoscope.core.errors import ConvoscopeError

        order = families({m.name: type(m) for m in self.methods})
        place = {name: (i, family) for i, (family, group) in enumerate(order.items()) for name in group}
        with Progress("methods") as progress:
            for done, method in enumerate(sorted(self.methods, key=lambda m: place[m.name][0])):
                progress.label = f"methods, now {method.title}"
                progress(done, len(self.methods))
                try:
                    self.rows.append(Row(method, place[method.name][1], self._explain(method)))
                except ConvoscopeError as error:
                    self.left_out.append((method.title, str(error)))
                    if not self.rows and done + 1 == len(self.methods):
                        raise
                except Exception as error:  # one method's failure is no reason to lose the others
                    reason = " ".join(f"{type(error).__name__}: {error}".split())
                    self.left_out.append((method.title, f"failed unexpectedly: {reason}"))

    def _explain(self, method: Any) -> list["Attribution"]:
        from convoscope.core.errors import UnsupportedError
        from convoscope.method import explain

        affordable = lowered(method, self.x, self.most)
        if self.most and (cost := affordable.evaluations(self.x)) > 8 * self.most:
            raise UnsupportedError(f"needs up to {cost:,} passes; --effort full runs it")
        found = explain(self.net, self.x, [affordable], self.targets, batch_size=self.batch_size, seed=self.seed)
        if not all(a.values.isfinite().all() for a in found):
            raise UnsupportedError("its map has values that are not finite")
        return found


def lowered(method: Any, x: "Tensor", most: int | None) -> Any:
    """The method with whole-numbered settings halved or doubled until it needs at most `most` passes, where that helps."""
    while most is not None and (cost := method.evaluations(x)) > most:
        choices = [(c, m) for m in _neighbors(method) if (c := _cost(m, x)) < cost]
        if not choices:
            break
        method = min(choices, key=lambda choice: choice[0])[1]
    return method


def _cost(method: Any, x: "Tensor") -> float:
    from convoscope.core.errors import ConvoscopeError

    try:
        return method.evaluations(x)
    except ConvoscopeError:
        return float("inf")


def _neighbors(method: Any) -> list[Any]:
    """The method with one of its settings, or of those of the method it wraps, half or twice as large."""
    from convoscope.core.errors import ConvoscopeError
    from convoscope.core.spec import fields_of
    from convoscope.method import Method

    found = []
    for info in fields_of(type(method)):
        value = getattr(method, info.name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        others = [value // 2, value * 2] if whole and value >= 2 * FEWEST else []
        for other in _neighbors(value) if isinstance(value, Method) else others:
            try:
                found.append(dataclasses.replace(method, **{info.name: other}))
            except ConvoscopeError:
                continue
    return found


# ---- what is written


def _write(job: Comparison, out: Path | None, png: Path | None) -> list[str]:
    from convoscope.cli import work as do
    from convoscope.files import replaced, size_text, write_text
    from convoscope.report import comparison_page, sheet_of, target_text
    from convoscope.show.sheet import figure

    sheets = [sheet_of(job.net, job.x, job.name, job.rows, t, job.left_out) for t in range(len(job.targets))]
    names = [do.slug(target_text(a, 0)) for a in job.rows[0].attributions]
    wrote = []
    for i, sheet in enumerate(sheets if png else []):
        assert png is not None
        path = png if len(sheets) == 1 else png.with_name(f"{png.stem}-{i + 1}-{names[i]}{png.suffix}")
        with replaced(path) as partial:
            figure(sheet).save(partial, format="PNG")
        wrote.append(f"{path} ({size_text(path)})")
    if out:
        write_text(out, comparison_page(job.net, job.x, job.name, job.rows, sheets, do.command_line()))
        wrote.append(f"{out} ({size_text(out)}, one file, opens offline)")
    return wrote


def _tell(job: Comparison) -> None:
    from convoscope.cli import work as do
    from convoscope.cli.terminal import console, table
    from convoscope.report import predictions

    screen = console()
    screen.print(f"{job.name}: {do.predictions_line(predictions(job.net, job.x)[0])}", style="bold")
    rows = []
    for r in job.rows:
        checks = ", ".join(dict.fromkeys(do.check_of(a) for a in r.attributions))
        rows.append((r.family, r.method.name, checks, r.passes, do.seconds_text(r.seconds)))
    screen.print(table(("family", "method", "check", "passes", "time"), rows, right=("passes", "time")))
    for name, reason in job.left_out:
        screen.print(f"left out {name}: {reason}", style="dim")


def document(job: Comparison) -> dict[str, Any]:
    """What `--json` prints, before the paths are added."""
    from convoscope.cli import work as do

    found = do.Work(job.net, job.x, [job.name], [], job.targets, seed=job.seed, left_out=job.left_out)
    found.attributions = [a for r in job.rows for a in r.attributions]
    families = [r.family for r in job.rows for _ in r.attributions]
    made = do.document(found)
    made["attributions"] = [{"family": f, **a} for f, a in zip(families, made["attributions"], strict=True)]
    return made | {"schema": "convoscope.compare/1"}
