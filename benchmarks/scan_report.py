"""The page about what sweeps cost, from the numbers of `benchmarks.scan`."""

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

BRODEN, BRODEN_CONCEPTS, IMAGENET = 63_305, 1_197, 1_281_167
SHARD, CORES = 4096, 16
GOAL = 0.85  # of the loop's throughput
FRACTION = 0.005  # the tail of dissection
STAGES = 376_320  # values of an image in the four stages of ResNet-18


def page(found: dict[str, Any]) -> str:
    """The whole page in Markdown, with the parts that were measured."""
    parts = [HEAD.format(machine=found["machine"])]
    for which, make in (("throughput", _throughput), ("memory", _memory), ("curve", _curve)):
        parts += [make(found[which])] if which in found else []
    paragraphs = re.sub(r"\n{3,}", "\n\n", "\n\n".join(parts)).split("\n\n")
    return "\n\n".join(p if p.startswith(("|", "#")) else textwrap.fill(p, 128) for p in paragraphs) + "\n"


HEAD = """# What a sweep costs

Written by `python -m benchmarks.scan --write docs/cost.md` on {machine}:
one process, one thread, no GPU. Networks of torchvision at 224 pixels, shards of 256 images; the bare loop takes 32 images at
once, the sweep as many as it finds right (8). Layers are `layer1` to `layer4`, statistics all that the package has: exemplars
of four sorts, histograms, activity, class means, correlations of every two units, the exact tail of dissection with its spilled
maps, and a reservoir for atlases."""


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown, numbers to the right."""
    align = ["---", *("---:" for _ in heads[1:])]
    return "\n".join("| " + " | ".join(map(str, r)) + " |" for r in (heads, align, *rows))


def _throughput(found: list[dict[str, Any]]) -> str:
    rows = []
    for f in found:
        ms, cells = f["ms"], []
        for base, name, share in (
            ("loop", "sweep", "share with reading"), ("", "without tail", "share without tail"),
            ("network", "sweep of tensors", "share without"),
        ):  # fmt: skip
            if name in ms:
                cells += [*([f"{ms[base]:.1f}"] if base else []), f"{ms[name]:.1f}", f"{f[share]:.0%}"]
            else:
                cells += ["", ""]
        rows.append((f["network"], f["images"], *cells))
    heads = ("network", "images", "loop, ms", "sweep, ms", "share", "sweep without the tail, ms", "share",
             "loop without reading, ms", "sweep of tensors, ms", "share")  # fmt: skip
    verdict = ", ".join(f"{f['network']} {'meets' if f['share with reading'] >= GOAL else 'misses'} it" for f in found)
    text = (
        f"## Throughput\n\nMilliseconds per image, medians of paired rounds over {found[0]['source']}. The bare loop reads "
        "the same files, runs the network and keeps nothing; the one without reading has its inputs in memory, while the sweep "
        "of tensors still turns pixels into inputs. The share is the loop's time in that of the sweep. With every statistic on "
        f"all stages at once, the goal is {GOAL:.0%}: {verdict}. What is lost goes to the statistics, by the number of values "
        "they look at: see the table of each below. ResNet-50 has half the rounds and half the images; where other work runs "
        "on the machine, its shares differ by tens of percent from run to run.\n\n"
    )
    return text + table(heads, rows)


def _memory(found: dict[str, list[list[float]]]) -> str:
    rows = []
    for which, points in found.items():
        first = points[0][1]
        rows += [(which, int(n), f"{mb:.0f}", f"{mb / first:.2f}", f"{disk:.0f}" if disk else "") for n, mb, disk in points]
    growth = "; ".join(f"{w}, {p[0][0]:,} to {p[-1][0]:,} images: {p[-1][1] / p[0][1] - 1:+.0%}" for w, p in found.items())
    first, last = next(iter(found.values()))[0][0], next(iter(found.values()))[-1][0]
    kept = 4 * FRACTION * STAGES * (last - first) / 1e6
    return (
        "## Memory\n\nPeak memory of a process that sweeps so many images into a store (ResNet-18, shards of 32). "
        f"{growth[0].upper() + growth[1:]}; runs of the same differ by some percent. A sweep holds the state "
        "of all shards that were merged and that of the one at hand; what is free is given back to the system after each, "
        "without which pieces of free memory added up. All states but the tail's have a fixed size, which samples and "
        "reservoirs reach after some hundred images. The tail keeps half a percent of all values of every unit, 4 bytes each, "
        f"which is what makes its thresholds exact: here {kept:.1f} MB more for the largest number of images than for the "
        "smallest, once in what is merged and at most once in the shard at hand. That shard also has the values that may yet "
        "be above the threshold, with their neighbors, 12 bytes each: at most four times those that stay and a million more, "
        "and never more than all values of its images.\n\n"
        + table(("statistics", "images", "peak, MB", "to the first", "store, MB"), rows)
    )


# ---- the curve
def fitted(rows: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Seconds per image, seconds per image and million values, and the largest relative error of that."""
    data = np.array(rows, dtype=float)
    images, values, spent = data[:, 0], data[:, 1] / 1e6, data[:, 3]
    matrix = np.stack([images, images * values], 1)
    (a, b), *_ = np.linalg.lstsq(matrix / spent[:, None], np.ones(len(spent)), rcond=None)
    return float(a), float(b), float(np.abs(matrix @ [a, b] / spent - 1).max())


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _curve(found: dict[str, Any]) -> str:
    a, b, error = fitted(found["rows"])
    rows = [(int(n), int(u), f"{v / 1e3:,.0f}", f"{s:.1f}", f"{n * (a + b * v / 1e6):.1f}") for n, v, u, s in found["rows"]]
    text = [
        "## The curve\n\nSeconds of whole sweeps against images and units, and what the fit says: each image costs "
        f"{1000 * a:.1f} ms (reading, network) and {1000 * b:.1f} ms for each million values of its maps (statistics). "
        f"The largest "
        f"error of the fit is {error:.0%}. Deep stages are cheap and early ones dear: `layer1` of ResNet-18 has 64 units "
        f"and half of "
        "all values.\n",
        table(("images", "units", "values per image, thousands", "measured, s", "fitted, s"), rows),
        _concepts(found["labels"])[0],
        _statistics(found),
        _extrapolated(found, a, b),
    ]
    return "\n\n".join(text)


