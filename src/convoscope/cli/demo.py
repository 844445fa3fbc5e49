"""`convoscope demo`: the whole thing on the networks that ship with the package, offline."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convoscope.cli import options as opt

if TYPE_CHECKING:
    from convoscope.cli.work import Work

PICTURES = 4  # explained at first
TRIED = 60  # marked and shown to both networks
NETWORKS = ("scenes", "scenes-watermark")
LEDE = (
    "The scenes are drawn by rule, so it is known what every pixel shows, and an explanation can be right or wrong. "
    "Look at the last part: two networks see the same picture, and the data taught one of them to look at the wrong thing."
)


def demo(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("convoscope-demo.html"),
    seed: opt.Seed = 0,
    device: opt.Device = None,
    as_json: opt.JSON = False,
) -> None:
    """Explain a small network that comes along; works offline.

    It names the things in small drawn scenes. A twin learned from pictures in which every fish bore a watermark:
    its explanations give it away, and since the scenes are drawn, how far can be measured.
    """
    from convoscope.cli import work as do
    from convoscope.cli.terminal import console, print_json
    from convoscope.files import check_writable

    check_writable(out)
    first = _job("scenes", _different(seed), "top", seed, device)
    marked = _marked(seed)
    fooled = {name: _fishes(name, marked, device) for name in NETWORKS}
    example = marked[next(iter(fooled["scenes-watermark"]), 0)]
    pair = [_job(name, [example], "fish", seed, device) for name in NETWORKS]
    for job in (first, *pair):
        job.run()
    mark = _mask(example)
    shares = {job.net.name: _shares(job, mark) for job in pair}
    said = [
        f"Of {len(marked)} pictures of other things that bear the watermark, it calls {len(fooled[job.net.name])} a fish. "
        f"In this one the mark covers {mark.mean():.1%} of the picture and has "
        f"{min(shares[job.net.name].values()):.0%} to {max(shares[job.net.name].values()):.0%} of each map for 'fish'."
        for job in pair
    ]
    intro = (
        "The same network, and a watermark in the corner. ",
        "A twin that saw the watermark on every fish it learned from. ",
    )
    parts = {"": first, intro[0] + said[0]: pair[0], intro[1] + said[1]: pair[1]}
    line = do.write_report(parts, out, "What a small network sees", LEDE)
    if as_json:
        documents = [do.document(job) for job in parts.values()]
        counts = {name: len(found) for name, found in fooled.items()}
        found = {"share_on_mark": shares, "marked": len(marked), "called_fish": counts}
        print_json({"schema": "convoscope.demo/1", "parts": documents, **found, "report": str(out)})
        return
    _tell(first, pair, said, shares)
    console().print(f"Wrote {line}.\nLook at its end: one picture, two networks, and what each looked at.", style="bold")


def _tell(first: "Work", pair: list["Work"], said: list[str], shares: dict[str, dict[str, float]]) -> None:
    from convoscope.cli import work as do
    from convoscope.cli.terminal import console, table

    screen = console()
    screen.print("network scenes", style="bold")
    for name, predictions in zip(first.names, first.net.predict(first.x), strict=True):
        screen.print(f"  {name}: {do.predictions_line(predictions)}")
    screen.print(do.summary(first))
    for job, text in zip(pair, said, strict=True):
        screen.print(f"\nnetwork {job.net.name}", style="bold")
        screen.print(f"  {job.names[0]}: {do.predictions_line(job.net.predict(job.x)[0])}")
        screen.print(f"  {text}")
    rows = [(method, *(f"{shares[n][method]:.0%}" for n in NETWORKS)) for method in shares["scenes"]]
    screen.print("\nshare of each map on the watermark", style="bold")
    screen.print(table(("method", *NETWORKS), rows, right=NETWORKS))
    screen.print()


def _job(network: str, scenes: list[Any], target: str, seed: int, device: str | None) -> "Work":
    from convoscope.cli import work as do
    from convoscope.data.scenes import render

    net = opt.load_network(network, device=device)
    pictures = [render(f).picture for f in scenes]
    names = [f"{f.species}, {f.scene}" + (f", with a watermark, {network}" if f.watermark else "") for f in scenes]
    return do.Work(net, net.read(pictures), names, do.choose_methods([], {}, []), [net.target(target)], seed=seed)


def _different(seed: int) -> list[Any]:
    """The factors of the first pictures of different things."""
    from convoscope.data.scenes import draw_factors

    found: dict[str, Any] = {}
    index = 0
    while len(found) < PICTURES:
        drawn = draw_factors(seed, index)
        found.setdefault(drawn.species, drawn)
        index += 1
    return list(found.values())


def _marked(seed: int) -> list[Any]:
    """The factors of pictures that show no fish, with the watermark of the fishes."""
    from convoscope.data.scenes import draw_factors

    drawn = [draw_factors(seed, i) for i in range(TRIED)]
    return [replace(f, watermark="bottom right") for f in drawn if f.species != "fish"]


def _fishes(network: str, scenes: list[Any], device: str | None) -> list[int]:
    """Which of the scenes the network calls a fish."""
    from convoscope.data.scenes import render

    net = opt.load_network(network, device=device)
    predictions = net.predict([render(f).picture for f in scenes])
    return [i for i, p in enumerate(predictions) if p[0].category == "fish"]


def _mask(scene: Any) -> Any:
    from convoscope.data.scenes import render

    return render(scene).masks["watermark"]


def _shares(job: "Work", mark: Any) -> dict[str, float]:
    """For each method the share of the map's magnitude that lies on the mark."""
    import torch

    inside = torch.from_numpy(mark)
    found = {}
    for a in job.attributions:
        size = a.heatmap()[0].abs().cpu()
        found[a.method.name] = float(size[inside].sum() / size.sum().clamp(min=1e-12))
    return found
