"""Files of weights from strangers: looked at before PyTorch opens them, and what comes out of them afterwards.

`torch.load(weights_only=True)` runs no code of a file, but a few hundred bytes can still ask it for hours (names that are
tuples of tuples of tuples), for all memory (a byte array of any length, a compressed archive) or, before PyTorch 2.10, for
memory that is not the file's. A file of weights needs none of that: few parts, few kinds of objects, nothing compressed.
Measured by `python -m benchmarks.fuzz checkpoints`.
"""

import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convoscope.core.errors import LoadError

MOST_ENTRIES = 20_000  # records of an archive, tensors of a .safetensors file: half a second
MOST_HEADER = 8 * 2**20  # bytes of the list of tensors or records
MOST_PICKLE = 16 * 2**20  # bytes
MOST_STEPS = 1_000_000  # instructions of a pickle: 20,000 tensors; half a second
MOST_UNPACKED = 20  # times the size of an archive: weights hardly compress, unless rounded
MOST_PARTS, DEEPEST = 100_000, 100  # of a tuple: things in it with those in them, and how deep they are

MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # how torch.save began before it wrote archives
ALLOWED = re.compile(
    r"collections\.(OrderedDict|Counter)|builtins\.(set|complex)|__builtin__\.(set|complex)|"
    r"torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|torch\.(nn\.parameter\.Parameter|Size|device)|"
    r"torch\.(cuda\.|storage\.)?[A-Za-z0-9]+Storage|"
    r"torch\.((b?float|u?int|complex)[0-9]\w*|float|double|half|long|int|short|bool)"
)
BYTES = {
    "Double": 8,
    "Long": 8,
    "Float": 4,
    "Int": 4,
    "Half": 2,
    "BFloat16": 2,
    "Short": 2,
    "ComplexFloat": 8,
    "ComplexDouble": 16,
}
MARK, OTHER = object(), (1, 0, None)


