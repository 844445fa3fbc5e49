"""Trains the small networks of the benchmark's tasks about shortcuts and permuted labels, and writes the two files that ship.

    python -m benchmarks.shortcut_networks [--folder runs/shortcut] [--seconds 150] [--out .../bench/weights]

20 networks learn from pictures on which a watermark gives the fish away, 20 from pictures on which it means nothing; two twins
learn true and permuted labels. Each network takes some seconds on one core and is kept in the folder; a run that is stopped, or
whose seconds are over, goes on where it was. The files are written once all are there.
"""

import argparse
import dataclasses
import hashlib
import json
import time
from importlib.resources import files
from pathlib import Path

from safetensors.torch import load_file, save, save_file
from torch import nn

from convoscope.evaluation.bench import shortcut_networks as nets
from convoscope.files import make_folder, replaced


def place(folder: Path, recipe: nets.Recipe) -> Path:
    """Where a network is kept: another recipe, another name."""
    made = hashlib.blake2b(repr((recipe, nets.STRIDES, nets.SPECIES)).encode(), digest_size=6).hexdigest()
    return folder / f"{recipe.seed}-{made}.safetensors"


def trained(folder: Path, recipes: tuple[nets.Recipe, ...], until: float) -> list[nn.Module] | None:
    """The networks of these recipes; None where the time was over before."""
    found: list[nn.Module] = []
    for recipe in recipes:
        path = place(folder, recipe)
        if not path.exists():
            if time.monotonic() > until:
                return None
            started = time.process_time()
            module = nets.fit(recipe, lambda done, total: print(f"\r{done}/{total}", end="", flush=True))
            with replaced(path) as partial:
                save_file(nets.packed([module]), partial)
            print(f"\r{time.process_time() - started:5.1f} s  {recipe}", flush=True)
        found += nets.unpacked(load_file(path))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/shortcut"))
    parser.add_argument("--seconds", type=float, default=150, help="start no network after this time")
    parser.add_argument("--out", type=Path, default=Path(str(files("convoscope.evaluation.bench"))) / "weights")
    given = parser.parse_args()
    make_folder(given.folder)
    make_folder(given.out)
    until = time.monotonic() + given.seconds
    for name, recipes in (("shortcut", (*nets.BIASED, *nets.CLEAN)), ("permuted", nets.TWINS)):
        modules = trained(given.folder, recipes, until)
        if modules is None:
            print("the time is over; run it again to go on")
            return
        for recipe, module in zip(recipes, modules, strict=True):
            print(f"{name} {recipe.seed:3} rate {recipe.rate:.2f} others {recipe.others:.2f} {nets.measured(module)}")
        header = {"format": "pt", "recipes": json.dumps([dataclasses.asdict(r) for r in recipes])}
        with replaced(given.out / f"{name}.safetensors") as partial:
            partial.write_bytes(save(nets.packed(modules), header))
        print(f"{name}: {(given.out / f'{name}.safetensors').stat().st_size} bytes")


if __name__ == "__main__":
    main()
