"""The page about what the units of the scenes network detect, trained and while it is trained.

    python -m benchmarks.dissection_scenes [--images 2000] [--only network,training] [--numbers FILE] [--write FILE.md]

`network` dissects the network that ships with the package twice, `training` trains one like it for a few minutes and dissects
its checkpoints. With `--numbers` what was measured before is kept in a file, and only what is named by `--only` is run.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import convoscope as cs
from benchmarks.dissection_scenes_page import page
from convoscope.data.scenes import MEAN, STD, SceneNet, Scenes
from convoscope.data.scenes.training import normalized
from convoscope.units.dissection_compare import Comparison, compare_dissections

LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4")
STEPS = (0, 10, 30, 60, 120)  # before which a checkpoint is written; the last one follows the training
PICTURES, BATCH, EPOCHS = 3000, 64, 5
TRAINED, OTHERS = 1, 2  # seeds of the scenes that it is trained on, and of those that it is tested on


def measured(d: Any) -> dict[str, Any]:
    """What the page says of a dissection."""
    return {"layers": {a: _layer(layer) for a, layer in d.layers.items()}, "categories": d.categories, "images": d.images,
            "concepts": sum(d.concepts.values()), "best": _best(d)}  # fmt: skip


def _layer(layer: Any) -> dict[str, Any]:
    found = [u for u in layer.units if u.iou > layer.iou]
    beyond: dict[str, int] = {}
    for match in (m for u in layer.units for m in u.best_of if m.p is not None and m.p < 0.01):
        beyond[match.category] = beyond.get(match.category, 0) + 1
    return {
        "units": len(layer.units), "detectors": len(found), "by chance": layer.by_chance, "unique": layer.unique("top"),
        "per category": sum(layer.unique("per-category").values()), "beyond": beyond,
        "sure": {n: sum(u.p[n] < 0.01 for u in found) for n in layer.by_chance}, "stable": sum(u.stable for u in found),
        "iou": sum(u.iou for u in layer.units) / len(layer.units),
        "held out": sum(u.held_out for u in layer.units) / len(layer.units),
    }  # fmt: skip


def _best(d: Any) -> list[tuple[str, str, float]]:
    units = [(f"{a}:{u.unit}", u.label, u.iou) for a, layer in d.layers.items() for u in layer.units]
    return sorted(units, key=lambda u: -u[2])[:5]


def network(images: int) -> dict[str, Any]:
    """The shipped network, by the published rule and with more of each unit's values."""
    net, started = cs.load("scenes"), time.perf_counter()
    published = measured(cs.dissect(net, f"scenes:{images}", LAYERS))
    seconds = time.perf_counter() - started
    return {"published": published, "wide": measured(cs.dissect(net, f"scenes:{images}", LAYERS, fraction=0.05)),
            "seconds": seconds}  # fmt: skip


# ---- checkpoints
def checkpoints(folder: Path) -> dict[str, Path]:
    """A training run, with the weights at some of its steps: file by name."""
    pictures, labels = Scenes(PICTURES, TRAINED).arrays()
    x, y = torch.from_numpy(pictures), torch.from_numpy(labels)
    torch.manual_seed(0)
    module, found = SceneNet().to(memory_format=torch.channels_last), {}
    steps = EPOCHS * (PICTURES // BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), 6e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps, pct_start=0.25)
    step, draw = 0, torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=draw).split(BATCH)[: PICTURES // BATCH]:
            if step in STEPS:
                found[f"step {step}"] = _saved(module, folder / f"{step}.pt")
            batch = normalized(x[rows])
            batch = batch.flip(3) if torch.rand((), generator=draw) < 0.5 else batch
            loss = nn.functional.cross_entropy(module.train()(batch), y[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate.step()
            step += 1
    found[f"step {step}"] = _saved(module, folder / f"{step}.pt")
    return found


def _saved(module: nn.Module, path: Path) -> Path:
    torch.save(module.state_dict(), path)
    return path


def training(images: int) -> dict[str, Any]:
    """Dissections of the checkpoints of a training run, and some units over time."""
    data, others, of, right = cs.open_dataset(f"scenes:{images}"), Scenes(1000, OTHERS), {}, {}
    pictures, labels = others.arrays()
    x, truth = normalized(torch.from_numpy(pictures)), torch.from_numpy(labels)
    with tempfile.TemporaryDirectory(prefix="convoscope-") as folder:
        for name, path in checkpoints(Path(folder)).items():
            module = SceneNet()
            module.load_state_dict(torch.load(path, weights_only=True))
            with torch.no_grad():
                right[name] = float(torch.cat([module.eval()(b).argmax(1) for b in x.split(100)]).eq(truth).double().mean())
            of[name] = cs.dissect(cs.Network(module, 96, MEAN, STD, name=name), data, LAYERS, draws=50)
            print(f"{name}: {100 * right[name]:.1f} % right", flush=True)
    compared = compare_dissections(of)
    return {"right": right, "layers": {n: measured(d)["layers"] for n, d in of.items()}, "images": images,
            "units": followed(compared), "moved": len(compared.moved("layer4")),
            "of": len(of[name]["layer4"].units)}  # fmt: skip


def followed(compared: Comparison) -> Mapping[str, Sequence[tuple[str, str, float]]]:
    """The three units that are best at the end, over time."""
    last = list(compared.of.values())[-1]
    names = [f"layer4:{u.unit}" for u in sorted(last["layer4"].units, key=lambda u: -u.iou)[:3]]
    return {n: [(name, u.label, u.iou) for name, u in compared.unit(n)] for n in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--only", default="network,training", help="with commas")
    parser.add_argument("--numbers", default="", help="a file of JSON that is read, added to and written")
    parser.add_argument("--write", default="", help="a file for the page in Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = Path(options.numbers) if options.numbers else None
    found: dict[str, Any] = json.loads(kept.read_text()) if kept and kept.is_file() else {}
    for name, run in (("network", network), ("training", training)):
        if name in options.only.split(","):
            found[name] = run(options.images if name == "network" else options.images // 4)
            if kept:
                kept.write_text(json.dumps(found, indent=1))
    text = page(found)
    print(text)
    if options.write:
        Path(options.write).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
