"""Makes images-resnet18.webp, units of ResNet-18 in pictures of all kinds, and images-maco.webp, classes of it."""

from pathlib import Path

import convoscope as cs
from convoscope.show.figure import Panel, figure

UNITS = (0, 1, 131)
WAYS = {
    "Fourier": (cs.Fourier(112), {}),
    "Laplacian": (cs.Laplacian(112), {}),
    "Pixels": (cs.Pixels(112), {}),
    "Fourier, colors as they are": (cs.Fourier(112, decorrelate=False), {}),
    "Fourier, without transforms": (cs.Fourier(112), {"transforms": ()}),
}


def main() -> None:
    net = cs.load("torchvision:resnet18")
    _compare(net)
    _deep(net)


def _compare(net: cs.Network) -> None:
    """Pictures of middle units, of all kinds."""
    made = {name: cs.maximize(net, [cs.Channel("layer3.1.bn2", u) for u in UNITS], image, steps=160, **more)
            for name, (image, more) in WAYS.items()}  # fmt: skip
    panels = []
    for k in range(len(UNITS)):
        for name, found in made.items():
            caption = f"{found.scores[k]:.2f}; moved {found.held_out[k]:.2f}"
            panels.append(Panel(name if k == 0 else "", found.pixels[k].permute(1, 2, 0).numpy(), caption))
    _save(panels, len(WAYS), "images-resnet18.webp")


def _deep(net: cs.Network) -> None:
    """Pictures of classes with the spectrum of natural ones."""
    boxes = (cs.Crops(0.45, size=112), cs.Noise(0.1), cs.Noise(0.1, "uniform"))
    found = cs.maximize(net, ["tabby", "flamingo", "dalmatian", "teapot"], cs.MACO(192), steps=128, transforms=boxes)
    captions = [f"{a:.1f}; moved {b:.1f}" for a, b in zip(found.scores, found.held_out, strict=True)]
    pictures = found.pixels.permute(0, 2, 3, 1).numpy()
    _save([Panel(*each) for each in zip(found.names, pictures, captions, strict=True)], 4, "images-maco.webp")


def _save(panels: list[Panel], columns: int, name: str) -> None:
    drawn = figure(panels, columns, width=168 if columns == len(WAYS) else 224).convert("RGB")
    drawn.resize((drawn.width * 2 // 3, drawn.height * 2 // 3)).save(Path(__file__).with_name(name), quality=80)


if __name__ == "__main__":
    main()
