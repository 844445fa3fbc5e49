"""Makes images-resnet18.webp: three units of ResNet-18 in pictures made of waves, of levels, of pixels, and unmoved."""

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
    panels = []
    made = {name: cs.maximize(net, [cs.Channel("layer3.1.bn2", u) for u in UNITS], image, steps=160, **more)
            for name, (image, more) in WAYS.items()}  # fmt: skip
    for k in range(len(UNITS)):
        for name, found in made.items():
            caption = f"{found.scores[k]:.2f}; moved {found.held_out[k]:.2f}"
            panels.append(Panel(name if k == 0 else "", found.pixels[k].permute(1, 2, 0).numpy(), caption))
    drawn = figure(panels, len(WAYS), width=168).convert("RGB")
    drawn.resize((drawn.width * 2 // 3, drawn.height * 2 // 3)).save(
        Path(__file__).with_name("images-resnet18.webp"), quality=80
    )


if __name__ == "__main__":
    main()
