"""How well the maps of every registered method agree with exact Shapley values of the parts of a picture.

    python -m benchmarks.scenes_ranking [--pictures 50] [--seed 1000] [--only grad-cam,lrp] [--out docs/ranking.md]

The network that ships with the package classifies scenes, pictures drawn from parts. The truth is exact: every part of the
object and every distractor is a player, each of the 2^players pictures is drawn without the parts that do not play, and the
logit of the picture's class is what a coalition earns. A method is scored by the correlation, over the players of a picture,
of the sum of its map on a player's pixels with the player's Shapley value: Spearman's and Pearson's coefficient, their means
over pictures, and 95 % intervals of the mean by the bootstrap. Next to them stands the share of the map's positive values that
lies on parts whose Shapley value is positive. All methods get the same pictures and the defaults, but for `SETTINGS`; rows of
`VARIANTS` show settings that change the question. It takes some minutes on two cores.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import convoscope as cs
from convoscope.evaluation.bench.parts_game import VISIBLE, Game, games

SEED = 1000  # pictures the network was not trained on
SETTINGS: dict[str, dict[str, object]] = {  # fewer samples where the defaults would take minutes
    "sobol": {"samples": 8}, "rise": {"masks": 500}, "is-cam": {"steps": 5}, "ss-cam": {"samples": 5},
}  # fmt: skip
SENSITIVE = ("per unit of input", "per unit of activation")
VARIANTS = (
    "integrated-gradients:baseline=blur", "integrated-gradients:baseline=mean", "deep-lift:baseline=mean",
    "guided-ig:baseline=mean", "lime:fill=mean",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The scores of one method: a number per picture, or why there are none."""

    name: str
    title: str
    spearman: Tensor | None = None
    pearson: Tensor | None = None
    density: Tensor | None = None
    share: Tensor | None = None
    evaluations: float = 0.0
    seconds: float = 0.0
    reason: str = ""

    @property
    def score(self) -> float:
        return float(self.spearman.mean()) if self.spearman is not None else -2.0


def ranks(values: Tensor) -> Tensor:
    """Ranks along the last axis, ties at their mean."""
    return ((values[..., None, :] < values[..., None]).sum(-1) + (values[..., None, :] <= values[..., None]).sum(-1) + 1) / 2


