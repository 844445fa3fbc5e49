"""What an inversion returns: a picture for each layer and code, how near each code is, and the pictures they are from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, UInt8
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.files import check_writable, replaced, write_text
from convoscope.network import Network
from convoscope.show import strip
from convoscope.show.figure import number
from convoscope.synthesis.drawing import colored
from convoscope.synthesis.dream_result import save_png

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Inversion:
    """Pictures `(layers, pictures, C, H, W)`, pixels 0..1, and the `originals` `(pictures, C, H, W)` where they are known.

    `errors[layer][picture]` is `|a - c|^2 / |c|^2` of the code a of the picture made and the code c it was made for.
    `history` holds these errors at each evaluation, `frames` small pictures of some steps.
    """

    network: Network
    layers: list[str]
    pixels: Float[Tensor, "layers pictures channels height width"]
    originals: Float[Tensor, "pictures channels height width"] | None
    errors: list[list[float]]
    history: Float[Tensor, "steps layers pictures"]
    frames: list[tuple[int, UInt8[Tensor, "layers pictures channels height width"]]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        found = ", ".join(f"{a} {number(sum(e) / len(e))}" for a, e in zip(self.layers, self.errors, strict=True))
        return f"Inversion({self.pixels.shape[1]} pictures of {self.network.name}, mean error: {found})"

    @property
    def differences(self) -> list[list[float]] | None:
        """The root mean squared difference of pixels 0..1 from the originals, for each layer and picture."""
        if self.originals is None:
            return None
        return (self.pixels - self.originals).square().flatten(2).mean(2).sqrt().tolist()

    def image(self, layer: str | None = None, picture: int = 0) -> "Image.Image":
        """The pictures beside their originals, or that of one layer and picture, pixel for pixel."""
        if layer is None:
            return strip.figure(_drawn(self))
        if layer not in self.layers or not 0 <= picture < self.pixels.shape[1]:
            raise UsageError(
                f"there are layers {', '.join(self.layers)} and pictures 0 to {self.pixels.shape[1] - 1}; "
                f"got {layer!r}, {picture}"
            )
        from PIL import Image

        return Image.fromarray(colored(self.pixels[self.layers.index(layer), picture]))

    def strip(self) -> "Image.Image":
        """How the pictures came to be: some steps of each."""
        return strip.figure(strip.Strip("How they came to be", _over_time(self), [_about(self)], side=96))

    def save(self, path: str | Path, command: str = "") -> Path:
        """Writes the pictures beside their originals (`.png`), a page with the way there and all settings (`.html`), or pixels,
        errors and settings (`.safetensors`). The file is whole or absent."""
        path = Path(path)
        ending = path.suffix.lower()
        if ending not in (".png", ".html", ".htm", ".safetensors"):
            raise UsageError(f"cannot save {str(path)!r}: expected .png, .html or .safetensors")
        check_writable(path)
        if ending in (".html", ".htm"):
            drawn = _drawn(self)
            told = ", ".join(f"{k}: {_short(v)}" for k, v in self.settings.items())
            whole = strip.Strip(drawn.title, [*drawn.groups, *_over_time(self)], [*drawn.about, told], side=144)
            write_text(path, strip.page(whole, command=command, least=144))
            return path
        with replaced(path) as partial:
            if ending == ".png":
                save_png(self.image(), partial, self.to_dict())
            else:
                from safetensors.torch import save

                tensors = {"pixels": self.pixels.contiguous(), "history": self.history.contiguous()}
                tensors |= {} if self.originals is None else {"originals": self.originals.contiguous()}
                partial.write_bytes(save(tensors, metadata={"convoscope": json.dumps(self.to_dict())}))
        return path

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON values."""
        pixels = self.differences
        return {
            "network": {"name": self.network.name, "hash": self.network.hash},
            "size": list(self.pixels.shape[3:]),
            "pictures": self.pixels.shape[1],
            "layers": [
                {"layer": a, "errors": self.errors[k]} | ({} if pixels is None else {"differences": pixels[k]})
                for k, a in enumerate(self.layers)
            ],
            "settings": self.settings,
            "diagnostics": self.diagnostics,
        }

    def _repr_html_(self) -> str:
        from convoscope.show.html import image

        return image(self.image(), repr(self))


def _about(made: Inversion) -> str:
    s = made.settings
    words = [made.network.name, f"by {s['by']}", f"{s['steps']} evaluations" if "steps" in s else "", f"seed {s['seed']}"]
    return ", ".join(w for w in words if w)


def _drawn(made: Inversion) -> strip.Strip:
    """A row for each picture: the original, then what each layer gives back."""
    groups = []
    for k in range(made.pixels.shape[1]):
        tiles = [] if made.originals is None else [strip.Tile(colored(made.originals[k]), "the picture", smooth=True)]
        for a, (layer, pixels) in enumerate(zip(made.layers, made.pixels, strict=True)):
            tiles.append(strip.Tile(colored(pixels[k]), f"{layer}, error {number(made.errors[a][k])}", smooth=True))
        groups.append(strip.Group("", [strip.Grid(tiles, min(len(tiles), 6))]))
    about = [_about(made), "error: |a - c|^2 / |c|^2 of the code a of the picture made and the code c of the original"]
    return strip.Strip(f"What layers of {made.network.name} have kept", groups, about, side=160)


def _over_time(made: Inversion, most: int = 8) -> Sequence[strip.Group]:
    frames = made.frames[-most:]
    return [
        strip.Group(
            f"{layer}" + (f", picture {k + 1}" if made.pixels.shape[1] > 1 else ""),
            [strip.Grid([strip.Tile(colored(f[a, k]), f"step {s}", smooth=True) for s, f in frames], len(frames))],
        )
        for a, layer in enumerate(made.layers)
        for k in range(made.pixels.shape[1])
        if frames
    ]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("name") or ", ".join(f"{k} {_short(v)}" for k, v in value.items()))
    if isinstance(value, list | tuple):
        return ", ".join(_short(v) for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
