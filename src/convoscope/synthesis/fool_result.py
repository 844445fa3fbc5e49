"""What fooling a network gives: the pictures, how sure the network is of them, and how that came about."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.files import check_writable, make_folder, replaced, write_text
from convoscope.network import Images, Network
from convoscope.show import curve as curves
from convoscope.show.strip import Grid, Group, Strip, Tile, figure, page
from convoscope.synthesis.drawing import colored
from convoscope.synthesis.result import one_of

if TYPE_CHECKING:
    from PIL import Image

SIDE = 112  # points of a picture in a figure
MOST = 50  # pictures in a figure
SMALL = 64  # pixels; smaller pictures are shown pixel by pixel
WORDS = {
    "gradient": "gradient ascent",
    "evolution-direct": "evolution, a gene for each pixel",
    "evolution-cppn": "evolution of pattern-producing networks",
}


@dataclass(eq=False)
class Fooled:
    """A picture for each class, `levels` 0..255, and the network's confidence 0..1 in it.

    `history` has the best confidence of each class after each step, or generation, from the start on. `frames` are pictures
    of the first few classes on the way.
    """

    network: Network
    by: str
    classes: tuple[int, ...]
    levels: UInt8[Tensor, "pictures channels height width"]
    confidences: list[float]
    history: Float[Tensor, "steps pictures"]
    frames: list[tuple[int, UInt8[Tensor, "pictures channels height width"]]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.levels)

    def __repr__(self) -> str:
        mean = sum(self.confidences) / len(self)
        return f"Fooled({self.network.name} by {self.by}: {len(self)} classes, confidence {mean:.2%} on average)"

    @property
    def pixels(self) -> Float[Tensor, "pictures channels height width"]:
        """The pictures, pixels 0..1."""
        return self.levels.float() / 255

    @property
    def inputs(self) -> Images:
        """The pictures in the network's input space, on its device."""
        return self.network.normalize(self.levels.to(self.network.device, self.network.dtype) / 255)

    @property
    def names(self) -> list[str]:
        """The class of each picture, in words."""
        return [self.network.category(c).split(",")[0] for c in self.classes]

    @property
    def smooth(self) -> bool:
        """Whether pictures are large enough to be enlarged smoothly."""
        return max(self.levels.shape[2:]) >= SMALL

    @property
    def step(self) -> str:
        """What is counted: "step" or "generation"."""
        return "step" if self.by == "gradient" else "generation"

    @property
    def curve(self) -> Float[Tensor, "steps 3"]:
        """Median, mean and least of the classes' best confidences after each step."""
        h = self.history
        return torch.stack([h.quantile(0.5, dim=1), h.mean(1), h.amin(1)], 1)

    # ---- pictures
    def picture(self, index: int = 0) -> "Image.Image":
        """One picture bare, pixel for pixel: what the confidence is about."""
        from PIL import Image

        pixels = self.levels[one_of(index, len(self))].permute(1, 2, 0).numpy()
        if pixels.shape[2] not in (1, 3):
            raise UsageError(f"pictures of {pixels.shape[2]} channels cannot be shown; their values are in `pixels`")
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)

    def image(self, index: int | None = None) -> "Image.Image":
        """All pictures with their confidences, and the curve; or one of them bare."""
        return figure(self._grid()) if index is None else self.picture(index)

    def strip(self) -> "Image.Image":
        """How the pictures came to be: some steps of each, side by side."""
        return figure(self._way())

    def _grid(self) -> Strip:
        order, facts = range(len(self)), self.facts()
        if len(self) > MOST:
            order = torch.tensor(self.confidences).argsort(descending=True, stable=True)[:MOST].tolist()
            facts = [*facts, f"the {MOST} classes it is surest of"]
        tiles = [
            Grid([Tile(colored(self.levels[k]), percent(self.confidences[k]), self.smooth)], 1, self.names[k]) for k in order
        ]
        groups = [Group("", tiles[i : i + 5]) for i in range(0, len(tiles), 5)]
        return Strip("Pictures that fool the network", groups, facts, side=SIDE, chart=self.chart())

    def _way(self, most: int = 8) -> Strip:
        keep = np.unique(np.linspace(0, len(self.frames) - 1, min(most, len(self.frames))).round().astype(int))
        frames = [self.frames[k] for k in keep]
        groups = [
            Group(f"{name}, {self.step} by {self.step}", [Grid([self._tile(k, s, f[k]) for s, f in frames], len(frames))])
            for k, name in enumerate(self.names[: len(frames[0][1])])
        ]
        return Strip("How they came to be", groups, self.facts()[:1], side=80)

    def _tile(self, index: int, step: int, pixels: Tensor) -> Tile:
        return Tile(colored(pixels), f"{step}: {percent(float(self.history[step, index]))}", self.smooth)

    def chart(self) -> "Image.Image":
        """Median, mean and least confidence over the steps."""
        x = list(range(len(self.history)))
        names = ("median", "mean", "least certain class")
        lines = [curves.Line(name, x, column.tolist()) for name, column in zip(names, self.curve.T, strict=True)]
        return curves.chart(lines, x=self.step, y="confidence", low=0.0, high=1.0)

    def facts(self) -> list[str]:
        """What made the pictures and how sure the network is, in words."""
        size = "{} x {}".format(*self.levels.shape[2:])
        steps = f"{len(self.history) - 1} {self.step}s"
        sure = sorted(self.confidences)
        return [
            f"{self.network.name}, {size}, by {WORDS[self.by]}, {steps}, seed {self.settings.get('seed', 0)}",
            f"confidence in {len(self)} classes: {percent(sum(sure) / len(sure))} on average, {percent(sure[0])} at least",
        ]

    # ---- files
    def save(self, path: str | Path, command: str = "") -> Path:
        """Writes all pictures with the curve (`.png`), a page with the way there and all settings (`.html`), or pixels,
        history and settings (`.safetensors`). The file is whole or absent."""
        path = Path(path)
        if path.suffix not in (".png", ".html", ".safetensors"):
            raise UsageError(f"cannot save {str(path)!r}: expected .png, .html or .safetensors")
        check_writable(path)
        if path.suffix == ".html":
            write_text(path, self.to_html(command))
            return path
        with replaced(path) as partial:
            if path.suffix == ".png":
                self.image().save(partial, format="PNG")
            else:
                from safetensors.torch import save

                tensors = {"pixels": self.levels.contiguous(), "history": self.history.contiguous()}
                partial.write_bytes(save(tensors, metadata={"convoscope": json.dumps(self.to_dict())}))
        return path

    def save_pictures(self, folder: str | Path) -> list[Path]:
        """Writes each picture bare, as a PNG of its class's number and name: what the confidences are about."""
        folder, paths = Path(folder), []
        make_folder(folder)
        for index, (number, name) in enumerate(zip(self.classes, self.names, strict=True)):
            word = "".join(c if c.isalnum() else "-" for c in name).strip("-")
            path = folder / f"{number:04d}-{word}.png"
            with replaced(path) as partial:
                self.picture(index).save(partial, format="PNG")
            paths.append(path)
        return paths

    def to_html(self, command: str = "") -> str:
        """The pictures, the curve, the way there and all settings, complete in one file."""
        whole, way = self._grid(), self._way()
        before = len(whole.groups)
        settings = ", ".join(f"{k}: {'none' if v is None else v}" for k, v in self.settings.items())
        whole = replace(whole, groups=[*whole.groups, *way.groups], about=[*whole.about, settings])
        return page(whole, command=command, least=SIDE, before=before)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON values."""
        rows = zip(self.classes, self.names, self.confidences, strict=True)
        return {
            "network": {"name": self.network.name, "hash": self.network.hash},
            "size": list(self.levels.shape[2:]),
            "pictures": [{"class": c, "name": name, "confidence": sure} for c, name, sure in rows],
            "curve": dict(zip(("median", "mean", "least"), self.curve.T.tolist(), strict=True)),
            "settings": self.settings,
            "diagnostics": self.diagnostics,
        }

    def _repr_html_(self) -> str:
        from convoscope.show.html import image

        return image(self.image(), repr(self))


def percent(share: float) -> str:
    """`99.98 %`; 100 % only where it is."""
    digits = 1 if share < 0.99 else 2 if share < 0.9995 else 3
    text = f"{100 * share:.{digits}f}"
    return ("> 99.999" if text == "100.000" and share < 1 else text.rstrip("0").rstrip(".") if "." in text else text) + " %"
