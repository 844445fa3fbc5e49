"""The picture of the page on experts: python docs/images/make_experts.py FOLDER

Needs MNIST and LeNet from the folder that CONVOSCOPE_TESTDATA names; the experts are trained once and kept in FOLDER.
"""

import gzip
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import convoscope as cs
from convoscope.images.penalties import L2
from convoscope.show.strip import Grid, Group, Strip, Tile, figure

DATA = Path(os.environ["CONVOSCOPE_TESTDATA"])
RECIPES = {
    "Gaussian": "gaussian",
    "RBM": "rbm:count=10000",
    "denoising autoencoder": "denoising:noise=0.5,width=16,count=8000,epochs=4",
}


def digits(name: str, count: int) -> Tensor:
    raw = np.frombuffer(
        gzip.decompress((DATA / "mnist/MNIST/raw" / f"{name}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
    )
    pixels = torch.from_numpy(raw.reshape(-1, 1, 28, 28)[:count].copy()).float() / 255
    return F.interpolate(pixels, (32, 32), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def expert(recipe: str, folder: Path) -> Any:
    path = folder / f"{recipe.partition(':')[0]}.safetensors"
    if not path.is_file():
        cs.train_expert(recipe, digits("train", 20_000), store=path.with_suffix(".training")).save(path)
    return cs.load_expert(path)


def main(folder: Path) -> None:
    sys.path.append(str(DATA))
    import loaders

    net = cs.Network(loaders.lenet(), 32, channels=1, categories=[str(i) for i in range(10)])
    experts, groups = {name: expert(recipe, folder) for name, recipe in RECIPES.items()}, []

    def row(title: str, pixels: Tensor, note: str = "") -> None:
        chance = net.module(pixels).exp().diagonal().tolist()
        told = ", ".join(f"{name} {float(e(pixels).mean()):,.0f}" for name, e in experts.items())
        tiles = [Tile(np.kron(p[0].numpy(), np.ones((4, 4))), f"{i}: {chance[i]:.3f}") for i, p in enumerate(pixels)]
        groups.append(Group(title, [Grid(tiles, 10)], f"{note}log densities, mean of ten: {told}"))
        print(title, f"probability {min(chance):.3f} to {max(chance):.3f};", told)

    def made(**settings: Any) -> Tensor:
        return cs.maximize(net, list(range(10)), "pixels", transforms=(), start="gray", steps=300, **settings).pixels

    row("log p(class | x): plain activation maximization", made())
    row("log p(class | x) with an L2 penalty: general activation maximization", made(penalties=[L2(weight=0.1)]))
    for title, name, weight in (
        ("log p(class | x) + w log p(x), with the Gaussian of the data", "Gaussian", 0.01),
        ("... with a restricted Boltzmann machine", "RBM", 0.01),
        ("... with a denoising autoencoder", "denoising autoencoder", 0.03),
    ):
        row(title, made(expert=experts[name], expert_weight=weight), f"w = {weight}; ")
    real = digits("t10k", 500)
    said = net.module(real).argmax(1)
    row("real digits of the test set", torch.stack([real[(said == i).nonzero()[3, 0]] for i in range(10)]))
    about = ["Under each picture: the class and its probability. The densities of RBM and autoencoder are up to a constant."]
    picture = figure(Strip("What LeNet would like to see of each digit, with and without an expert", groups, about))
    picture.convert("L").quantize(32).save(Path(__file__).parent / "experts-mnist.png", optimize=True)


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]))
