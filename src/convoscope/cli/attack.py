"""`convoscope attack`: changes too small to see that make a network say something else."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convoscope.cli import options as opt
from convoscope.cli import synthesis as syn
from convoscope.cli.attack_way import Way

if TYPE_CHECKING:
    from convoscope.cli.folders import Found
    from convoscope.network import Network
    from convoscope.synthesis.adversarial_result import Attack

DEFAULT_OUT = Path("convoscope-attack.png")
GROUP = 16  # pictures attacked together; part of what a seed means


def attack(
    context: typer.Context,
    model: opt.ModelArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Pictures, and folders of pictures.")],
    method: Annotated[
        str, typer.Option(metavar="NAME[:SETTING=VALUE,...]", help="fgsm, pgd, deep-fool, universal, torchattacks, foolbox.")
    ] = "pgd",
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|INDEX", help="The class to go to; repeated: one for each picture. Default: any other."),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help=f"A picture (.png) or page (.html); may be repeated. Default: {DEFAULT_OUT}."
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write each adversarial picture there, as an 8-bit PNG of the input's size."),
    ] = None,
    show: Annotated[int, typer.Option(min=1, help="How many pictures to draw at most.")] = 12,
    store: syn.Store = None,
    preview: syn.Preview = None,
    strip: syn.StripFile = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    batch_size: opt.BatchSize = "auto",
    seed: opt.Seed = 0,
    device: opt.Device = None,
    as_json: opt.JSON = False,
) -> None:
    """Find pictures that look alike and that the network takes for something else.

    Settings of the method are options: --epsilon 8/255 --norm l2 --steps 40. Epsilon is in pixels 0..1. Ctrl-C keeps what is
    done, sixteen pictures at a time, and the same command goes on from there.
    """
    from convoscope.cli.folders import pictures_in
    from convoscope.cli.terminal import Progress
    from convoscope.core.errors import ConvoscopeError, UsageError
    from convoscope.files import check_writable, make_folder
    from convoscope.synthesis.adversarial import attack_of

    words, settings = opt.split_settings(images, _switches())
    made = attack_of(_with(method, settings))
    paths = out or ([] if as_json else [DEFAULT_OUT])
    for path in paths:
        if path.suffix.lower() not in (".png", ".html", ".htm"):
            raise UsageError(f"--out {str(path)!r}: expected a picture, .png, or a page, .html")
        check_writable(path)
    way = Way(preview, strip, show, store or (paths[0].with_suffix(".state") if paths else None), store is None)
    if pictures is not None:
        make_folder(pictures)
    found = pictures_in(words, pictures)
    if target is not None and len(target) not in (1, len(found)):
        raise UsageError(f"{len(target)} targets for {len(found)} pictures; give one for each, or one for all")
    net = opt.load_network(model, arch, weights, allow_partial, device)
    failed: list[tuple[str, str]] = []
    with Progress(made.name) as progress:
        job = {"seed": seed, "batch_size": batch_size}
        with way:
            results = list(_attacked(net, made, found, target, job, failed, progress, way))
    if results:
        _write(results, paths, pictures, show)
        way.write([str(f.place) for some, _ in results for f in some])
    _tell(results, failed, [*paths, *([pictures] if pictures else []), *way.files], as_json)
    if failed:
        raise ConvoscopeError(f"{len(failed)} of {len(found)} pictures could not be read: {failed[0][1]}")


def _switches() -> set[str]:
    from convoscope.core.spec import describe_type, fields_of
    from convoscope.synthesis.adversarial import attacks

    return {f.name for cls in attacks().values() for f in fields_of(cls) if describe_type(f.type) == "yes or no"}


def _with(method: str, settings: dict[str, str]) -> str:
    """The method with settings in its text; fractions as numbers."""
    name, _, rest = method.partition(":")
    own = [
        p if "=" not in p else "{}={}".format(p.partition("=")[0], _number(p.partition("=")[2])) for p in rest.split(",") if p
    ]
    return f"{name}:{','.join([*(f'{k}={_number(v)}' for k, v in settings.items()), *own])}"


def _number(text: str) -> str:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", text.strip())
    return str(float(match[1]) / float(match[2])) if match and float(match[2]) else text


Named = tuple[list["Found"], "Attack"]


def _attacked(
    net: "Network", method: Any, found: list["Found"], target: list[str] | None, job: dict[str, Any],
    failed: list[tuple[str, str]], progress: Any, way: "Way",
) -> Iterator[Named]:  # fmt: skip
    """The pictures, some at a time: those of one size together. One that cannot be read is named in `failed`."""
    import torch

    from convoscope.core.errors import ImageError, UsageError
    from convoscope.synthesis.adversarial import attack as run

    if method.name == "universal":
        paths = [str(f.path) for f in found]
        yield [], run(net, paths, method, None if target is None else target[0], progress=progress, **job)
        return
    for start in range(0, len(found), GROUP):
        shapes: dict[Any, list[tuple[int, Any]]] = {}
        for i, one in enumerate(found[start : start + GROUP], start):
            try:
                x = net.read(str(one.path))
                shapes.setdefault(tuple(x.shape), []).append((i, x))
            except (ImageError, UsageError) as error:
                failed.append((str(one.path), str(error)))
        for rows in shapes.values():
            goals = None if target is None else target[0] if len(target) == 1 else [target[i] for i, _ in rows]
            n = len(rows)
            tell = partial(_of_all, progress, start, n, len(found))
            x, numbers = torch.cat([x for _, x in rows]), [i for i, _ in rows]
            make = partial(run, net, x, method, goals, progress=tell, watch=way.watch, **job)
            yield [found[i] for i in numbers], way.kept(net, x, method, goals, job, numbers, make)


def _of_all(progress: Any, start: int, count: int, total: int, done: int, of: int) -> None:
    """How far all pictures are, when `count` of them that follow the first `start` are `done` of `of`."""
    progress(start + count * done // max(of, 1), total)


def _write(results: list[Named], paths: list[Path], pictures: Path | None, show: int) -> None:
    from convoscope.cli.work import command_line
    from convoscope.files import make_folder, replaced, write_text
    from convoscope.synthesis import adversarial_figure as drawing

    attacks = [a for _, a in results]
    for path in paths:
        if path.suffix.lower() == ".png":
            with replaced(path) as partial:
                drawing.figure_of(*attacks, rows=show).save(partial, format="PNG")
        else:
            write_text(path, drawing.page(*attacks, rows=show, command=command_line()))
    for found, result in results if pictures is not None else ():
        for i, one in enumerate(found):
            place = (pictures / one.place).with_suffix(".png")  # type: ignore[operator]
            make_folder(place.parent)
            with replaced(place) as partial:
                result.picture(i).save(partial, format="PNG")


def _tell(results: list[Named], failed: list[tuple[str, str]], files: list[Path], as_json: bool) -> None:
    from convoscope.cli.terminal import console, print_json, table
    from convoscope.cli.work import jsonable

    if as_json:
        print_json(jsonable(_document(results, failed, files)))
        return
    rows = []
    for found, a in results:
        before, after, saved = ([p[0] for p in a.predictions(w)] for w in ("before", "after", "saved"))
        names = [str(f.place) for f in found] or [f"held out {i}" for i in range(len(a))]
        for i, name in enumerate(names):
            size = f"{255 * float(a.linf[i]):.3g}/255"
            cells = [_said(before[i]), _said(after[i]), _said(saved[i]), size, f"{float(a.l2[i]):.3g}"]
            rows.append((name, *cells, "yes" if a.success[i] else "no"))
    headings = ("picture", "before", "after", "as 8-bit picture", "largest", "norm", "reached")
    if len(rows) > 20:
        rows = [*rows[:20], (f"and {len(rows) - 20} more", *[""] * 6)]
    if rows:
        console().print(table(headings, rows, right=("largest", "norm")))
        from convoscope.synthesis.adversarial_figure import notes_of, title_of

        for line in (title_of(*(a for _, a in results)), *notes_of(results[0][1])):
            console().print(line)
    if files and rows:
        console().print(f"drawn in {', '.join(map(str, files))}")


def _said(prediction: Any) -> str:
    return f"{prediction.category.split(',')[0]} {prediction.probability:.3f}"


def _document(results: list[Named], failed: list[tuple[str, str]], files: list[Path]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    for found, a in results:
        told = a.to_dict()["images"]
        names = [str(f.path) for f in found] or [None] * len(told)
        images += [{"picture": name, **row} for name, row in zip(names, told, strict=True)]
    first = results[0][1].to_dict() if results else {}
    shared = {k: first[k] for k in ("method", "network", "targeted", "seed", "notes") if k in first}
    passes = {"evaluations": sum(a.evaluations for _, a in results), "seconds": sum(a.seconds for _, a in results)}
    problems = [{"picture": name, "reason": reason} for name, reason in failed]
    return {"schema": "convoscope.attack/1", **shared, **passes, "images": images, "failed": problems, "files": files}
