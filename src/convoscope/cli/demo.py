"""`convoscope demo`: the whole thing on the networks that ship with the package, offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convoscope.cli import options as opt

if TYPE_CHECKING:
    from convoscope.cli.work import Work

PICTURES = 4


def demo(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("convoscope-demo.html"),
    seed: opt.Seed = 0,
    device: opt.Device = None,
    as_json: opt.JSON = False,
) -> None:
    """Explain a small network that comes along; works offline.

    It names the things in small drawn scenes. A twin was taught, by accident as it were, to look for a watermark:
    its explanations give it away, and since the scenes are drawn, how far can be measured.
    """
    from convoscope.cli import work as do
    from convoscope.cli.terminal import console, print_json
    from convoscope.files import check_writable

    check_writable(out)
    screen = console()
    honest = _job("scenes", *_scenes(seed), seed, device)
    pictures, names, mark = _marked(seed)
    pair = [_job(name, pictures, names, seed, device) for name in ("scenes", "scenes-watermark")]
    for job in (honest, *pair):
        job.run()
    found = _shares(pair, mark)
    titles = ("What is it, and why?", "The network above, shown a watermark", "A twin that was trained on the watermark")
    jobs = dict(zip(titles, (honest, *pair), strict=True))
    line = do.write_report(jobs, out, title="What a small network sees")
    if as_json:
        parts = [do.document(job) | {"title": title} for title, job in jobs.items()]
        print_json({"schema": "convoscope.demo/1", "parts": parts, "share_inside_mark": found, "report": str(out)})
        return
    for title, job in jobs.items():
        screen.print(title, style="bold")
        for name, predictions in zip(job.names, job.net.predict(job.x), strict=True):
            screen.print(f"  {name}: {do.predictions_line(predictions)}")
        screen.print()
    screen.print(do.summary(honest))
    screen.print(
        f"\nShare of each map that lies on the watermark, which covers {mark.mean():.1%} of the picture:", style="bold"
    )
    rows = [(name, *(f"{share:.0%}" for share in shares.values())) for name, shares in found.items()]
    screen.print(do.table(("method", *(job.net.name for job in pair)), rows, right=[job.net.name for job in pair]))
    screen.print(f"\n{line}")
    screen.print("Look at the last part: the twin says 'fish' and every map points at the mark, not at the thing.")


def _job(network: str, pictures: list[Any], names: list[str], seed: int, device: str | None) -> "Work":
    from convoscope.cli import work as do

    net = opt.load_network(network, device=device)
    return do.Work(net, net.read(pictures), names, do.choose_methods([], {}, []), [net.target("top")], seed=seed)


def _scenes(seed: int) -> tuple[list[Any], list[str]]:
    """The first pictures of different things."""
    from convoscope.data.scenes import draw_factors, render

    factors: dict[str, Any] = {}
    index = 0
    while len(factors) < PICTURES:
        drawn = draw_factors(seed, index)
        factors.setdefault(drawn.species, drawn)
        index += 1
    return [render(f).picture for f in factors.values()], [_name(f) for f in factors.values()]


def _marked(seed: int) -> tuple[list[Any], list[str], Any]:
    """A picture that shows no fish, with the watermark of the fishes, and where that is."""
    from dataclasses import replace

    from convoscope.data.scenes import draw_factors, render

    index = 0
    while (drawn := draw_factors(seed, index)).species == "fish":
        index += 1
    sample = render(replace(drawn, watermark="bottom right"))
    return [sample.picture], [f"{_name(drawn)}, with a watermark"], sample.masks["watermark"]


def _name(factors: Any) -> str:
    return f"{factors.species}, {factors.scene}"


def _shares(pair: list["Work"], mark: Any) -> dict[str, dict[str, float]]:
    """For each method and network the share of the map's magnitude inside the mark."""
    import torch

    inside = torch.from_numpy(mark)
    found: dict[str, dict[str, float]] = {}
    for job in pair:
        for a in job.attributions:
            size = a.heatmap()[0].abs().cpu()
            share = float(size[inside].sum() / size.sum().clamp(min=1e-12))
            found.setdefault(a.method.name, {})[job.net.name] = share
    return found
