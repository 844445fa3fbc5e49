"""Finished shards on disk: whole or absent, checked when read, found again by what they depend on.

A run writes one file per shard with all layers and statistics it computed for it, since then a shard is there or not after
any crash, and costs one fsync. A statistic or layer asked for later goes into a second file of the same shard: what is there
is not computed again. Files are safetensors: each tensor is `number.name` of a pair (layer, statistic), listed in the header
with the pair's key, beside a checksum of the whole file.
"""

import contextlib
import hashlib
import json
import os
import re
import socket
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from convoscope.core.errors import ConvoscopeError
from convoscope.core.statistic import Statistic
from convoscope.engine.keys import SCHEMA, digest
from convoscope.engine.shards import Pair, Part
from convoscope.files import make_folder, writing

try:
    import fcntl
except ImportError:  # Windows: two processes then may compute a shard twice
    fcntl = None  # type: ignore[assignment]

MARK, BLANK = b'"checksum":"', b"0" * 32
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


Piece = bytes | memoryview  # of a file


class Damaged(Exception):
    """A file of a shard that is not what was written."""


def encode(shard: str, part: Part, keys: Mapping[Pair, str]) -> bytes:
    """A part as the bytes of its file. `keys` of the pairs; all tensors on the CPU."""
    return b"".join(pieces(shard, part, keys))


def pieces(shard: str, part: Part, keys: Mapping[Pair, str]) -> list[Piece]:
    """The same piece by piece, which copies no tensor."""
    tensors, listed = {}, []
    for number, (pair, statistic) in enumerate(part.statistics.items()):
        listed.append([*pair, keys[pair]])
        state = {k: getattr(statistic, k) for k in statistic.state} if statistic.begun else {}
        tensors |= {f"{number}.{k}": t.detach().cpu().contiguous() for k, t in state.items()}
    return _file({"schema": SCHEMA, "shard": shard, "pairs": listed, "failed": part.failed}, tensors)


def _file(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Piece]:
    header, order = _header(tensors, {"convoscope": json.dumps(about), "checksum": BLANK.decode()})
    parts = [header, *(memoryview(tensors[name].reshape(-1).view(torch.uint8).numpy()) for name in order)]
    at = header.index(MARK) + len(MARK)
    return [header[:at], _checksum(*parts).encode(), header[at + len(BLANK) :], *parts[1:]]


