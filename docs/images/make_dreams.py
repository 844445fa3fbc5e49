"""The pictures of the pages on dreams and on inversion: python docs/images/make_dreams.py [dreams|inverted|caricatures]

Needs scikit-image, for its photographs (astronaut: NASA; chelsea and coffee: CC0), and the weights of torchvision's ResNet-18.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

import convoscope as cs
from convoscope.show import strip

HERE = Path(__file__).parent


def write(drawn: strip.Strip, name: str) -> None:
    strip.figure(drawn).save(HERE / name, quality=88, method=6)
    print(HERE / name)


def row(title: str, pictures: Sequence[tuple[Any, str]], columns: int = 4) -> strip.Group:
    return strip.Group(title, [strip.Grid([strip.Tile(np.asarray(p), c, smooth=True) for p, c in pictures], columns)])


def dreams(net: cs.Network) -> None:
    cat, coffee, astronaut = data.chelsea(), data.coffee(), data.astronaut()
    asked = [
        (cat, {"target": "layer2"}, "layer2"), (cat, {"target": "layer3"}, "layer3"),
        (cat, {"target": "layer4", "steps": 20}, "layer4, 20 steps"),
        (cat, {"target": "peacock", "steps": 30}, "peacock, 30 steps"),
        (coffee, {"target": "layer3"}, "layer3"), (coffee, {"target": "layer3", "guide": cat}, "layer3, guided by the cat"),
        (astronaut, {"target": "layer3"}, "layer3"), (astronaut, {"target": "layer3:12", "steps": 20}, "layer3:12, 20 steps"),
    ]  # fmt: skip
    made = [(cs.dream(net, picture, size=448, **settings).image(), word) for picture, settings, word in asked]
    write(strip.Strip("What ResNet-18 sees", [row("", made)], side=224), "dreams.webp")


def inverted(net: cs.Network) -> None:
    pictures = [data.chelsea(), data.coffee(), data.astronaut()]
    made = cs.invert(net, pictures, ["layer1", "layer2", "layer3", "layer4", "log-probabilities"], size=96)
    made.image().save(HERE / "inverted.webp", quality=88, method=6)
    print(HERE / "inverted.webp", made)


def caricatures(net: cs.Network) -> None:
    cat = data.chelsea()
    drawn = cs.caricature(net, cat, ["layer2", "layer3", "layer4"], size=160, steps=256)
    accents = cs.accentuate(net, cat, ["tabby", "lynx", "red fox"], size=160)
    plain = Image.fromarray(cat[:, 75:375])
    groups = [
        row(
            "Caricatures",
            [(plain, "the picture"), *((drawn.image(k), a) for k, a in enumerate(("layer2", "layer3", "layer4")))],
        ),
        row("Accents", [(plain, "the picture"), *((accents.image(k), n) for k, n in enumerate(accents.names))]),
    ]
    write(strip.Strip("The cat, as ResNet-18 has it", groups, side=160), "caricatures.webp")


if __name__ == "__main__":
    network = cs.load("torchvision:resnet18")
    for name in sys.argv[1:] or ("dreams", "inverted", "caricatures"):
        {"dreams": dreams, "inverted": inverted, "caricatures": caricatures}[name](network)