def pearson(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation; 0 where one is constant, which says nothing of the other."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    below = float(a.norm() * b.norm())
    return float(a @ b) / below if below > 1e-12 * len(a) else 0.0


def interval(values: Tensor, draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the mean by the bootstrap over pictures."""
    chosen = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(0))
    means = values.double()[chosen].mean(1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


def row(name: str, title: str, maps: Tensor, played: list[Game], evaluations: float = 0.0, seconds: float = 0.0) -> Row:
    """The scores of maps `(pictures, S, S)`."""
    spearman, linear, density, shares = [], [], [], []
    for found, g in zip(maps.double(), played, strict=True):
        worth, sums = g.worth, (found * g.masks).flatten(1).sum(1)
        spearman.append(pearson(ranks(sums), ranks(worth)))
        linear.append(pearson(sums, worth))
        area = g.masks.flatten(1).sum(1)
        density.append(pearson(ranks(sums / area), ranks(worth / area)))
        positive = found.clamp(min=0)
        right = (g.masks & (worth > 0)[:, None, None]).any(0)
        shares.append(float((positive * right).sum() / positive.sum().clamp(min=1e-300)))
    scores = [torch.tensor(found) for found in (spearman, linear, density, shares)]
    return Row(name, title, *scores, evaluations, seconds)


def controls(played: list[Game]) -> list[Row]:
    """Maps that know nothing of the network: noise, the area of a part, edges, and the middle of the picture."""
    pictures = torch.stack([g.picture for g in played])
    size = pictures.shape[-1]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(played), size, size, generator=generator)
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    gray = F.pad(pictures.mean(1, keepdim=True), (1, 1, 1, 1), "replicate")
    edges = F.conv2d(gray, torch.stack([sobel, sobel.T])[:, None]).norm(dim=1)
    axis = torch.linspace(-1, 1, size)
    middle = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 0.4**2)).expand(len(played), size, size)
    return [
        row("control", "*random noise*", noise, played),
        row("control", "*the area of a part*", torch.ones_like(noise), played),
        row("control", "*edges (Sobel)*", edges, played),
        row("control", "*the middle of the picture*", middle, played),
    ]


def heatmaps(found: cs.Attribution) -> Tensor:
    """Contributions are summed over colors; of sensitivities the largest magnitude counts (Simonyan et al. 2014)."""
    method = found.method
    while isinstance(of := getattr(method, "of", None), cs.Method):
        method = of
    return found.heatmap("max-abs" if any(u in method.unit for u in SENSITIVE) else "sum")


def scored(spec: str, network: cs.Network, played: list[Game], x: Tensor) -> Row:
    """The row of a registered method, by name or `name:setting=value`, with its defaults but for `SETTINGS`."""
    name, started = spec.split(":")[0], time.perf_counter()
    title = cs.methods()[name].title + (f", {spec.split(':')[1]}" if ":" in spec else "")
    try:
        method = spec if ":" in spec else cs.methods()[name](**SETTINGS.get(name, {}))  # type: ignore[arg-type]
        found = cs.explain(network, x, method, cs.Logit(tuple(g.label for g in played)))
        assert isinstance(found, cs.Attribution)
        maps = heatmaps(found)
    except cs.ConvoscopeError as error:
        return Row(spec, title, reason=str(error))
    return row(spec, title, maps, played, found.diagnostics["evaluations"] / len(x), time.perf_counter() - started)


def cell(values: Tensor) -> str:
    low, high = interval(values)
    mean, low, high = (f"{v:z.2f}".replace("-", "\N{MINUS SIGN}") for v in (float(values.mean()), low, high))
    return f"{mean} ({low} to {high})"


def table(rows: list[Row]) -> str:
    headings = ("", "method", "name", "Spearman", "Pearson", "per pixel", "on the right parts", "passes")
    lines = ["| " + " | ".join(headings) + " |", "|--:|---|---|---|---|---|--:|--:|"]
    place = 0
    for r in sorted((r for r in rows if not r.reason), key=lambda r: -r.score):
        control = r.name == "control"
        place += not control
        scores = [r.spearman, r.pearson, r.density, r.share]
        spearman, linear, density, share = (s for s in scores if s is not None)
        cells = (
            "" if control else str(place), r.title, "" if control else f"`{r.name}`", cell(spearman), cell(linear),
            cell(density), f"{float(share.mean()):.0%}", "0" if control else f"{r.evaluations:.0f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


PAGE = """# Which method finds the parts that count?

The methods of the registry, ranked on pictures of which the truth is known. The network that ships with the package tells ten
species apart in scenes drawn by rule. A picture's players are the parts of its object and its distractors, at least four that
show {visible} pixels or more. A part that does not play is not drawn, so that all 2^players pictures are ones the scenes could
show, and the logit of the picture's class for each of them gives **exact Shapley values**: they sum to what the logit gains
from the empty scene to the full one.

A map's value for a part is its sum over the pixels that show the part. *Spearman* and *Pearson* are the mean, over {pictures}
pictures, of its correlation with the Shapley values of a picture's parts, with the 95 % interval of that mean (bootstrap over
pictures). *Per pixel* is Spearman's correlation of both divided by the number of pixels, which takes away what size explains.
*On the right parts* is the share of the map's positive values that lies on parts with a positive Shapley value. *Passes* are
forward passes of one image, with or without a way back. Rows in italics are controls that know nothing of the network.

    {command}

{table}

## How to read it

- Rows whose intervals overlap are not told apart by {pictures} pictures.
- Large parts matter more, both to the network and in a sum over pixels: the area of a part alone scores what its control does,
  and a map has to be read above that, or by *per pixel*.
- Objects are never far from the middle of a scene, which the control that looks there makes use of.
- The score is about parts, not about fine structure: a map may be right about parts and blurred, or crisp and wrong.
- Parts are a few pixels wide here. Maps at the resolution of a layer (class activation maps) spill over their borders, which
  costs them.
- Sensitivities, whose unit is "per unit of input" or of activation, count by their largest magnitude over colors and so have
  no sign, though some parts speak against the class. Contributions are summed over colors with their sign.
- Contributions are measured from a baseline, and the one here is the scene without the part. Methods whose baseline is black
  answer another question; rows with another baseline show how much it matters.
- Methods that hide pixels ask the network about pictures it has never seen, with holes, gray or blur in them.
- A part behind others has a Shapley value for the coalitions in which those are absent, but few pixels: parts that show fewer
  than {visible} always play.
- One small network and one data set. What is best here need not be best elsewhere.
{settings}{refused}"""


def page(rows: list[Row], pictures: int, command: str) -> str:
    changed = {k: v for k, v in SETTINGS.items() if any(r.name == k for r in rows)}
    lines = [f"- `{name}`: " + ", ".join(f"{k} {v}" for k, v in found.items()) for name, found in changed.items()]
    settings = "\nSettings are the defaults" + (", except:\n\n" + "\n".join(lines) if lines else ".") + "\n"
    refusals = [f"- {r.title} (`{r.name}`): {r.reason}" for r in rows if r.reason]
    refused = "\nNot ranked:\n\n" + "\n".join(refusals) + "\n" if refusals else ""
    return PAGE.format(
        visible=VISIBLE, pictures=pictures, command=command, table=table(rows), settings=settings, refused=refused
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the data set")
    parser.add_argument("--only", default="", help="names of methods, with commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the page there; default: print the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network, started = cs.load("scenes"), time.perf_counter()
    played = games(network, options.pictures, options.seed)
    x = network.normalize(torch.stack([g.picture for g in played]))
    print(f"{len(played)} games in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    rows, only = controls(played), options.only.split(",") if options.only else []
    for name in (*cs.methods(), *VARIANTS):
        if not only or name.split(":")[0] in only:
            rows.append(scored(name, network, played, x))
            print(f"{name}: {rows[-1].score:.3f}, {rows[-1].seconds:.1f} s {rows[-1].reason}", file=sys.stderr)
    if options.out:
        settings = f" --pictures {options.pictures} --seed {options.seed}" + (f" --only {options.only}" if only else "")
        command = f"python -m benchmarks.scenes_ranking{settings} --out {options.out}"
        options.out.write_text(page(rows, len(played), command), encoding="utf-8")
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
