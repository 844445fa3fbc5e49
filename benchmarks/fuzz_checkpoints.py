"""Damaged and malicious files of weights for `benchmarks.fuzz`, each of which leaves a mark in a folder if its code runs.

Case `n` of a seed is always the same bytes.
"""

import builtins
import collections
import functools
import importlib
import io
import json
import os
import pickle
import random
import runpy
import shutil
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from benchmarks.fuzz_pictures import MUTATIONS, Draw
from convoscope.loading import load_state, read_state

EXPECTED = ("LoadError", "UsageError")
CANARY = "canary-of-convoscope"
Maker = Callable[[Draw], bytes]


# ---- good files
def _state() -> dict[str, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    return dict(net.state_dict()) | {
        "half": torch.ones(3).half(),
        "rounded": torch.ones(2, 2).bfloat16(),
        "byte": torch.ones(5).byte(),
    }


def saved(thing: Any, legacy: bool = False) -> bytes:
    """As torch.save writes it."""
    out = io.BytesIO()
    torch.save(thing, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


@functools.cache
def files() -> dict[str, tuple[bytes, str]]:
    """Good files by name, each with the ending of its name."""
    state = _state()
    training = {"state_dict": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"betas": (0.9, 0.99)}]}}
    return {
        "safetensors": (save(state, {"format": "pt"}), ".safetensors"), "archive": (saved(state), ".pth"),
        "legacy pickle": (saved(state, legacy=True), ".pth"), "training state": (saved(training), ".ckpt"),
        "legacy training state": (saved(training, legacy=True), ".tar"),
    }  # fmt: skip


def any_file(draw: Draw) -> bytes:
    """One of the good files with one of the mutations of pictures."""
    data = draw.choice(list(files().values()))[0]
    how = draw.choice([m for name, m in MUTATIONS.items() if name not in ("splice", "polyglot")])
    return how(draw, data)


# ---- safetensors
def header(draw: Draw) -> bytes:
    """A safetensors header with a lie in it."""
    data = files()["safetensors"][0]
    size = int.from_bytes(data[:8], "little")
    said = json.loads(data[8 : 8 + size])
    for _ in range(draw.choice((1, 1, 2))):
        name = draw.choice([n for n in said if n != "__metadata__"])
        _lie(draw, said, name)
    text = json.dumps(said).encode()
    if draw.random() < 0.15:
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice((b"\0", b"\xff\xfe", b"NaN", b"[" * 5000, b'{"a":' * 300, b"1e999", b'"')) + text[at:]
    length = (
        len(text) if draw.random() < 0.8 else draw.choice((0, 1, size - 1, 2**20, 2**31, 2**40, 2**63, 2**64 - 1, len(data)))
    )
    return struct.pack("<Q", length % 2**64) + text + data[8 + size :]


def _lie(draw: Draw, said: dict[str, Any], name: str) -> None:
    number = draw.choice(
        (-1, 0, 1, 7, 2**31, 2**32, 2**53, 2**63, 2**64, 1e300, float("nan"), float("inf"), None, "x", [], {}, True)
    )
    kind = draw.choice(("dtype", "shape", "begin", "end", "overlap", "drop", "same", "extra"))
    entry = said[name]
    if not isinstance(entry, dict) or not {"shape", "data_offsets"} <= set(entry):
        return
    if kind == "dtype":
        entry["dtype"] = draw.choice(("F64", "F16", "BF16", "I8", "BOOL", "U64", "C64", "F8_E4M3", "F4", "X", "", None, 7))
    elif kind == "shape":
        entry["shape"] = draw.choice(([number], [2**32, 2**32], [0, 2**62], [1] * 100, [], number, [2**16] * 4, [3, -1]))
    elif kind in ("begin", "end"):
        entry["data_offsets"][kind == "end"] = number
    elif kind == "overlap":
        entry["data_offsets"] = said[draw.choice([n for n in said if n != "__metadata__"])].get("data_offsets", 0)
    elif kind == "drop":
        del entry[draw.choice(list(entry))]
    elif kind == "same":
        said["__metadata__"] = draw.choice((number, {"a": number}, {"a": "b" * 10_000}, {"a": {"b": {}}}))
    else:
        said[draw.choice(("", "../../x", "\0", "a" * 10_000, name + "."))] = dict(entry)