def _concepts(labels: Sequence[Sequence[float]]) -> tuple[str, float, float]:
    k, spent = np.array(labels).T
    slope, start = np.polyfit(k, spent, 1)
    rows = [(int(n), f"{1000 * s:.1f}", f"{1000 * (start + slope * n):.1f}") for n, s in labels]
    text = (
        "Dissection counts labels in a second pass over the stored maps, which runs no network. Milliseconds per image "
        "for the 512 "
        "units of ResNet-18's `layer4`, two layers of dense labels, with reading the labels and without the null models:\n\n"
        + table(("concepts", "measured, ms", "fitted, ms"), rows)
    )
    return text, float(start), max(float(slope), 0.0)


def _statistics(found: dict[str, Any]) -> str:
    small, big = found["small"], found["big"]
    names = sorted(small["names"], key=lambda n: -small["names"][n])
    rows = [(n, f"{small['names'][n]:.2f}", f"{big['names'][n]:.2f}") for n in names]
    rows = [("network", f"{small['network']:.1f}", f"{big['network']:.1f}"), *rows]
    return (
        "Milliseconds per image of each statistic on all four stages, in the first batches of a first shard, where "
        "nothing is known "
        "yet and most of all has to be looked at:\n\n" + table(("statistic", "ResNet-18", "ResNet-50"), rows)
    )


def _tail(values: dict[str, int], units: dict[str, int], images: int) -> float:
    """Bytes of the exact tail."""
    return sum(4 * units[a] * (FRACTION * images * values[a] / units[a] + 1) for a in values)


def _extrapolated(found: dict[str, Any], a: float, b: float) -> str:
    small, big = found["small"], found["big"]
    reading = a - small["network"] / 1000
    _, start, slope = _concepts(found["labels"])
    total = {"ResNet-18": small, "ResNet-50": big}
    rows = []
    for name, images, concepts in (
        ("ResNet-18", BRODEN, BRODEN_CONCEPTS), ("ResNet-50", BRODEN, BRODEN_CONCEPTS), ("ResNet-50", IMAGENET, 0),
    ):  # fmt: skip
        one = total[name]
        values = sum(one["values"].values()) / 1e6
        labels = (start + slope * concepts) * sum(one["units"].values()) / 512 if concepts else 0.0
        per_image = max(reading, 0) + one["network"] / 1000 + b * values + labels
        merging = found["merging"] * -(-images // SHARD) * sum(one["state"].values()) / sum(small["state"].values())
        tail = size(_tail(one["values"], one["units"], images)) if concepts else "-"
        what = f"{name} on {'Broden' if concepts else 'ImageNet'}"
        spent = [hours(images * per_image / cores + merging) for cores in (1, CORES, 8 * CORES)]
        rows.append((what, f"{images:,}", sum(one["units"].values()), f"{1000 * per_image:.0f}", *spent, hours(merging), tail))
    heads = (
        "",
        "images",
        "units",
        "ms per image",
        "one core",
        f"{CORES} cores",
        f"8 machines of {CORES}",
        "of it merging",
        "tail",
    )
    return (
        f"## Broden and ImageNet\n\nExtrapolated from the above: Broden with its {BRODEN_CONCEPTS:,} concepts, ImageNet "
        f"with everything "
        f"but labels, which it has none of. n machines share the images and merge once, in shards of {SHARD:,}; that "
        f"cores do not "
        "slow each other down, and that the store is as fast for all, is assumed. The last column is the memory of exact "
        "thresholds "
        "for all four stages at once, which the process that merges needs once; "
        "it grows with images x units x positions, so take early stages one at a time.\n\n" + table(heads, rows)
    )
