"""What the small networks of the benchmark do with the mark, measured, and a picture of what maps show of it.

    python -m benchmarks.shortcut_page [--write docs/shortcut-networks.md] [--picture docs/images/watermark.webp]
"""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch

import convoscope as cs
from convoscope.evaluation.bench import shortcut_networks as nets
from convoscope.evaluation.bench.run import Explained
from convoscope.evaluation.bench.shortcut import Watermark, twins
from convoscope.show.figure import Panel, figure
from convoscope.show.overlay import colorize, limit

METHODS = ("lrp", "guided-backprop", "integrated-gradients", "grad-cam")
PAGE = """# Small networks of which it is known how they came to their answers

Written by `python -m benchmarks.shortcut_page --write docs/shortcut-networks.md`. The networks were trained by
`python -m benchmarks.shortcut_networks`: some six seconds on one core each, half a minute for each twin; a run that is
stopped goes on where it was, and the same recipe gives the same weights, bit for bit, on one machine.

They are for the tasks `shortcut` and `permuted` of the benchmark with exact truth. All take scenes of five species, drawn at 64
pixels and pooled to 32, and have four convolutions, global average pooling and one linear layer.

## Twenty that use a shortcut, twenty that do not

{biased:,} parameters each, {count:,} training pictures, one label in ten wrong. For the first twenty a watermark lies on half
of the pictures labeled a fish, and on a smaller share of the others: a series from a weak shortcut to a clear one. For the
second twenty it lies on as many pictures in all, whatever they show, so that they have seen it and have no use for it.
Measured on {held} pictures that no network was trained on, each drawn without the mark and with it; from the least to the most
of each group. *Accuracy* is that without the mark (chance: {chance:.0%}); *effect* is by how much the mark raises the logit of
the fish on pictures of other things; *turned* is the share of those that the mark turns into a fish.

{table}

## The twin that knows its labels by heart

{twin:,} parameters, {learned:,} training pictures, the same start and the same order; one was taught what the pictures show,
the other the same labels dealt to the pictures at random (Zhang et al., "Understanding deep learning requires rethinking
generalization", 2017).

{twins}

## What maps show of a watermark

The network that ships as `scenes-watermark` calls whatever bears the mark a fish, `scenes` does not mind it. Both are asked why
this may be a fish. The exact effects are logits with a thing minus logits without it, spread over its pixels. Below each map
stands the mark's share of its magnitude, which is what the tasks `watermark` and `shortcut` look at.

![A marked picture, exact effects and maps of four methods, for a network that the mark misleads and for its twin]({at})
"""


def row(name: str, found: Sequence[nets.Measured]) -> str:
    """A line of the table: the least and the most of each number."""
    spans = [sorted(values) for values in zip(*((m.accuracy, m.effect, m.turned) for m in found), strict=True)]
    cells = [f"{low:{form}} to {high:{form}}" for (low, *_, high), form in zip(spans, ("z.0%", "z.2f", "z.0%"), strict=True)]
    return f"| {name} | {len(found)} | " + " | ".join(c.replace("-", "\N{MINUS SIGN}") for c in cells) + " |"


def groups(count: int) -> str:
    """The table of the forty."""
    recipes = (*nets.BIASED, *nets.CLEAN)
    found = [nets.measured(n.module, count) for n in nets.shipped("shortcut")]
    lines = ["| the mark | networks | accuracy | effect | turned |", "| --- | ---: | ---: | ---: | ---: |"]
    for some in (nets.BIASED, nets.CLEAN):
        for k, odds in enumerate(nets.ODDS):
            like = some[k]
            chosen = [m for m, r in zip(found, recipes, strict=True) if (r.rate, r.others) == (like.rate, like.others)]
            times = f", {odds:g} times as often" if like.rate > like.others else ""
            lines.append(row(f"on {like.rate:.0%} of fish, {like.others:.0%} of others{times}", chosen))
    return "\n".join(lines)


def pair(count: int) -> str:
    """The table of the twins."""
    lines = ["| taught | knows of what it was taught | accuracy on other pictures |", "| --- | ---: | ---: |"]
    for network, recipe in zip(nets.shipped("permuted"), nets.TWINS, strict=True):
        x, labels = recipe.pictures()
        with torch.no_grad():
            known = network.module(nets.normalized(x)).argmax(1) == labels
        other = nets.measured(network.module, count).accuracy
        name = "dealt labels" if recipe.permuted else "what is shown"
        lines.append(f"| {name} | {known.double().mean():.1%} | {other:.0%} |")
    return "\n".join(lines)


def picture(number: int = 1) -> list[Panel]:
    """A picture of the task `watermark` with its maps, a row for each network."""
    truth, panels = twins(number + 1, Watermark().seed), []
    x, mark = truth.x[number : number + 1], truth.marks[number]
    names = ("a network that the mark misleads", "its twin, trained without marks")
    for network, name in zip(truth.networks, names, strict=True):
        shown = network.picture(x)[0].permute(1, 2, 0).numpy()
        fish = network.module(x)[0, truth.target.index].item()  # type: ignore[attr-defined]
        panels.append(Panel(name.capitalize(), shown, f"logit of the fish {fish:.1f}".replace("-", "\N{MINUS SIGN}")))
        maps = {"Exact effects": truth.oracle()(network, x, truth.target, (number,))[0]}
        for method in METHODS:
            made = cs.methods()[method]()
            maps[made.title] = Explained(made)(network, x, truth.target, (number,))[0]
        for title, values in maps.items():
            share = float((values.abs() * mark).sum() / values.abs().sum())
            colors = colorize(values.numpy(), limit=limit(values.numpy()), signed=True)
            panels.append(Panel(title, colors, f"{share:.0%} on the mark"))
    return panels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, default=Path("docs/shortcut-networks.md"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/watermark.webp"))
    parser.add_argument("--pictures", type=int, default=1000, help="how many are measured")
    given = parser.parse_args()
    sizes = [sum(p.numel() for p in nets.shipped(name)[0].module.parameters()) for name in ("shortcut", "permuted")]
    at = given.picture.relative_to(given.write.parent).as_posix()
    text = PAGE.format(
        biased=sizes[0], twin=sizes[1], count=nets.BIASED[0].count, learned=nets.TWINS[0].count, held=f"{given.pictures:,}",
        chance=1 / len(nets.SPECIES), table=groups(given.pictures), twins=pair(given.pictures), at=at,
    )  # fmt: skip
    parts = [p if p.startswith(("|", "#", "!")) else textwrap.fill(p, 128) for p in text.strip().split("\n\n")]
    figure(picture(), columns=2 + len(METHODS), width=150).save(given.picture, quality=88)
    given.write.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(given.write, given.picture)


if __name__ == "__main__":
    main()