def many(draw: Draw) -> bytes:
    """A safetensors file of a great many tensors, or with an endless header."""
    if draw.random() < 0.5:
        count = draw.choice((20_000, 100_000, 200_000))
        text = (
            "{" + ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(count)) + "}"
        ).encode()
    else:
        text = b"{" + b" " * draw.choice((10**6, 2 * 10**7)) + b"}"
    return struct.pack("<Q", len(text)) + text


# ---- archives
def rewritten(
    data: bytes, change: Callable[[str, bytes], list[tuple[str, bytes]]], compress: int = zipfile.ZIP_STORED
) -> bytes:
    """An archive with its records changed, and right checksums again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", compress) as new:
        for name in old.namelist():
            for other, content in change(name, old.read(name)):
                new.writestr(other, content)
    return out.getvalue()


def records(draw: Draw) -> bytes:
    """An archive with records that lack, are of another size, compressed, twice there, or named to escape a folder."""
    data = files()[draw.choice(("archive", "training state"))][0]
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    victim, how = draw.choice(names), draw.choice(("drop", "cut", "grow", "escape", "twice", "pack", "noise", "empty"))

    def change(name: str, content: bytes) -> list[tuple[str, bytes]]:
        if name != victim:
            return [(name, content)]
        return {
            "drop": [],
            "cut": [(name, content[:-1])],
            "grow": [(name, content * 3)],
            "pack": [(name, content)],
            "escape": [(draw.choice(("../../" + CANARY, "/tmp/" + CANARY, "archive/../../" + CANARY)), b"x"), (name, content)],
            "twice": [(name, content), (name.upper(), content)],
            "noise": [(name, draw.randbytes(len(content)))],
            "empty": [(name, b"")],
        }[how]

    return rewritten(data, change, zipfile.ZIP_DEFLATED if how == "pack" else zipfile.ZIP_STORED)


def opcodes(draw: Draw) -> bytes:
    """An archive whose list of objects is changed, with right checksums."""
    data = files()[draw.choice(("archive", "training state"))][0]
    how = draw.choice([m for name, m in MUTATIONS.items() if name not in ("splice", "polyglot", "archive")])

    def change(name: str, content: bytes) -> list[tuple[str, bytes]]:
        if not name.endswith("data.pkl"):
            return [(name, content)]
        if draw.random() < 0.3:  # another number of values than there are
            return [
                (
                    name,
                    content.replace(
                        b"K\x05", draw.choice((b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"K\x04"))
                    ),
                )
            ]
        return [(name, how(draw, content))]

    return rewritten(data, change)


def archive_of(program: bytes) -> bytes:
    """An archive with this pickle for its list of objects."""
    return rewritten(files()["archive"][0], lambda name, old: [(name, program if name.endswith("data.pkl") else old)])


def packed(draw: Draw) -> bytes:
    """An archive that unpacks to a thousand times its size, or has a great many records."""
    out = io.BytesIO()
    many_records = draw.random() < 0.5
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED if many_records else zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickle.dumps({}, 2))
        if many_records:
            for n in range(draw.choice((1000, 70_000))):
                file.writestr(zipfile.ZipInfo(f"archive/data/{n}"), b"")
        else:
            file.writestr("archive/data/0", bytes(200_000_000))
    return out.getvalue()


# ---- programs
class Call:
    """Unpickled, it calls `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def programs(canary: str) -> dict[str, Any]:
    """Things whose unpickling writes the canary, in the ways that are known."""
    code = f"open({canary!r}, 'w').close()"
    touch = f"touch {canary}"
    return {
        "os.system": Call(os.system, touch),
        "posix": Call(importlib.import_module("posix").system, touch),
        "subprocess": Call(subprocess.call, ["touch", canary]),
        "popen": Call(subprocess.Popen, ["touch", canary]),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "open": Call(open, canary, "w"),
        "import": Call(builtins.__import__, "os"),
        "getattr": Call(getattr, Call(importlib.import_module, "os"), "system"),
        "nested": {"state_dict": {"weight": [(Call(os.system, touch),)]}},
        "partial": Call(functools.reduce, os.system, [touch]),
        "runpy": Call(runpy.run_path, canary),
        "rmtree": Call(shutil.rmtree, canary + ".folder"),
        "code": Call(compile, code, "x", "exec"),
        "torch.load": Call(torch.load, io.BytesIO(saved({}))),
        "hub": Call(torch.hub.load, canary, "x"),
        "jit": Call(torch.jit.load, canary),
        "ops": Call(torch.ops.load_library, canary),
        "classes": Call(torch.classes.load_library, canary),
        "collect": Call(torch.utils.collect_env.run, touch) if hasattr(torch.utils, "collect_env") else Call(os.system, touch),
        "inductor": Call(importlib.import_module("torch._inductor.codecache").PyCodeCache.load, code),
        "numpy": Call(importlib.import_module("numpy").load, canary),
        "module": nn.Linear(2, 2),
        "hook": Call(nn.Module),
        "bytearray": Call(bytearray, 10**11),
        "range": Call(list, range(10**9)),
        "text": Call("x".__mul__, 10**11),
        "storage": Call(torch.UntypedStorage, 10**13),
        "tensor": Call(torch.zeros, 10**6, 10**7),
        "old tensor": Call(torch.FloatTensor, 10**12),
        "encode": Call(importlib.import_module("_codecs").encode, "x" * 200_000, "punycode"),
        "counter": Call(collections.Counter, "ab"),
        "sparse": torch.eye(3).to_sparse(),
        "complex": {"a": torch.ones(3, dtype=torch.complex64)},
        "meta": {"a": torch.zeros(10**6, 10**6, device="meta")},
        "wide": {"a": torch.zeros(1).expand(10**9)},
        "deep list": functools.reduce(lambda a, _: [a], range(100), []),
        "set": {"a": {1, 2}},
    }


@functools.cache
def _program_names() -> tuple[str, ...]:
    return tuple(programs(CANARY))


def program(draw: Draw) -> bytes:
    """A pickle that would run code or take all memory, in one of the ways of packing it."""
    thing = programs(CANARY)[draw.choice(_program_names())]
    if draw.random() < 0.5:
        thing = {"weight": torch.ones(2), draw.choice(("state_dict", "extra", "model")): thing}
    way, protocol = draw.choice(("archive", "legacy", "raw", "inside")), draw.choice((2, 2, 3, 4))
    try:
        if way in ("archive", "legacy"):
            return saved(thing, legacy=way == "legacy")
        return pickle.dumps(thing, protocol) if way == "raw" else archive_of(pickle.dumps(thing, protocol))
    except (pickle.PicklingError, AttributeError, TypeError):  # tensors do not go into plain pickles of all versions
        return pickle.dumps(Call(os.system, f"touch {CANARY}"), protocol)


def by_hand(draw: Draw) -> bytes:
    """Instructions that no pickler writes: names from the stack, instances, extensions, endless tuples and numbers."""
    touch = b"touch " + CANARY.encode()
    text = b"X" + struct.pack("<I", len(touch)) + touch
    doubled = b"(K\x01tq\x00" + b"".join(b"h%ch%c\x86q%c" % (k, k, k + 1) for k in range(60))
    bodies = (
        b"cposix\nsystem\n" + text + b"\x85R.",
        b"(" + text + b"iposix\nsystem\n.",
        b"(cos\nsystem\n" + text + b"o.",
        b"\x8c\x05posix\x8c\x06system\x93" + text + b"\x85R.",
        b"\x82\x01.",
        b"\x84\x01\0\0\0.",
        b"}q\xff" + doubled + b"h\x3cK\x01s.",
        b"}" + b"\x8a\xff" + b"\xff" * 255 + b"K\x01s.",
        b"]" * 3_000_000 + b".",
        b"}(" + b"K\x01K\x01" * 900_000 + b"u.",
        b"(" * 1_000_000 + b".",
        b"}" + b"X\xff\xff\xff\x7fabc" + b"K\x01s.",
        b"cbuiltins\neval\n" + text + b"\x85R.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"ctorch.serialization\nload\n.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01Q.",
        b"ctorch\nFloatStorage\nK\x01\x85R.",
        b"}K\x01" + b"\x85" * 50_000 + b"K\x01s.",
        b"}K\x01" + b"\x85" * 500_000 + b"K\x01s.",
        b"]" * 50_000 + b"a" * 49_999 + b".",
        b"Pstorage\n.",
        b"\x96\xff\xff\xff\xff\0\0\0\0.",
    )
    body = b"\x80" + bytes([draw.choice((2, 4))]) + draw.choice(bodies)
    way = draw.choice(("raw", "archive", "legacy"))
    if way == "archive":
        return archive_of(body)
    start = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}."
    return start + body + b"\x80\x02]." if way == "legacy" else body


@functools.cache
def _scripts() -> tuple[bytes, ...]:
    """A TorchScript archive and an exported program."""
    found, out = [], io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), out)
    found.append(out.getvalue())
    out = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2).eval(), (torch.ones(1, 2),), strict=False), out)
    return (*found, out.getvalue())


def script(draw: Draw) -> bytes:
    """A TorchScript archive, an exported program (.pt2), a tar, whole or damaged."""
    data = draw.choice(_scripts())
    if draw.random() < 0.2:
        import tarfile

        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as file:
            file.addfile(tarfile.TarInfo(draw.choice(("storages", "../../" + CANARY, "/tmp/" + CANARY))))
        data = out.getvalue()
    return data if draw.random() < 0.5 else MUTATIONS[draw.choice(("cut", "flip", "overwrite", "extreme"))](draw, data)


KINDS: dict[str, tuple[Maker, int]] = {
    "bytes changed": (any_file, 30), "safetensors header": (header, 20), "safetensors of many parts": (many, 1),
    "archive records": (records, 12), "archive objects": (opcodes, 12), "archive unpacked": (packed, 0),
    "malicious objects": (program, 14), "malicious instructions": (by_hand, 8), "TorchScript, .pt2, tar": (script, 6),
}  # fmt: skip
PACKED_EVERY = 200


def case(seed: int, number: int) -> tuple[str, bytes, str]:
    """What is done, the bytes, and the ending of the file's name."""
    draw = random.Random(f"checkpoints/{seed}/{number}")
    kind = "archive unpacked" if number % PACKED_EVERY == 0 else draw.choices(list(KINDS), [w for _, w in KINDS.values()])[0]
    return kind, KINDS[kind][0](draw), draw.choice((".pth", ".pt", ".safetensors", ".bin", ".pt2", ".ckpt"))


class _Folder:
    path: Path | None = None


def prepare() -> None:
    """A folder to work in, where code of a file would leave its mark."""
    torch.set_num_threads(1)
    _Folder.path = Path(tempfile.mkdtemp())
    os.chdir(_Folder.path)
    _scripts()


def finish() -> None:
    """The folder goes."""
    if _Folder.path is not None:
        shutil.rmtree(_Folder.path, ignore_errors=True)


def attempt(data: bytes, ending: str) -> None:
    """Read the file and copy what fits into a network. AssertionError where anything but the file is left in the folder."""
    path = Path(f"net{ending}")
    path.write_bytes(data)
    try:
        state = read_state(path)
        assert all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())
        load_state(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)), state)
    finally:
        path.unlink()
        left = [*os.listdir("."), *(n for n in (f"/tmp/{CANARY}", f"../{CANARY}", f"../../{CANARY}") if os.path.exists(n))]
        if left:
            raise AssertionError(f"code of the file ran, or it wrote {left}")


def decoded_bytes(data: bytes) -> int:
    """What good contents of a file take."""
    return len(data)