def _checksum(*parts: Piece) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def _header(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> tuple[bytes, list[str]]:
    """The beginning of a file of safetensors, and the order in which the tensors follow: the widest first, so all aligned."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    about, at = {"__metadata__": metadata}, 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        about[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


@dataclass
class Contents:
    """What a file says it holds: for each pair's key its number, and the images that could not be read."""

    shard: str
    numbers: dict[str, int]
    failed: dict[int, str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def state(self, key: str) -> dict[str, Tensor]:
        """The tensors of one pair."""
        start = f"{self.numbers[key]}."
        return {name[len(start) :]: t for name, t in self.tensors.items() if name.startswith(start)}


def decode(data: bytes) -> Contents:
    """What `encode` was given. Raises Damaged unless every byte is as it was written."""
    try:
        size = int.from_bytes(data[:8], "little")
        found = json.loads(data[8 : 8 + size])["__metadata__"]
        at = data.index(MARK) + len(MARK)
        whole = memoryview(data)
        if _checksum(whole[:at], BLANK, whole[at + len(BLANK) :]) != found["checksum"]:
            raise ValueError("its checksum is another")
        return _contents(found["convoscope"], safetensors.torch.load(data))
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError, safetensors.SafetensorError) as error:
        raise Damaged(str(error)) from None


def _contents(text: str, tensors: dict[str, Tensor]) -> Contents:
    about = json.loads(text)
    numbers = {key: number for number, (_, _, key) in enumerate(about["pairs"])}
    return Contents(about["shard"], numbers, {int(i): r for i, r in about["failed"].items()}, tensors, about)


class Store:
    """A folder of shards. Several processes may write it at once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.shards, self.claims = self.folder / "shards", self.folder / "claims"
        for path in (self.folder, self.shards, self.claims):
            make_folder(path)
        _clean(self.folder)

    def write(self, shard: str, data: Iterable[Piece], keys: Iterable[str]) -> Path:
        """Write a shard's file for the pairs of these keys: afterwards it is on the disk."""
        path = self._folder(shard) / f"{shard}-{digest(sorted(keys))}.safetensors"
        make_folder(path.parent)
        write_durably(path, data)
        return path

    def _folder(self, shard: str) -> Path:
        return self.shards / shard[:2]  # listed once for each shard: few files in each

    def find(self, shard: str, keys: Iterable[str]) -> dict[Path, Contents]:
        """The files that hold pairs of these keys, checked byte for byte. Damaged ones are put aside, with a notice."""
        wanted, found = set(keys), {}
        for path in sorted(self._folder(shard).glob(f"{shard}-*.safetensors")):
            try:
                contents = decode(path.read_bytes())
                if contents.shard != shard:
                    raise Damaged("it belongs to another shard")
            except FileNotFoundError:
                continue
            except (OSError, Damaged) as error:
                self._put_aside(path, error)
                continue
            if wanted & set(contents.numbers):
                found[path] = contents
        return found

    def _put_aside(self, path: Path, error: Exception) -> None:
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(".damaged"))
        warnings.warn(f"{str(path)!r} is damaged ({error}); what it held is computed again", stacklevel=2)

    def load(self, path: Path) -> Contents:
        """A file that was found. Raises ConvoscopeError where it was changed since."""
        try:
            return decode(path.read_bytes())
        except (OSError, Damaged) as error:
            raise ConvoscopeError(f"{str(path)!r} was damaged while it was in use ({error}); run again") from None

    def replace(self, path: Path, statistics: Mapping[str, Statistic]) -> None:
        """Put other statistics in the place of those of these keys; the file is the old or the new one at any moment."""
        contents = self.load(path)
        tensors = dict(contents.tensors)
        for key, statistic in statistics.items():
            start = f"{contents.numbers[key]}."
            tensors = {name: t for name, t in tensors.items() if not name.startswith(start)}
            tensors |= {start + name: t.contiguous() for name, t in statistic.state_dict().items()}
        write_durably(path, _file(contents.about, tensors))

    def state(self, path: Path, key: str) -> dict[str, Tensor]:
        """The tensors of one pair, without reading the rest of the file."""
        with safetensors.safe_open(path, "pt") as file:
            number = _contents(file.metadata()["convoscope"], {}).numbers[key]
            names = [n for n in file.keys() if n.startswith(f"{number}.")]  # noqa: SIM118  it is no mapping
            return {n.partition(".")[2]: file.get_tensor(n) for n in names}

    def claim(self, shard: str) -> "Claim | None":
        """The right to compute a shard, or None while another process has it; it ends with the process that holds it."""
        if fcntl is None:
            return Claim(None)
        with writing(self.claims / shard):
            file = os.open(self.claims / shard, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except OSError:  # a file system without locks
            pass
        return Claim(file, self.claims / shard)


@dataclass
class Claim:
    """Held until released."""

    file: int | None
    path: Path | None = None

    def release(self) -> None:
        """Let others have it."""
        if self.file is not None and self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self.file)
            self.file = None


def write_durably(path: Path, data: Iterable[Piece]) -> None:
    """Write a file that is whole or absent, whenever the machine stops, and is on the disk when this returns."""
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        with writing(path):
            with partial.open("wb") as file:
                file.writelines(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            if os.name == "posix":
                folder = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _clean(folder: Path) -> None:
    """What processes of this machine left half written when they were killed goes."""
    for path in folder.rglob(".*.partial"):
        owner = re.fullmatch(r".*\.(\d+)\.partial", path.name)
        if owner and f".{socket.gethostname()}." in path.name and not _alive(int(owner[1])):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def add_contents(part: Part, found: Contents, keys: Mapping[Pair, str], statistics: Mapping[str, Statistic]) -> None:
    """Add the pairs that a file holds and the part lacks."""
    part.failed |= found.failed
    for pair, key in keys.items():
        if key in found.numbers and pair not in part.statistics:
            part.statistics[pair] = statistics[pair[1]].fresh().load_state_dict(found.state(key))
