"""What a dream returns: the picture at its own size, the one it came from, and how it came about."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import UsageError
from convoscope.files import check_writable, replaced, write_text
from convoscope.network import Network
from convoscope.show import strip
from convoscope.synthesis.drawing import colored
from convoscope.synthesis.result import name_of
from convoscope.targets import Target
from convoscope.targets.features import BestMatch

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Dream:
    """A picture `(1, C, H, W)`, pixels 0..1, and the `original` of the same size.

    `history` holds the target of each step, the mean over windows (from octave to octave the windows are others); `frames`
    a small picture of the start and of the end of each octave, with its size.
    """

    network: Network
    target: Target
    pixels: Float[Tensor, "1 channels height width"]
    original: Float[Tensor, "1 channels height width"]
    history: Sequence[float]
    frames: list[tuple[str, UInt8[Tensor, "1 channels height width"]]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        height, width = self.pixels.shape[2:]
        return f"Dream({width} x {height}, {self.name} of {self.network.name})"

    @property
    def name(self) -> str:
        """The target in words."""
        if isinstance(self.target, BestMatch):
            return f"{self.target.layer}, guided"
        return name_of(self.target, self.network)

    def image(self) -> "Image.Image":
        """The dream, pixel for pixel."""
        from PIL import Image

        return Image.fromarray(colored(self.pixels[0]))

    def strip(self) -> "Image.Image":
        """The picture, and what it was after each octave."""
        return strip.figure(_over_octaves(self))

    def save(self, path: str | Path, command: str = "") -> Path:
        """Writes the dream with its settings (`.png`, `.jpg`), a page with the original, the way there and all settings
        (`.html`), or pixels and settings (`.safetensors`). The file is whole or absent."""
        path = Path(path)
        ending = path.suffix.lower()
        if ending not in (".png", ".jpg", ".jpeg", ".html", ".htm", ".safetensors"):
            raise UsageError(f"cannot save {str(path)!r}: expected .png, .jpg, .html or .safetensors")
        check_writable(path)
        if ending in (".html", ".htm"):
            write_text(path, _page(self, command))
            return path
        with replaced(path) as partial:
            if ending == ".safetensors":
                from safetensors.torch import save

                tensors = {"pixels": self.pixels.cpu().contiguous(), "original": self.original.cpu().contiguous()}
                partial.write_bytes(save(tensors, metadata={"convoscope": json.dumps(self.to_dict())}))
            elif ending == ".png":
                save_png(self.image(), partial, self.to_dict())
            else:
                data = io.BytesIO()  # Pillow writes a JPEG to a full disk without noticing
                self.image().save(data, format="JPEG", quality=92)
                partial.write_bytes(data.getbuffer())
        return path

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON values."""
        return {
            "network": {"name": self.network.name, "hash": self.network.hash},
            "size": list(self.pixels.shape[2:]),
            "target": self.name,
            "history": list(self.history),
            "settings": self.settings,
            "diagnostics": self.diagnostics,
        }

    def _repr_html_(self) -> str:
        from convoscope.show.html import image

        return image(self.image(), repr(self))


def save_png(image: "Image.Image", path: Path, told: dict[str, Any]) -> None:
    """A PNG that says, under `convoscope`, how it was made."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("convoscope", json.dumps(told))
    image.save(path, format="PNG", pnginfo=info)


def _over_octaves(made: Dream) -> strip.Strip:
    tiles = [strip.Tile(colored(f[0]), name, smooth=True) for name, f in made.frames]
    tiles[0] = strip.Tile(tiles[0].image, "the picture", smooth=True)
    about = [f"{made.name}, {made.network.name}, {made.settings['steps']} steps at each size, seed {made.settings['seed']}"]
    return strip.Strip("The dream at each octave", [strip.Group("", [strip.Grid(tiles, len(tiles))])], about, side=192)


def _page(made: Dream, command: str) -> str:
    height, width = made.pixels.shape[2:]
    small = [F.interpolate(p.float().cpu(), scale_factor=s, mode="area") if (s := 640 / max(height, width)) < 1 else p
             for p in (made.original, made.pixels)]  # fmt: skip
    pair = [strip.Tile(colored(p[0]), word, smooth=True) for p, word in zip(small, ("the picture", "the dream"), strict=True)]
    tiles = _over_octaves(made).groups[0].grids[0].tiles
    told = ", ".join(f"{k}: {_short(v)}" for k, v in made.settings.items())
    groups = [strip.Group("", [strip.Grid(pair, 2)]), strip.Group("At each octave", [strip.Grid(tiles, 3)])]
    title = f"What {made.network.name} sees in a picture"
    about = [f"{made.name}, {width} x {height} pixels", told]
    return strip.page(strip.Strip(title, groups, about, side=304), command=command, least=640)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return value.get("name", "") + (f" of {value['layer']}" if "layer" in value else "")
    return f"{value:.3g}" if isinstance(value, float) else str(value)