def check_file(path: Path) -> None:
    """Raise LoadError unless this file of weights is of a known kind, complete, and asks for no more than it holds."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        if start[:4] == b"PK\x03\x04":
            _check_archive(file, size, path.name)
        elif start[8:9] == b"{" or path.suffix.lower() == ".safetensors":
            file.seek(8)
            _check_safetensors(int.from_bytes(start[:8], "little"), file, size, path.name)
        elif start.startswith(MAGIC):
            file.seek(0)
            for _ in range(5):  # magic number, version, about the machine, the objects, the names of the storages
                _check_pickle(file, path.name, None)
        elif start[:1] == b"\x80":
            file.seek(0)
            _check_pickle(file, path.name, None)
            raise LoadError(f"{path.name} holds pickled Python objects that torch.save did not write")


def _check_safetensors(length: int, file: Any, size: int, name: str) -> None:
    if not 2 <= length <= size - 8:
        raise LoadError(f"{name} is damaged or not complete")
    if length > MOST_HEADER:
        raise LoadError(f"{name} is no file of weights: its list of tensors takes {length / 2**20:.0f} MB")
    if (tensors := file.read(length).count(b"{")) > MOST_ENTRIES:
        raise LoadError(f"{name} is no file of weights: it lists {tensors:,} tensors")


def _check_archive(file: Any, size: int, name: str) -> None:
    file.seek(max(0, size - 22))
    end = file.read(22)
    if end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise LoadError(f"{name} is damaged or not complete")
    listed = struct.unpack("<I", end[12:16])[0]
    if MOST_HEADER < listed < 2**32 - 1:
        raise LoadError(f"{name} is no file of weights: it holds too many parts")
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = [r.filename.partition("/")[2].lower() for r in records]
        if "constants.pkl" in names:
            raise LoadError(
                f"{name} is a TorchScript program, which hides its operators; save the weights of the module it was made "
                "from (torch.save(model.state_dict(), path))"
            )
        if "data.pkl" not in names:
            raise LoadError(
                f"{name} is an archive without tensors by name (an exported program?); save the weights of the module it was "
                "made from (torch.save(model.state_dict(), path))"
            )
        if len({r.filename.partition("/")[0] for r in records}) > 1 or len(set(names)) < len(names):
            raise LoadError(f"{name} is damaged: parts of it have the same name")
        sizes = {n.removeprefix("data/"): r.file_size for n, r in zip(names, records, strict=True)}
        if len(names) > MOST_ENTRIES or sum(sizes.values()) > MOST_UNPACKED * size + 2**20 or sizes["data.pkl"] > MOST_PICKLE:
            raise LoadError(f"{name} is no file of weights: it unpacks to far more than it takes; write it with torch.save")
        objects = archive.read(records[names.index("data.pkl")])
    _check_pickle(io.BytesIO(objects), name, sizes)


def _check_pickle(file: Any, name: str, sizes: Mapping[str, int] | None) -> None:
    """Follow a pickle without making any of its objects."""
    pickle = _Pickle(name, sizes)
    for step, (code, value, _) in enumerate(pickletools.genops(file)):
        if step > MOST_STEPS:
            raise LoadError(f"{name} is no file of weights: it holds more than a million steps of a program")
        pickle.do(code.name, value)


class _Pickle:
    """The stack of an unpickler: (parts, depth, value); values are known of numbers, text, names and tuples of them."""

    def __init__(self, name: str, sizes: Mapping[str, int] | None) -> None:
        self.name, self.sizes = name, sizes
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def do(self, code: str, value: Any) -> None:
        """One instruction. Raises LoadError for those that files of weights do not have."""
        stack = self.stack
        if code in ("BINPUT", "LONG_BINPUT"):
            self.memo[value] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[value])
        elif code in PLAIN:
            stack.append((1, 0, value))
        elif code in CONSTANT:
            stack.append((1, 0, CONSTANT[code]))
        elif code in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
            stack.append(OTHER)
        elif code == "MARK":
            stack.append(MARK)
        elif code == "GLOBAL":
            stack.append((1, 0, self._known(value.replace(" ", ".", 1))))
        elif code in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"):
            count = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "EMPTY_TUPLE": 0}.get(code)
            self._tuple(self._to_mark() if count is None else [stack.pop() for _ in range(count)][::-1])
        elif code in ("APPENDS", "SETITEMS"):
            self._to_mark()
        elif code in ("APPEND", "SETITEM", "BUILD", "REDUCE", "NEWOBJ"):
            del stack[-(2 if code == "SETITEM" else 1) :]
            if code in ("REDUCE", "NEWOBJ"):
                stack[-1] = OTHER
        elif code == "BINPERSID":
            self._storage(stack.pop()[2])
            stack.append(OTHER)
        elif code not in ("PROTO", "STOP", "FRAME"):
            self._refuse(code)

    def _refuse(self, what: str) -> None:
        raise LoadError(
            f"{self.name} holds pickled Python objects ({what}), and loading those would run code from the file; save only "
            "the tensors (torch.save(model.state_dict(), path)) or convert it to .safetensors where you trust it"
        )

    def _known(self, name: str) -> str:
        if not ALLOWED.fullmatch(name):
            self._refuse(name)
        return name

    def _to_mark(self) -> list[Any]:
        found = []
        while (top := self.stack.pop()) is not MARK:
            found.append(top)
        return found[::-1]

    def _tuple(self, items: list[Any]) -> None:
        parts, depth = 1 + sum(item[0] for item in items), 1 + max((item[1] for item in items), default=0)
        if parts > MOST_PARTS or depth > DEEPEST:
            raise LoadError(f"{self.name} is no file of weights: it holds tuples of {parts:,} parts, {depth} deep")
        self.stack.append((parts, depth, tuple(item[2] for item in items)))

    def _storage(self, said: Any) -> None:
        """What the objects say of a storage has to be what the archive holds."""
        if self.sizes is None:
            return
        kind, key, count = re.sub(r".*\.(\w+)Storage", r"\1", str(said[1])), str(said[2]).lower(), said[4]
        if self.sizes.get(key) != count * BYTES.get(kind, 1):
            raise LoadError(f"{self.name} is damaged: a tensor in it and its values are not of one size")


PLAIN = {"BINUNICODE", "SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
CONSTANT: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def plain_tensors(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The same, unless one is no plain array of numbers, or has more values than were in the file. Raises LoadError."""
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.device.type != "cpu":
            raise LoadError(
                f"{name}: {key!r} is no plain tensor ({tensor.layout}, {tensor.device}); save dense tensors on the CPU"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise LoadError(f"{name}: {key!r} says it has {tensor.numel()} values, and the file holds fewer")
    return state
