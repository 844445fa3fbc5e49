"""The pictures, networks and statistics that sweeps are measured with."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import convoscope as cs
from benchmarks.networks import MEAN, STD, network
from convoscope.data.dataset import Concept, Dataset

LAYERS = ("layer1", "layer2", "layer3", "layer4")
CATEGORIES = ("scene", "object", "part", "material", "texture", "color")


def photographs(count: int, folder: Path) -> tuple[list[Path], str]:
    """JPEG files: those of `CONVOSCOPE_TESTDATA`, or scenes of the package enlarged to 640 x 480."""
    found = sorted(Path(os.environ.get("CONVOSCOPE_TESTDATA", "-"), "coco", "images").glob("*.jpg"))[:count]
    if found:
        return found, f"{len(found)} photographs of COCO"
    drawn = cs.open_dataset(f"scenes:{count}")
    for i in range(count):
        pixels = drawn.picture(i)
        picture = pixels if isinstance(pixels, Image.Image) else _picture(pixels)
        picture.resize((640, 480), Image.Resampling.BILINEAR).save(folder / f"{i:04}.jpg", quality=90)
    return sorted(folder.glob("*.jpg")), f"{count} scenes of the package as JPEG files of 640 x 480"


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


class Photographs(Dataset):
    """`count` pictures from some files in turn, with classes and `concepts` whose labels are tiles of `tile` pixels."""

    def __init__(self, files: list[Path], count: int, concepts: int = 12, size: int = 224, tile: int = 28) -> None:
        self.files, self.count, self.size, self.tile = files, count, size, tile
        self.name, self.classes = "pictures", tuple(f"class {k}" for k in range(10))
        self.concepts = tuple(Concept(f"concept {k}", CATEGORIES[k % len(CATEGORIES)]) for k in range(concepts))

    def __len__(self) -> int:
        return self.count

    def key(self, i: int) -> str:
        return f"{i} {self.files[i % len(self.files)].name}"

    def picture(self, i: int) -> Any:
        return self.files[i % len(self.files)]

    def class_of(self, i: int) -> int:
        return i % 10


class Ready(Photographs):
    """The same as tensors of pixels that need no decoding, with dense labels."""

    def __init__(self, pixels: Tensor, count: int, **settings: Any) -> None:
        super().__init__([Path(str(k)) for k in range(len(pixels))], count, **settings)
        self.pixels = pixels

    def picture(self, i: int) -> Tensor:
        return self.pixels[i % len(self.pixels)]

    def segments(self, i: int) -> Tensor:
        cells, draw = -(-self.size // self.tile), torch.Generator().manual_seed(i)
        grid = torch.randint(0, len(self.concepts) + 1, (2, cells, cells), generator=draw, dtype=torch.int32)
        whole = grid.repeat_interleave(self.tile, 1).repeat_interleave(self.tile, 2)
        return whole[:, : self.size, : self.size].contiguous()


def net(name: str) -> tuple[cs.Network, str]:
    """A network of torchvision, and which weights it has."""
    module, weights = network(name)
    return cs.Network(module, 224, MEAN, STD, name=name), weights


def statistics(data: Dataset) -> dict[str, Any]:
    """Everything that the unit book, the table of units, dissection and atlases gather."""
    from convoscope.units.duplicates import UnitCorrelation
    from convoscope.units.exemplars import BottomPatches, QuantilePatches, RandomPatches, TopPatches
    from convoscope.units.histograms import ActivationHistogram, UnitActivity
    from convoscope.units.reservoir import Reservoir
    from convoscope.units.selectivity import ClassActivity
    from convoscope.units.tail import Tail

    exemplars = [TopPatches(k=9), BottomPatches(k=9), QuantilePatches(k=9), RandomPatches(k=9)]
    more = [ActivationHistogram(), UnitActivity(), ClassActivity(), UnitCorrelation(), Tail(), Reservoir()]
    return {s.label(): s for s in (*exemplars, *more)}


def temporary() -> Any:
    """A folder that goes at the end."""
    return tempfile.TemporaryDirectory(prefix="convoscope-")
