"""Adversarial examples as pictures: original, perturbation, adversarial image."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.data.sealed import write_sealed
from convoscope.files import check_writable, replaced, write_text
from convoscope.network import Prediction
from convoscope.show.figure import Panel, Scale, figure, number
from convoscope.show.overlay import colorize, enlarged

if TYPE_CHECKING:
    from PIL import Image

    from convoscope.synthesis.adversarial_result import Attack

FACTORS = (1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 50, 64, 80, 100, 128, 200, 256, 400, 512, 1000)
LEAST = 192  # pixels across of a small picture in the figure


def figure_of(*found: "Attack", rows: int | Sequence[int] | None = None) -> "Image.Image":
    """One row for each image, on white paper: all, the first so many, or those chosen of one attack."""
    panels = [p for a, i in chosen(found, rows) for p in panels_of(a, i)]
    return figure(panels, columns=3, width=220, title=title_of(*found))


def chosen(found: Sequence["Attack"], rows: int | Sequence[int] | None) -> list[tuple["Attack", int]]:
    """Images with the attack they belong to."""
    pairs = [(a, i) for a in found for i in range(len(a))]
    return pairs[:rows] if rows is None or isinstance(rows, int) else [pairs[i] for i in rows]


def title_of(*found: "Attack") -> str:
    """The attack and how far it came, in a line."""
    first, count = found[0], sum(len(a) for a in found)
    reached, saved = (sum(int(getattr(a, k).sum()) for a in found) for k in ("success", "saved_success"))
    towards = "to the target" if first.targeted else "to another class"
    rounded = "all of them also" if reached == saved == count else f"{saved}"
    title = getattr(first.method, "title", first.method.name)
    return f"{title} on {first.network.name}: {reached} of {count} {towards}, {rounded} as 8-bit pictures"


def panels_of(found: "Attack", i: int) -> list[Panel]:
    """Original, perturbation and adversarial image."""
    delta = found.perturbation[i]
    said = {w: found.predictions(w, 2)[i] for w in ("before", "after", "saved")}
    magnified, factor, scale = magnified_of(delta)
    size = f"largest change {levels(float(found.linf[i]))}, norm {number(float(found.l2[i]))}"
    saved = _saved(found, i, said["after"][0], said["saved"][0])
    goal = found.network.category(int(found.goal[i])).split(",")[0]
    reached = "" if found.success[i] else f"did not get {'to' if found.targeted else 'away from'} {goal}; "
    return [
        Panel(_name(said["before"][0]), _shown(found.clean[i]), f"original: {_line(said['before'])}"),
        Panel(f"perturbation x {factor:g}", magnified, size, scale),
        Panel(_name(said["after"][0]), _shown(found.pixels[i]), f"{reached}{_line(said['after'])}{saved}"),
    ]


def _saved(found: "Attack", i: int, after: Prediction, saved: Prediction) -> str:
    if after.index == saved.index:
        return f"; as an 8-bit picture {percent(saved.probability)}"
    lost = "lost when rounded to 8 bits: " if found.success[i] and not found.saved_success[i] else "as an 8-bit picture "
    return f"; {lost}{_line([saved])}"


def levels(value: float) -> str:
    """A change of pixels in steps of a picture file: `8/255`."""
    return f"{number(value * 255)}/255"


def magnified_of(delta: Tensor) -> tuple[Any, float, Scale | None]:
    """A perturbation large enough to see, around gray; that of one channel in the colors of signed maps, with their scale."""
    values = delta.detach().double().cpu().numpy()
    largest = float(np.abs(values).max())
    factor = max((f for f in FACTORS if f * largest <= 0.5), default=1) if largest else 1
    if len(values) == 3:
        return _large(np.clip(0.5 + factor * values, 0, 1).transpose(1, 2, 0)), factor, None
    limit = 0.5 / factor
    colors = colorize(values.mean(0), limit=limit, signed=True)
    return (
        _large(colors),
        factor,
        Scale.of(limit, True, "change of a pixel" + (", mean of channels" if len(values) > 1 else "")),
    )


def _shown(pixels: Tensor) -> Any:
    picture = pixels.detach().double().cpu().numpy()
    picture = picture if len(picture) == 3 else np.repeat(picture.mean(0, keepdims=True), 3, axis=0)
    return _large(picture.transpose(1, 2, 0))


def _large(picture: Any) -> Any:
    """Small pictures keep their pixels when they are drawn large."""
    picture = picture if picture.dtype == np.uint8 else np.rint(picture * 255).astype(np.uint8)
    return enlarged(picture, LEAST) if min(picture.shape[:2]) < LEAST else picture


def _name(prediction: Prediction) -> str:
    return prediction.category.split(",")[0]


def _line(predictions: Sequence[Prediction]) -> str:
    return ", ".join(f"{_name(p)} {percent(p.probability)}" for p in predictions)


def percent(share: float) -> str:
    """A share in percent; what is almost all or almost nothing is not called so."""
    return "> 99.9%" if 0.9995 <= share < 1 else "< 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


# ---- files and pages


def save(found: "Attack", path: Path) -> Path:
    """By the ending of the name: a picture, a page, or all tensors."""
    check_writable(path)
    suffix = path.suffix.lower()
    if suffix == ".png":
        with replaced(path) as partial:
            found.image().save(partial, format="PNG")
    elif suffix in (".html", ".htm"):
        write_text(path, page(found))
    elif suffix == ".safetensors":
        write_sealed(path, found.tensors(), found.metadata())
    else:
        raise UsageError(f"cannot save to {str(path)!r}: expected a picture (.png), a page (.html) or tensors (.safetensors)")
    return path


def strip_of(*found: "Attack", rows: int | None = None) -> Any:
    """All images as groups of three tiles."""
    from convoscope.show.strip import Grid, Group, Strip, Tile

    groups = []
    for a, i in chosen(found, rows):
        panels = panels_of(a, i)
        small = min(a.clean.shape[2:]) >= LEAST
        tiles = [Tile(p.image, p.title, small) for p in panels]
        groups.append(Group(f"{panels[0].title} → {panels[2].title}", [Grid(tiles, 3)], "; ".join(p.caption for p in panels)))
    settings = {k: v for k, v in found[0].method.to_dict().items() if k not in ("kind", "name")}
    words = [f"{k.replace('_', ' ')} {number(v) if isinstance(v, float) else v}" for k, v in settings.items() if v is not None]
    passes, seconds = sum(a.evaluations for a in found), sum(a.seconds for a in found)
    about = [", ".join(words), f"seed {found[0].seed}; {passes:,} passes of one image in {seconds:.1f} s", *notes_of(found[0])]
    return Strip(title_of(*found), groups, about, side=224)


def notes_of(found: "Attack") -> list[str]:
    """What there is to say of a universal perturbation."""
    notes = found.notes or {}
    if "held_out_fooling_rate" not in notes:
        return []
    made, judged = (percent(notes[k]) for k in ("fooling_rate", "held_out_fooling_rate"))
    return [f"made from {notes['images']} images, of which it takes {made}; of {notes['held_out']} held-out ones {judged}"]


def page(*found: "Attack", rows: int | None = None, command: str = "") -> str:
    """A page that is complete in one file."""
    from convoscope.show import strip

    network = found[0].network
    return strip.page(strip_of(*found, rows=rows), f"{network.name} ({network.hash})", command, least=LEAST)


def fragment(found: "Attack") -> str:
    """The figure, for a notebook."""
    from convoscope.show.html import image

    return image(found.image(), title_of(found), 92)
