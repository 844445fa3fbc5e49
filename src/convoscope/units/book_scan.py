"""Writing a book: one pass over the data, numbers of each layer, strips, the index. What is there already is not made again."""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.core.record import record
from convoscope.core.run import undisturbed
from convoscope.data.dataset import open_dataset
from convoscope.engine.layers import find_layers, first_input
from convoscope.engine.result import Sweep
from convoscope.engine.run import sweep
from convoscope.files import make_folder, writing
from convoscope.network import Network
from convoscope.units import book_files as files
from convoscope.units import book_measures as measures
from convoscope.units.book import Book, open_book
from convoscope.units.book_files import LayerEntry
from convoscope.units.book_index import LayerRows, write_index
from convoscope.units.book_strips import Cut, write_strips
from convoscope.units.counting import labeled_layers
from convoscope.units.detectors import LayerLabels

Progress = Callable[[str, int, int], None]  # what is done now, how much of it, of how much


def scan(
    network: Network | nn.Module, dataset: Any, layers: Any, out: str | Path, *, exemplars: int = 9, crop: int = 72,
    draws: int = 200, seed: int = 0, engine: str = "local", workers: int = 1, batch_size: int | Literal["auto"] = "auto",
    shard_size: int = 256, shard: str | tuple[int, int] | None = None, progress: Progress | None = None,
) -> Book | None:  # fmt: skip
    """Write the book of `layers` over `dataset` into the folder `out`, and open it.

    Every image goes through the network once. A scan that was stopped goes on where it was, and ends in the same bytes.
    `exemplars` places of each sort are kept for every unit and shown in `crop` pixels; `draws` of units that mean nothing say
    what labels chance gives (0 leaves that out); `seed` is that of the images shown at random and of these draws. With
    `shard`, "0/4" to "3/4", only that part of the images is run and None returned: when all parts are there, a scan without it
    writes the book.
    Raises UsageError where the folder holds a finished book of something else.
    """
    network = network if isinstance(network, Network) else Network(network)
    data = open_dataset(dataset)
    for what, value, least in (("exemplars", exemplars, 1), ("crop", crop, 16), ("draws", draws, 0), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{what} is {value!r}; expected a whole number of at least {least}")
    job = _Job(network, data, Path(out), exemplars, crop, draws, seed, progress)
    job.plan(layers)
    settings = {"engine": engine, "workers": workers, "batch_size": batch_size, "shard_size": shard_size, "shard": shard}
    if shard is not None:  # parts may run side by side: the store keeps them apart
        with _alone(job.folder):
            done = job.begin()
        return open_book(job.folder) if done else job.sweep(settings) and None
    with _alone(job.folder):
        if not job.begin():
            job.write(job.sweep(settings))
    return open_book(job.folder)


@dataclass
class _Job:
    network: Network
    data: Any
    folder: Path
    exemplars: int
    crop: int
    draws: int
    seed: int
    progress: Progress | None

    def plan(self, layers: Any) -> None:
        """Find the layers and the key of the book: the same key, the same book."""
        self.x = first_input(self.network, self.data)
        self.addresses = find_layers(self.network, self.x, layers)
        with undisturbed(self.network.plain), torch.no_grad():
            found = record(self.network.plain, self.x, self.addresses, head=self.network.head)
        self.entries = [self.entry(k, a, tuple(found[a].shape[1:])) for k, a in enumerate(self.addresses)]
        digest = hashlib.blake2b(digest_size=16)
        net = self.network
        about = (files.SCHEMA, version("convoscope"), net.hash, net.size, net.mean, net.std, self.addresses)
        digest.update(
            repr((*about, self.exemplars, self.crop, self.draws, self.seed, self.data.classes, self.data.concepts)).encode()
        )
        for i in range(len(self.data)):
            digest.update(f"{self.data.key(i)}\n".encode())
        self.key = digest.hexdigest()

    def begin(self) -> bool:
        """Whether the book is there already; else the folder is made ready, with nothing in it that is of another scan."""
        make_folder(self.folder)
        if (self.folder / files.MANIFEST).exists():
            found = files.read_manifest(self.folder)
            same = found.get("key") == self.key
            if found.get("complete"):
                if not same:
                    raise UsageError(
                        f"{str(self.folder)!r} holds a finished book of another network, data, layers or settings; "
                        "give another folder, or remove it"
                    )
                self.clean()
                if self.whole():
                    return True
            if not same:
                for name in (files.NUMBERS, files.STRIPS):
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                (self.folder / files.INDEX).unlink(missing_ok=True)
        elif any(p.name != files.STORE and not p.name.startswith(".") for p in self.folder.iterdir()):
            raise UsageError(f"{str(self.folder)!r} is not empty and holds no book; give another folder")
        files.write_manifest(self.folder, {"schema": files.SCHEMA, "key": self.key, "complete": False})
        return False

    def whole(self) -> bool:
        """Whether every file of the book is there."""
        wanted = [self.folder / files.INDEX, *(files.numbers_path(self.folder, e.stem) for e in self.entries)]
        wanted += [files.strip_path(self.folder, e.stem, u) for e in self.entries for u in range(e.units)]
        return all(path.exists() for path in wanted)

    def sweep(self, settings: dict[str, Any]) -> Sweep:
        """The one pass over the data, or what is missing of it."""
        gathered = measures.statistics(self.exemplars, self.seed, self.data)
        settings |= {"store": self.folder / files.STORE, "progress": self.telling("images")}
        return sweep(self.network, self.data, gathered, self.addresses, **settings)

    def write(self, found: Sweep) -> None:
        """Numbers, strips, index and manifest, from a finished sweep."""
        cuts = []
        missing = [e for e in self.entries if not files.numbers_path(self.folder, e.stem).exists()]
        labels = self.labels(found) if missing else {}
        for k, entry in enumerate(self.entries):
            path = files.numbers_path(self.folder, entry.stem)
            if entry in missing:
                here = found[entry.address], labels.get(entry.address)
                files.save_numbers(path, measures.measure(self.network, self.data, self.x, entry.address, *here))
            cuts.append(_cut(entry, files.load_numbers(path)))
            self.telling("layers")(k + 1, len(self.entries))
        write_strips(self.folder, cuts, self.pixels, self.crop, self.folder / files.SCRATCH, self.telling("units drawn"))
        manifest = self.manifest(found)
        write_index(self.folder / files.INDEX, files.columns_of(manifest), self.rows(manifest), self.images(manifest))
        files.write_manifest(self.folder, manifest)
        self.clean()

    def labels(self, found: Sweep) -> dict[str, LayerLabels]:
        """The labels of all units by layer, where the data has dense labels."""
        if not self.data.concepts:
            return {}
        return labeled_layers(self.network, self.data, found, measures.labeling(self.draws, self.seed), self.telling("labels"))

    def manifest(self, found: Sweep) -> dict[str, Any]:
        """All there is to know of the book but the units."""
        net, data = self.network, self.data
        columns = measures.columns_for(files.load_numbers(files.numbers_path(self.folder, self.entries[0].stem)))
        return {
            "schema": files.SCHEMA,
            "key": self.key,
            "complete": True,
            "made_by": f"convoscope {version('convoscope')}",
            "network": {
                "name": net.name, "hash": net.hash, "channels": net.channels, "size": list(self.x.shape[2:]),
                "mean": list(net.mean), "std": list(net.std), "categories": list(net.categories),
            },
            "data": {
                "name": data.name, "images": len(data), "classes": list(data.classes),
                "concepts": [{"name": c.name, "category": c.category} for c in data.concepts],
            },
            "settings": {
                "exemplars": self.exemplars, "chance": measures.CHANCE, **asdict(measures.labeling(self.draws, self.seed)),
            },
            "layers": [files.as_dict(e) for e in self.entries],
            "columns": [files.as_dict(c) for c in columns],
            "sorts": list(measures.SORTS),
            "crop": self.crop,
            "failed": [{"image": i, "reason": reason} for i, reason in sorted(found.failed.items())],
        }  # fmt: skip

    def entry(self, number: int, address: str, shape: tuple[int, ...]) -> LayerEntry:
        """What the manifest says of a layer."""
        field = measures.field_of(self.network, self.x, address)
        whole = field is None or field.whole
        size = None if whole else field.size
        stride = None if whole or None in field.stride else field.stride
        grid = (shape[1], shape[2]) if len(shape) == 3 else (1, 1)
        return LayerEntry(address, files.stem_of(number, address), shape[0], grid, size, stride)

    def rows(self, manifest: dict[str, Any]) -> Iterator[LayerRows]:
        """The layers for the index, one at a time."""
        columns = files.columns_of(manifest)
        for entry in self.entries:
            numbers = files.load_numbers(files.numbers_path(self.folder, entry.stem))
            yield measures.rows_of(entry, numbers, columns, manifest)

    def images(self, manifest: dict[str, Any]) -> list[tuple[int, str, str | None]]:
        """The images that exemplars are from, with name and class."""
        used: set[int] = set()
        for entry in self.entries:
            used |= measures.images_of(files.load_numbers(files.numbers_path(self.folder, entry.stem)), manifest["sorts"])
        return [(i, image_name(self.data, i), self.class_name(i)) for i in sorted(used)]

    def class_name(self, image: int) -> str | None:
        """The class of an image."""
        k = int(self.data.class_of(image))
        return self.data.classes[k] if 0 <= k < len(self.data.classes) else None

    def pixels(self, image: int) -> np.ndarray:
        """An image (H, W, 3) as the network sees it."""
        picture = self.network.picture(self.network.read(self.data.picture(image)))[0]
        return picture.permute(1, 2, 0).mul(255).round().to(torch.uint8).cpu().numpy()

    def telling(self, what: str) -> Callable[[int, int], None]:
        """Progress of one stage."""
        return lambda done, total: self.progress(what, done, total) if self.progress else None

    def clean(self) -> None:
        """Remove what only served the making."""
        shutil.rmtree(self.folder / files.STORE, ignore_errors=True)
        (self.folder / files.SCRATCH).unlink(missing_ok=True)
        for left in self.folder.rglob(".*.partial"):
            left.unlink(missing_ok=True)


def image_name(data: Any, image: int) -> str:
    """What an image is called: its file's place, or its own in the data."""
    found = re.fullmatch(r"(.+):\d+:\d+", str(data.key(image)).partition("|")[0])
    return found[1] if found else f"picture {image}"


def _cut(entry: LayerEntry, numbers: dict[str, Tensor]) -> Cut:
    images = torch.stack([numbers[f"{s}/images"] for s in measures.SORTS], 1)
    boxes = torch.stack([numbers[f"{s}/boxes"] for s in measures.SORTS], 1)
    return Cut(entry, images.numpy(), boxes.numpy())


LOCK = ".lock"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No two scans write one book at once: the second waits, and finds it finished."""
    make_folder(folder)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path, same = folder / LOCK, False
    while not same:
        with writing(path):
            file = open(path, "ab")  # noqa: SIM115  its errors are told, not those of the scan
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            if same:  # and not one that its last owner has removed
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
