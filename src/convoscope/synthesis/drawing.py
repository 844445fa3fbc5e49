"""A synthesis as pictures and pages."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.files import check_writable, replaced, write_text
from convoscope.show import strip
from convoscope.show.figure import number
from convoscope.synthesis.result import Synthesis, one_of

if TYPE_CHECKING:
    from PIL import Image

SIDE = 144  # points


def colored(pixels: Tensor) -> np.ndarray:
    """Pixels `(C, H, W)`, 0..1 or bytes, as (H, W, 3) bytes."""
    pixels = pixels.cpu()
    pixels = pixels.float() / 255 if not pixels.is_floating_point() else pixels.float()
    pixels = pixels if len(pixels) == 3 else (pixels if len(pixels) == 1 else pixels.mean(0, keepdim=True)).expand(3, -1, -1)
    return pixels.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()


def bare(made: Synthesis, index: int) -> "Image.Image":
    """One picture, pixel for pixel."""
    from PIL import Image

    return Image.fromarray(colored(made.pixels[one_of(index, len(made))]))


def contact(pixels: Tensor) -> "Image.Image":
    """Pictures `(N, C, H, W)` in 0..1 side by side, pixel for pixel: what a live preview shows."""
    from PIL import Image

    tiles = [colored(p) for p in pixels.detach()]
    columns = math.ceil(math.sqrt(len(tiles)))
    high, wide = tiles[0].shape[0] + 2, tiles[0].shape[1] + 2
    sheet = np.full((-(-len(tiles) // columns) * high, columns * wide, 3), 255, np.uint8)
    for k, tile in enumerate(tiles):
        top, left = k // columns * high, k % columns * wide
        sheet[top : top + high - 2, left : left + wide - 2] = tile
    return Image.fromarray(sheet[:-2, :-2])


def about(made: Synthesis) -> list[str]:
    """What made the pictures, in a line or two."""
    s = made.settings
    image = s.get("image", {})
    image = image.get("name", "") if isinstance(image, dict) else str(image)
    words = [f"{image} pictures of {made.pixels.shape[2]} x {made.pixels.shape[3]}" if image else "", made.network_name]
    words += [f"{s['steps']} steps" if "steps" in s else "", f"seed {s['seed']}" if "seed" in s else ""]
    moved = (
        [] if math.isnan(made.held_out[0]) else ["below each: its score, and the mean under transforms it was not made with"]
    )
    return [", ".join(w for w in words if w), *moved]


def grid(made: Synthesis, columns: int | None = None) -> strip.Strip:
    """All pictures with their names and scores."""
    columns = columns or min(len(made), 5)
    tiles = []
    for k, name in enumerate(made.names):
        held = made.held_out[k]
        caption = number(made.scores[k]) + ("" if math.isnan(held) else f", moved {number(held)}")
        tiles.append(strip.Grid([strip.Tile(colored(made.pixels[k]), caption, smooth=True)], 1, name))
    groups = [strip.Group("", tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return strip.Strip(f"What {made.network_name} would like to see", groups, about(made), side=SIDE)


def over_time(made: Synthesis) -> "Image.Image":
    """Some steps of each picture, side by side."""
    return strip.figure(_time(made))


def _time(made: Synthesis, most: int = 8) -> strip.Strip:
    frames = made.frames
    if len(frames) > most:
        keep = np.unique(np.linspace(0, len(frames) - 1, most).round().astype(int))
        frames = [frames[k] for k in keep]
    groups = [
        strip.Group(name, [strip.Grid([strip.Tile(colored(f[k]), f"step {s}", smooth=True) for s, f in frames], len(frames))])
        for k, name in enumerate(made.names)
    ]
    return strip.Strip("How they came to be", groups, about(made)[:1], side=96)


def picture(made: Synthesis, columns: int | None = None) -> "Image.Image":
    """The grid as a picture."""
    return strip.figure(grid(made, columns))


def page(made: Synthesis, command: str = "") -> str:
    """The grid, the way there and all settings, complete in one file."""
    whole, way = grid(made), _time(made)
    settings = ", ".join(f"{k}: {_short(v)}" for k, v in made.settings.items())
    drawn = strip.Strip(whole.title, [*whole.groups, *way.groups], [*whole.about, settings], side=SIDE)
    return strip.page(drawn, command=command, least=SIDE)


def fragment(made: Synthesis) -> str:
    """For notebooks: the grid."""
    from convoscope.show.html import image

    return image(picture(made), repr(made))


def save(made: Synthesis, path: Path, command: str = "") -> Path:
    """Writes a `.png`, `.html` or `.safetensors` file, whole or not at all."""
    ending = path.suffix.lower()
    if ending not in (".png", ".html", ".htm", ".safetensors"):
        raise UsageError(f"cannot save {str(path)!r}: expected .png, .html or .safetensors")
    check_writable(path)
    if ending == ".safetensors":
        _save_values(made, path)
    elif ending == ".png":
        with replaced(path) as partial:
            picture(made).save(partial, format="PNG", pnginfo=_recorded(made))
    else:
        write_text(path, page(made, command))
    return path


def _recorded(made: Synthesis) -> Any:
    """What made the pictures, as text in the file: `PIL.Image.open(path).text["convoscope"]`."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("convoscope", json.dumps(made.to_dict()))
    return info


def _save_values(made: Synthesis, path: Path) -> None:
    from safetensors.torch import save

    with replaced(path) as partial:
        tensors = {"pixels": made.pixels.contiguous(), "history": made.history.contiguous()}
        partial.write_bytes(save(tensors, metadata={"convoscope": json.dumps(made.to_dict())}))


def _short(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:
        rest = ", ".join(f"{k} {_short(v)}" for k, v in value.items() if k not in ("kind", "name"))
        return value["name"] + (f" ({rest})" if rest else "")
    if isinstance(value, list | tuple):
        return ", ".join(_short(v) for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
