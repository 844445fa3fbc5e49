"""`convoscope layers` and `convoscope methods`: what there is."""

from typing import Annotated, Any

import typer

from convoscope.cli import options as opt


def layers(
    model: opt.ModelArgument,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    size: Annotated[
        int | None,
        typer.Option(min=1, metavar="PIXELS", help="Height and width of the input. Default: the network's."),
    ] = None,
    as_json: opt.JSON = False,
) -> None:
    """List the layers and operators of a network.

    With address, operator, shape, receptive field (size and stride, in pixels) and number of parameters.
    """
    from convoscope.cli.terminal import console, print_json
    from convoscope.cli.work import jsonable

    net = opt.load_network(model, arch, weights, allow_partial)
    found = net.layers(size)
    if as_json:
        rows = [jsonable(row._asdict()) for row in found]
        print_json({"schema": "convoscope.layers/1", "network": {"name": net.name, "hash": net.hash}, "layers": rows})
        return
    console().print(str(found), soft_wrap=True)


def methods(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Tell all about these: settings, paper, BibTeX."),
    ] = None,
    as_json: opt.JSON = False,
) -> None:
    """List the methods, and where each works and fails."""
    from convoscope.attribution.families import families
    from convoscope.cli.terminal import console, print_json, table
    from convoscope.core.spec import lookup
    from convoscope.method import methods as registry

    known = registry()
    chosen = {name: lookup("method", name) for name in names or known}
    if as_json:
        print_json({"schema": "convoscope.methods/1", "methods": [_as_dict(cls) for cls in chosen.values()]})
        return
    if names:
        for cls in chosen.values():
            _tell(cls)
        return
    rows = []
    for family, group in families(chosen).items():
        rows += [(name, family, a.use, a.cost, a.support, a.drawback) for name, cls in group.items() if (a := cls.about)]
    console().print(table(("method", "family", "use", "cost", "support", "drawback"), rows, gap=1))
    console().print("convoscope methods NAME tells more: settings, paper, BibTeX.", style="dim")


def _settings(cls: Any) -> list[dict[str, Any]]:
    from dataclasses import MISSING

    from convoscope.cli.work import jsonable
    from convoscope.core.spec import Spec, describe_type, fields_of

    found = []
    for field in fields_of(cls):
        default = field.default.to_dict() if isinstance(field.default, Spec) else field.default
        entry = {"name": field.name, "type": describe_type(field.type), "help": field.help}
        found.append(entry if default is MISSING else entry | {"default": jsonable(default)})
    return found


def _as_dict(cls: Any) -> dict[str, Any]:
    import dataclasses

    from convoscope.attribution.families import family_of

    about, paper = cls.about, cls.paper
    return {
        "name": cls.name,
        "title": cls.title,
        "family": family_of(cls),
        "default": bool(getattr(cls, "default", False)),
        **(dataclasses.asdict(about) if about else {}),
        "paper": dataclasses.asdict(paper) if paper else None,
        "settings": _settings(cls),
    }


def _tell(cls: Any) -> None:
    import inspect

    from convoscope.cli.terminal import console, table

    screen = console()
    screen.print(cls.name, style="bold")
    for paragraph in (inspect.getdoc(cls) or "").split("\n\n"):
        screen.print(" ".join(paragraph.split()) + "\n")
    if cls.about:
        a = cls.about
        rows = [("use", a.use), ("cost", a.cost), ("support", a.support), ("drawback", a.drawback)]
        screen.print(table(("", ""), rows))
    rows = [(s["name"], s["type"], s.get("default", "(must be given)"), s["help"]) for s in _settings(cls)]
    if rows:
        screen.print(table(("setting", "takes", "default", "meaning"), rows))
    if cls.paper:
        screen.print(cls.paper.bibtex() + "\n")
