"""What an explanation returns: the values, what made them, and how far to trust them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import UsageError
from convoscope.core.placing import placed
from convoscope.core.record import canonical
from convoscope.core.spec import Spec
from convoscope.network import Network
from convoscope.targets import Target

if TYPE_CHECKING:
    from PIL import Image

Reduction = Literal["sum", "max-abs", "l2"]


class Attribution:
    """Raw, signed values `(B, C, H, W)` of each image, with method, target, address, seed, network, inputs and diagnostics.

    Values of class activation maps are `(B, 1, h, w)` at the resolution of their layer.
    """

    def __init__(
        self, values: Tensor, method: Spec, target: Target, at: str, seed: int, network: Network, inputs: Tensor,
        diagnostics: dict[str, Any],
    ) -> None:  # fmt: skip
        self.values, self.method, self.target, self.at, self.seed = values, method, target, at, seed
        self.network, self.inputs, self.diagnostics = network, inputs, diagnostics
        self.size = tuple(inputs.shape[2:])
        self.network_name, self.network_hash = network.name, network.hash

    def __repr__(self) -> str:
        notes = ", ".join(f"{k} {_short(v)}" for k, v in self.diagnostics.items())
        return f"Attribution({self.method}, {self.target}, {tuple(self.values.shape)}: {notes})"

    def __len__(self) -> int:
        return len(self.values)

    @property
    def signed(self) -> bool:
        """Whether values on both sides of zero mean something; such maps are drawn with zero in the middle."""
        return bool(getattr(self.method, "signed", True))

    def heatmap(self, reduce: Reduction = "sum", size: tuple[int, int] | None = None) -> Float[Tensor, "batch height width"]:
        """One number per pixel at input size: channels summed, or their largest magnitude (Simonyan et al. 2014), or norm.

        Maps of lower resolution are interpolated bilinearly between the centers of their units' receptive fields, which in
        networks with padded strides lie up to half a stride away from the centers of equal tiles; where a unit sees the
        whole image (squeeze-excite), between the centers of equal tiles.
        """
        ways = {"sum": lambda v: v.sum(1), "max-abs": lambda v: v.abs().amax(1), "l2": lambda v: v.square().sum(1).sqrt()}
        if reduce not in ways:
            raise UsageError(f"no reduction {reduce!r}; expected one of {', '.join(ways)}")
        values = self.values.detach()
        if values.dim() != 4:
            raise UsageError(f"values of shape {tuple(values.shape)} have no rows and columns to draw")
        maps = ways[reduce](values)[:, None]
        size = size or (self.size[0], self.size[1])
        if tuple(maps.shape[2:]) != tuple(self.size):
            maps = self._placed(maps)
        if tuple(maps.shape[2:]) != tuple(size):
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        return maps[:, 0]

    def _placed(self, maps: Tensor) -> Tensor:
        address = self.diagnostics.get("layer", self.at)
        field = self.network.trace(self.inputs).field_of(canonical(self.network.plain, address))
        return placed(maps, field, self.size)

    def image(self, over: Tensor | None = None, index: int | None = None) -> "Image.Image":
        """The maps as a picture with color scale, over the images `(B, C, H, W)` they explain if given; one or all."""
        from convoscope.report import picture

        return picture(self, over, range(len(self)) if index is None else [index])

    def save(self, path: str | Path, over: Tensor | None = None) -> Path:
        """Writes the maps over the images (`.png`) or the values with all that made them (`.safetensors`).

        The file is whole or absent. `over` defaults to the inputs explained.
        """
        from convoscope.report import save

        return save(self, Path(path), self.inputs if over is None else over)

    def to_html(self, over: Tensor | None = None) -> str:
        """A fragment of HTML with the maps over the images (default: the inputs explained), scales and diagnostics."""
        from convoscope.report import fragment_of

        return fragment_of(self, self.inputs if over is None else over)

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values, as JSON values."""
        return {
            "method": self.method.to_dict(),
            "target": self.target.to_dict(),
            "at": self.at,
            "seed": self.seed,
            "network": self.network_name,
            "network_hash": self.network_hash,
            "shape": list(self.values.shape),
            "diagnostics": self.diagnostics,
        }


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(v, float) for v in value):
        return ", ".join(f"{v:.3g}" for v in value[:4]) + (", ..." if len(value) > 4 else "")
    return f"{value:.3g}" if isinstance(value, float) else str(value)
