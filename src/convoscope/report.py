"""From results to something to look at: a figure, a fragment for a notebook, a page. The only user of `show` that knows results."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.files import check_writable, replaced
from convoscope.show import figure as fig
from convoscope.show import overlay as ov

if TYPE_CHECKING:
    from PIL import Image

    from convoscope.results import Attribution

SMALLEST = 224  # pixels; smaller pictures are enlarged before a map is laid over them


def target_text(attribution: "Attribution", index: int) -> str:
    """What image `index` was explained for: a category where the target is one, else the target itself."""
    target = attribution.target
    chosen = getattr(target, "index", None)
    if isinstance(chosen, tuple) and index < len(chosen):
        chosen = chosen[index]
    if not isinstance(chosen, int):
        return str(target)
    name = attribution.network.category(chosen)
    return name if target.name == "logit" else f"{target.name} of {name}"


def picture(attribution: "Attribution", over: Tensor | None, indices: Iterable[int]) -> "Image.Image":
    """The maps of some images as a figure, each with its scale, over the inputs `over` (B, C, H, W) where given."""
    return fig.figure([panel(attribution, over, i) for i in indices])


def panel(attribution: "Attribution", over: Tensor | None, index: int) -> fig.Panel:
    """One map with its scale, titled by the method."""
    values = attribution.heatmap()[index].double().cpu().numpy()
    limit, signed = ov.limit(values), attribution.signed
    if over is None:
        image = ov.enlarged(ov.colorize(values, limit=limit, signed=signed), SMALLEST)
    else:
        image = ov.overlay(values, photograph(attribution, over, index), limit=limit, signed=signed)
    scale = fig.Scale.of(limit, signed)
    return fig.Panel(attribution.method.name, image, caption(attribution, index), scale)


def photograph(attribution: "Attribution", over: Tensor, index: int) -> np.ndarray:
    """The pixels (H, W, 3) of input `index`, enlarged if they are few."""
    if over.dim() != 4 or len(over) != len(attribution):
        raise UsageError(f"{len(attribution)} maps need as many inputs (images, channels, H, W); got shape {tuple(over.shape)}")
    pixels = attribution.network.picture(over[index : index + 1])[0]
    return ov.enlarged(ov.as_bytes(pixels.permute(1, 2, 0).numpy()), SMALLEST)


def caption(attribution: "Attribution", index: int) -> str:
    """The target, where the map was taken, and whether it adds up."""
    parts = [target_text(attribution, index)]
    where = attribution.diagnostics.get("layer") or attribution.at
    parts += [f"at {where}"] if where != "input" else []
    return ", ".join(parts + [f"{name} {value}" for name, value in checks(attribution, index)])


def checks(attribution: "Attribution", index: int) -> list[tuple[str, str]]:
    """The completeness gap or the lost relevance of one image, in words."""
    found = []
    for name in ("completeness gap", "lost relevance"):
        value = at(attribution.diagnostics.get(name), index)
        if value is not None:
            relative = at(attribution.diagnostics.get(f"{name} relative"), index)
            found.append((name, f"{value:.2g}" + (f" ({relative:.2%})" if relative is not None else "")))
    return found


def at(value: Any, index: int) -> Any:
    """The entry of one image in a diagnostic that has one for each, or the one for all."""
    return value[index] if isinstance(value, list | tuple) and index < len(value) else value


def save(attribution: "Attribution", path: Path, over: Tensor | None) -> Path:
    """Write a PNG of the maps or a safetensors file of the values with all that made them; whole or not at all."""
    if path.suffix not in (".png", ".safetensors"):
        raise UsageError(f"cannot tell from {path.name!r} what to write; name it .png or .safetensors")
    check_writable(path)
    with replaced(path) as partial:
        if path.suffix == ".png":
            picture(attribution, over, range(len(attribution))).save(partial, format="PNG")
        else:
            from safetensors.torch import save_file

            made = {"convoscope": json.dumps(attribution.to_dict())}
            save_file({"values": attribution.values.detach().cpu().contiguous()}, partial, made)
    return path
