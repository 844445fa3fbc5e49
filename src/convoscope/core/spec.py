"""What a user configures: frozen, printable, comparable, registered by name, to JSON and back."""

import base64
import dataclasses
import functools
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, Literal, Self, Union, dataclass_transform

import torch
from torch import Tensor

from convoscope.core.errors import SpecError, did_you_mean

_REGISTRY: dict[str, dict[str, type["Spec"]]] = {}


@dataclass(frozen=True)
class Paper:
    """Where a method comes from: enough for a BibTeX entry."""

    key: str
    authors: str
    title: str
    venue: str
    year: int
    arxiv: str = ""

    def bibtex(self) -> str:
        entries = {"author": self.authors, "title": self.title, "year": self.year, "note": self.venue}
        entries |= {"eprint": self.arxiv, "archivePrefix": "arXiv"} if self.arxiv else {}
        return f"@misc{{{self.key},\n" + ",\n".join(f"  {k} = {{{v}}}" for k, v in entries.items()) + "\n}"


@dataclass(frozen=True)
class About:
    """The row of a method in the overview table: what it is for, what it costs, where it works, where it fails."""

    type: Literal["decision", "model", "data"]
    use: str
    cost: str
    support: str
    drawback: str


@dataclass(frozen=True)
class AtLeast:
    """Bound of a number in a Spec: `Annotated[int, "help", AtLeast(1)]`."""

    least: float


@dataclass(frozen=True)
class FieldInfo:
    """One setting of a Spec; `default` is `dataclasses.MISSING` where it must be given."""

    name: str
    type: Any
    default: Any
    help: str


@dataclass_transform(frozen_default=True, eq_default=False)
class Spec:
    """Base of everything a user configures. A subclass is a frozen dataclass, filed under its kind and kebab-case name."""

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None

    def __init_subclass__(cls, *, kind: str = "", abstract: bool = False, name: str = "", **rest: Any) -> None:
        super().__init_subclass__(**rest)
        dataclass(frozen=True, eq=False, repr=False)(cls)
        if kind:
            cls.kind = kind
        if abstract:
            return
        cls.name = name or _kebab(cls.__name__)
        table = _REGISTRY.setdefault(cls.kind, {})
        known = table.get(cls.name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise SpecError(f"two {cls.kind}s are called {cls.name!r}: in {known.__module__} and {cls.__module__}; rename one")
        table[cls.name] = cls

    def __post_init__(self) -> None:
        for field in fields_of(type(self)):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name), _options(field.type)))
            _check(self, field)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{f.name}={_shown(getattr(self, f.name))}' for f in fields_of(type(self)))})"

    def to_dict(self) -> dict[str, Any]:
        """This spec as JSON values; `Spec.from_dict` reads it back, equal."""
        settings = {f.name: _encode(getattr(self, f.name)) for f in fields_of(type(self))}
        return {"kind": self.kind, "name": self.name, **settings}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Spec":
        """The spec that `to_dict` described. Raises SpecError for unknown kinds, names and settings."""
        if not {"kind", "name"} <= set(data):
            raise SpecError(f"a spec is described by kind, name and settings; got {sorted(data)}")
        settings = {k: _decode(v) for k, v in data.items() if k not in ("kind", "name")}
        return lookup(data["kind"], data["name"]).make(settings)

    @classmethod
    def make(cls, settings: Mapping[str, Any]) -> Self:
        """An instance from named settings. Raises SpecError for an unknown one, with the closest names, or one that lacks."""
        known = [f.name for f in fields_of(cls)]
        for name in settings:
            if name not in known:
                hint = did_you_mean(name, known) or f"; it has {', '.join(known) or 'no settings'}"
                raise SpecError(f"{cls.kind} {cls.name!r} has no setting {name!r}{hint}")
        lacking = [f.name for f in fields_of(cls) if f.default is MISSING and f.name not in settings]
        if lacking:
            raise SpecError(f"{cls.kind} {cls.name!r} needs {', '.join(lacking)}")
        return cls(**settings)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and hash(self) == hash(other)

    def __hash__(self) -> int:
        if "_digest" not in self.__dict__:  # of the content: the same in every process
            text = json.dumps(self.to_dict(), sort_keys=True).encode()
            self.__dict__["_digest"] = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())
        return self.__dict__["_digest"]


def registered(kind: str) -> dict[str, type[Spec]]:
    """All specs of a kind ("method", "rule", "target") by name, in alphabetical order."""
    return dict(sorted(_REGISTRY.get(kind, {}).items()))


def lookup(kind: str, name: str) -> type[Spec]:
    """The spec class of this kind and name. Raises SpecError with the closest names."""
    table = _REGISTRY.get(kind, {})
    if name not in table:
        raise SpecError(f"no {kind} {name!r}{did_you_mean(name, table)} (known: {', '.join(sorted(table))})")
    return table[name]


