"""The commands, and the options that several of them share."""

from typing import Annotated

import typer

from convoscope.cli import (
    atlas,
    attack,
    bench,
    color,
    compare,
    concepts,
    demo,
    dissect,
    dream,
    evaluate,
    expert,
    explain,
    feature_maps,
    fool,
    generator,
    invert,
    lists,
    maximize,
    merge,
    properties,
    report,
    scan,
    scenes,
    segment,
    unit,
    units,
    weights,
)

app = typer.Typer(
    name="convoscope",
    help="Opens any convolutional network: why this prediction, and can the explanation be trusted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage. Start with: convoscope demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"convoscope {version('convoscope')}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Taken before any command; `--debug` itself is handled in run.py."""


app.command(context_settings={"ignore_unknown_options": True})(explain.explain)
app.command(context_settings={"ignore_unknown_options": True})(compare.compare_methods)
app.command(context_settings={"ignore_unknown_options": True})(segment.segment)
app.command()(lists.layers)
app.command()(lists.methods)
app.command()(demo.demo)
app.command()(scan.scan)
app.command()(unit.unit)
app.command()(units.units)
app.command()(report.report)
app.command()(dissect.dissect)
app.command()(evaluate.evaluate)
app.command()(evaluate.metrics)
app.command()(properties.properties)
app.command()(bench.bench)
app.command()(color.color)
app.command()(maximize.maximize)
app.command()(dream.dream)
app.command()(invert.invert)
app.command()(fool.fool)
app.command(context_settings={"ignore_unknown_options": True})(attack.attack)
app.command()(merge.merge)
app.command()(atlas.atlas)
app.command()(concepts.concepts)
app.command()(weights.weights)
app.command("feature-maps")(feature_maps.feature_maps)
app.add_typer(generator.app, name="generator")
app.add_typer(expert.app, name="expert")
app.command()(scenes.scenes)
app.command()(scenes.train)
