"""The pictures of docs/gallery.md: ten classes and ten units of layer3 of torchvision's ResNet-18.

    python -m benchmarks.gallery [--part classes] [--store runs/gallery] [--out docs/images]

Needs the weights of ImageNet, takes some minutes on a CPU, and goes on where it was stopped.
"""

import argparse
from pathlib import Path
from typing import Any

CLASSES = ("goldfish", "flamingo", "tabby", "ladybug", "monarch", "school bus", "balloon", "castle", "strawberry", "daisy")
UNITS = (2, 4, 5, 6, 8, 10, 11, 12, 13, 15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("classes", "units"), action="append")
    parser.add_argument("--store", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    import convoscope as cs

    net = cs.load("torchvision:resnet18")
    net.name = "ResNet-18"
    for part in options.part or ("units", "classes"):
        settings: dict[str, Any] = {"seed": 0, "store": options.store, "batch_size": 5}
        if part == "units":
            made = cs.maximize(net, [f"layer3.1.bn2:{k}" for k in UNITS], cs.Fourier(128), steps=256, **settings)
        else:
            seen = [cs.Crops(share=0.8, spread=0.15, around=0.08, size=144), cs.Noise(0.08)]
            made = cs.maximize(net, list(CLASSES), cs.MACO(192), steps=128, transforms=seen, views=2, **settings)
        made.image(columns=5).save(options.out / f"gallery-{part}.webp", quality=85, method=6)
        print(
            part,
            *(f"{n}: {s:.3g}, moved {h:.3g}" for n, s, h in zip(made.names, made.scores, made.held_out, strict=True)),
            sep="\n",
        )


if __name__ == "__main__":
    main()