@functools.cache
def fields_of(cls: type[Spec]) -> tuple[FieldInfo, ...]:
    """The settings of a spec class, with type, default and help."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        default = f.default if f.default_factory is MISSING else f.default_factory()
        texts = [m for m in getattr(hints[f.name], "__metadata__", ()) if isinstance(m, str)]
        found.append(FieldInfo(f.name, hints[f.name], default, " ".join(texts)))
    return tuple(found)


def parse_spec(kind: str, text: str) -> Spec:
    """A spec from text: `name` or `name:setting=value,setting=value`; a nested spec stands in parentheses.

    Example: `smooth-grad:samples=8,of=(integrated-gradients:steps=16)`. Of a setting given twice, the last counts.
    """
    name, _, rest = text.strip().partition(":")
    name = name.strip()
    cls = lookup(kind, name)
    hints = {f.name: f.type for f in fields_of(cls)}
    settings: dict[str, Any] = {}
    for part in _split(rest):
        key, equals, value = part.partition("=")
        if not equals:
            raise SpecError(f"{part!r} in {text!r} is not a setting; write setting=value")
        key = key.strip().replace("-", "_")
        settings[key] = parse_value(hints[key], value.strip(), f"{name}:{key}") if key in hints else value
    return cls.make(settings)


def parse_value(hint: Any, text: str, where: str) -> Any:
    """A value of the annotated type from text. Raises SpecError naming `where` if none of its types fits."""
    if type(None) in _options(hint) and text.lower() in ("none", ""):
        return None
    for option in sorted(_options(hint), key=lambda o: o is str):  # any text is a text
        if option is bool and text.lower() in ("true", "false", "yes", "no", "1", "0"):
            return text.lower() in ("true", "yes", "1")
        if isinstance(option, type) and issubclass(option, Spec):
            inner = text[1:-1] if text.startswith("(") and text.endswith(")") else text
            if str not in _options(hint) or inner.partition(":")[0] in _REGISTRY.get(option.kind, {}):
                return parse_spec(option.kind, inner)
        if option is tuple and text.startswith("(") and text.endswith(")"):
            return tuple(parse_value(int | float | str, part.strip(), where) for part in _split(text[1:-1]))
        if option in (int, float):
            try:
                return option(text)
            except ValueError:
                continue
        if typing.get_origin(option) is Literal and text in map(str, typing.get_args(option)):
            return next(v for v in typing.get_args(option) if str(v) == text)
        if option in (str, Any):
            return text
    raise SpecError(f"{where} is {text!r}; expected {describe_type(hint)}")


def describe_type(hint: Any) -> str:
    """The annotated type in words."""
    words = {int: "a whole number", float: "a number", str: "a text", bool: "yes or no", type(None): "none", Tensor: "a tensor"}
    found = []
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            found += [repr(v) for v in typing.get_args(option)]
        elif isinstance(option, type) and issubclass(option, Spec):
            found.append(f"a {option.kind}")
        else:
            found.append(words.get(option, getattr(option, "__name__", str(option)).lower()))
    return " or ".join(found)


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is Annotated:
        hint = hint.__origin__
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _plain(value: Any, options: Iterable[Any] = ()) -> Any:
    """Numbers of other libraries as Python's, lists as tuples, tensors as copies: what a frozen spec can keep."""
    if isinstance(value, Tensor) and (Tensor in options or value.dim() > 1):
        return value.detach().clone()
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, tuple | list):
        return tuple(_plain(v) for v in value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) and (int in options or float not in options) else float(value)


def _shown(value: Any) -> str:
    return f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _check(spec: Spec, field: FieldInfo) -> None:
    value = getattr(spec, field.name)
    if not any(_fits(value, option) for option in _options(field.type)):
        raise SpecError(f"{spec.name}: {field.name} is {_shown(value)}; expected {describe_type(field.type)}")
    for bound in getattr(field.type, "__metadata__", ()):
        if isinstance(bound, AtLeast) and isinstance(value, int | float) and not value >= bound.least:
            raise SpecError(f"{spec.name}: {field.name} is {value}; expected at least {bound.least:g}")


def _fits(value: Any, option: Any) -> bool:
    if option is Any:
        return True
    if typing.get_origin(option) is Literal:
        return value in typing.get_args(option)
    if option in (int, float):
        return isinstance(value, option) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(option) or option)


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
        if depth < 0:
            break
    if depth != 0:
        raise SpecError(f"parentheses do not match in {text!r}")
    return [p for p in parts if p.strip()]


def _encode(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_dict()
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous()
        data = base64.b64encode(raw.reshape(-1).view(torch.uint8).numpy().tobytes()).decode()
        return {"tensor": data, "dtype": str(raw.dtype).removeprefix("torch."), "shape": list(raw.shape)}
    if isinstance(value, tuple | list):
        return [_encode(v) for v in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, Mapping) and "kind" in value:
        return Spec.from_dict(value)
    if isinstance(value, Mapping) and "tensor" in value:
        raw, dtype = bytearray(base64.b64decode(value["tensor"])), getattr(torch, value["dtype"])
        found = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype, device="cpu")
        return found.reshape(value["shape"]).clone()
    if isinstance(value, tuple | list):
        return tuple(_decode(v) for v in value)
    return value
