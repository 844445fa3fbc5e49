"""What a result depends on, as short hashes: weights, architecture, input space, statistic and its code, rows of data."""

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convoscope.core.errors import ConvoscopeError
from convoscope.core.statistic import Statistic
from convoscope.engine.shards import Shard
from convoscope.network import Network

SCHEMA = "convoscope.shard/1"


def digest(*parts: Any) -> str:
    """24 digits that change with any of the parts."""
    text = json.dumps(described(parts), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def described(value: Any) -> Any:
    """A setting as JSON values that are the same in every process; tensors by their content, functions by their code."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): described(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [described(v) for v in (sorted(value, key=repr) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return ["tensor", str(value.dtype), list(value.shape), hashlib.blake2b(raw, digest_size=12).hexdigest()]
    if isinstance(value, type):
        return [value.__module__, value.__qualname__]
    if isinstance(value, np.ndarray):
        return ["array", str(value.dtype), list(value.shape), hashlib.blake2b(value.tobytes(), digest_size=12).hexdigest()]
    if isinstance(value, MethodType):
        return [described(value.__func__), described(value.__self__)]
    if isinstance(value, FunctionType):
        cells = [c.cell_contents for c in value.__closure__ or ()]
        return [value.__module__, value.__qualname__, _code(value.__code__), described(cells), described(value.__defaults__)]
    if hasattr(value, "key") and hasattr(value, "picture") and hasattr(value, "__len__"):  # a data set
        return [type(value).__qualname__, value.name, len(value), [repr(c) for c in getattr(value, "concepts", ())]]
    if is_dataclass(value):
        return [type(value).__qualname__, {f.name: described(getattr(value, f.name)) for f in fields(value)}]
    if type(value).__repr__ is object.__repr__ and hasattr(value, "__dict__"):  # which would say nothing of its settings
        return [type(value).__qualname__, described(vars(value))]
    return plain_repr(value)


def plain_repr(value: Any) -> str:
    """`repr` without the addresses of objects, which no other process has."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _code(code: CodeType) -> str:
    inner = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    raw = repr((code.co_code, inner, code.co_names)).encode()
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


def network_key(network: Network) -> str:
    """Changes with any weight, the architecture as printed, and the input space."""
    space = [network.size, network.mean, network.std, str(network.dtype), network.output, described(network.transform)]
    return digest(network.hash, plain_repr(network.plain), space)


def statistic_key(statistic: Statistic) -> str:
    """Changes with the kind of statistic, its settings and its code."""
    kind = type(statistic)
    return digest(kind.__module__, kind.__qualname__, code_version(kind), statistic.settings)


@cache
def code_version(kind: type) -> str:
    """The package's version and the source of a class and its bases: of their whole files where they are ours."""
    try:
        found = [version("convoscope")]
    except PackageNotFoundError:  # run from a folder
        found = []
    for base in kind.__mro__[:-1]:
        ours = base.__module__.split(".")[0] == "convoscope"
        try:
            found.append(inspect.getsource(sys.modules[base.__module__] if ours else base))
        except (OSError, TypeError, KeyError):  # typed into an interpreter
            found.append(base.__qualname__)
    return digest(found)


def shard_key(network: str, dataset: Any, shard: Shard) -> str:
    """Changes with the network's key, the rows and their files, the place and number of images, classes and concepts."""
    rows = [_row(dataset, i) for i in range(shard.start, shard.stop)]
    names = [list(dataset.classes), [repr(c) for c in getattr(dataset, "concepts", ())]]
    return digest(SCHEMA, network, shard.start, shard.stop, len(dataset), rows, names)


def _row(dataset: Any, i: int) -> str:
    try:
        return str(dataset.key(i))
    except (ConvoscopeError, OSError) as error:  # a file that is not there; with it, the key is another
        return f"none: {type(error).__name__}"
