"""Scenes as a folder of PNG files that any tool can read."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convoscope.core.errors import ConvoscopeError, UsageError

from .counter import table
from .drawing import Faults, draw_factors
from .rendering import MAPS, NAMES, Sample, render

INSTANCES = ("", "object", "distractor 1", "distractor 2", "watermark")
_PALETTE = (table(3 * 255, 11) * 224 + 31).astype(np.uint8).tobytes()


def write_folder(
    out: str | Path,
    count: int = 100,
    seed: int = 0,
    size: int = 96,
    *,
    watermark: float | Mapping[str, float] = 0.0,
    background: float | Mapping[str, tuple[str, float]] = 0.0,
    wrong_labels: float = 0.0,
    random_labels: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `count` scenes to a new folder `out`, which appears when all of it is written, and not before.

        pictures/LABEL/000000.png   the pictures in one folder per label, as torchvision's ImageFolder reads them
        maps/MAP/000000.png         label maps (scene, object, part, material, texture, color, instance), 8 bits a pixel
        index.csv                   map, value, name: what the values of every map mean
        factors.jsonl               for each picture its file and its factors, with the true class in "species"
        settings.json               what the folder was made with

    Raises UsageError if `out` holds something already.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{str(out)!r} holds something already; give a new folder")
    if count < 1:
        raise UsageError(f"a folder of scenes has 1 or more pictures, not {count}")
    faults = Faults(watermark, background, wrong_labels, random_labels)
    out = out.resolve()
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    settings = {"count": count, "seed": seed, "size": size, "faults": asdict(faults)}
    try:
        _fill(partial, count, seed, size, faults, progress)
        (partial / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise ConvoscopeError(f"cannot write {str(out)!r}: {(error.strerror or str(error)).lower()}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _fill(folder: Path, count: int, seed: int, size: int, faults: Faults, progress: Callable[[int, int], None] | None) -> None:
    for name in (*MAPS, "instance"):
        (folder / "maps" / name).mkdir(parents=True)
    lines: list[str] = []
    for index in range(count):
        sample = render(draw_factors(seed, index, faults), size)
        label, file = sample.factors.label, f"{index:06d}.png"
        (folder / "pictures" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.picture).save(folder / "pictures" / label / file)
        for name, values in (*sample.maps.items(), ("instance", _instances(sample))):
            picture = Image.fromarray(values).convert("L")
            picture.putpalette(bytes(3) + _PALETTE)
            picture.save(folder / "maps" / name / file)
        record: dict[str, Any] = {"picture": f"pictures/{label}/{file}", "map": file, "factors": sample.factors.to_dict()}
        lines.append(json.dumps(record) + "\n")
        if progress:
            progress(index + 1, count)
    (folder / "factors.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "index.csv").write_text(_index(), encoding="utf-8")


def _instances(sample: Sample) -> np.ndarray:
    values = np.zeros_like(sample.ids)
    for name, mask in sample.masks.items():
        values[mask] = INSTANCES.index(name)
    return values


def _index() -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("map", "value", "name"))
    for kind, names in (*NAMES.items(), ("instance", INSTANCES)):
        writer.writerows((kind, value, name) for value, name in enumerate(names))
    return text.getvalue()
