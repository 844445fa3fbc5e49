"""What a synthesis returns: the pictures, what made them, and how far they convince the network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, UInt8
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.network import Images, Network
from convoscope.targets import Target

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Synthesis:
    """Pictures `(N, C, H, W)`, pixels 0..1, each made for a target.

    `scores` are the targets' values of the pictures as they are, `held_out` their means under transforms that were not used
    to make them (NaN where nothing was moved): a picture whose score falls apart there is noise that fools the network.
    `history` holds the values on the way, `frames` small pictures of some steps.
    """

    network: Network
    targets: Sequence[Target]
    pixels: Float[Tensor, "pictures channels height width"]
    scores: list[float]
    held_out: list[float]
    history: Float[Tensor, "steps pictures"]
    frames: list[tuple[int, UInt8[Tensor, "pictures channels height width"]]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network_name, self.network_hash = self.network.name, self.network.hash

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        size = "{} x {}".format(*self.pixels.shape[2:])
        return f"Synthesis({len(self)} pictures of {size} for {self.network_name}: {', '.join(self.names[:3])})"

    @property
    def inputs(self) -> Images:
        """The pictures in the network's input space, on its device."""
        return self.network.normalize(self.pixels.to(self.network.device, self.network.dtype))

    @property
    def names(self) -> list[str]:
        """What each picture is for, in words."""
        return [name_of(t, self.network) for t in self.targets]

    def image(self, index: int | None = None, columns: int | None = None) -> "Image.Image":
        """The pictures in a grid with their scores, or one of them bare, pixel for pixel."""
        from convoscope.synthesis import drawing

        return drawing.bare(self, index) if index is not None else drawing.picture(self, columns)

    def strip(self) -> "Image.Image":
        """How the pictures came to be: some steps of each, side by side."""
        from convoscope.synthesis import drawing

        return drawing.over_time(self)

    def save(self, path: str | Path) -> Path:
        """Writes the grid (`.png`), a page with the way there and all settings (`.html`), or pixels, scores and settings
        (`.safetensors`). The file is whole or absent."""
        from convoscope.synthesis import drawing

        return drawing.save(self, Path(path))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON values."""
        rows = zip(self.names, self.targets, self.scores, self.held_out, strict=True)
        return {
            "network": {"name": self.network_name, "hash": self.network_hash},
            "size": list(self.pixels.shape[2:]),
            "pictures": [
                {"name": name, "target": target.to_dict(), "score": score, "held_out": None if isnan(held) else held}
                for name, target, score, held in rows
            ],
            "settings": self.settings,
            "diagnostics": self.diagnostics,
        }

    def _repr_html_(self) -> str:
        from convoscope.synthesis import drawing

        return drawing.fragment(self)


def name_of(target: Target, network: Network) -> str:
    """A target in a few words: `tabby, tabby cat`, `layer3:12`, `0.8 layer4:7 - 0.2 layer3:5`."""
    terms, weights = getattr(target, "terms", (target,)), getattr(target, "weights", (1.0,))
    parts = []
    for term, weight in zip(terms, weights, strict=True):
        sign = "- " if weight < 0 else "+ " if parts else ""
        parts.append(f"{sign}{'' if abs(weight) == 1 else f'{abs(weight):g} '}{_name(term, network)}")
    return " ".join(parts).removeprefix("+ ")


def _name(target: Target, network: Network) -> str:
    index, layer = getattr(target, "index", None), getattr(target, "layer", None)
    if isinstance(index, int):
        category = network.category(index).split(",")[0]
        short = {"logit": "", "probability": "p", "log-probability": "log p"}.get(target.name, target.name)
        return f"{short}({category})" if short else category
    if layer is not None:
        channel, place = getattr(target, "channel", None), (getattr(target, "row", None), getattr(target, "column", None))
        at = "" if place == (None, None) else " at {},{}".format(*place)
        return f"{layer}:{channel}{at}" if isinstance(channel, int) else f"{target.name} of {layer}"
    return str(target)


def one_of(index: int, count: int) -> int:
    """A place among `count`. Raises UsageError where there is none."""
    if not -count <= index < count:
        raise UsageError(f"there are pictures 0 to {count - 1}; got {index}")
    return index % count
