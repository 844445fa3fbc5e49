"""A generator of pictures: any module that makes pictures of codes, with what a code may be; to a file and back."""

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convoscope.core.errors import LoadError, UsageError, did_you_mean
from convoscope.data.sealed import open_sealed, write_sealed

FORMAT = "convoscope.generator/1"
SHIPPED = {"scenes": "scenes-generator.safetensors"}
Prior = Literal["normal", "features"]
Codes = Float[Tensor, "rows ..."]
Pixels = Float[Tensor, "rows channels height width"]
_known: "WeakValueDictionary[str, Generator]" = WeakValueDictionary()  # by hash: those of this process


class Generator:
    """A module that makes pictures of codes, `generator(codes) -> pixels 0..1`. It keeps a copy: yours is left alone.

    `code` is the shape of one code, `d` or `(d,)` or `(d, 1, 1)` or `(C, h, w)`. `range` is what the module returns for black
    and for white, (-1, 1) after a tanh; what lies outside is clipped. A module that returns rows of numbers needs `shape`,
    the (channels, height, width) of a picture. `prior` says what codes are: "normal", drawn from N(0, I) as for a GAN, or
    "features", the activations of a layer, of which `mean` and `deviation` over data, each of the shape of a code, give the
    bounds. `made` is how it came to be: network, layer, settings.
    """

    def __init__(
        self, module: nn.Module, code: int | Sequence[int], range: tuple[float, float] = (0.0, 1.0), *,
        shape: Sequence[int] | None = None, prior: Prior = "normal", mean: Tensor | None = None,
        deviation: Tensor | None = None, made: Mapping[str, Any] | None = None, reference: str = "",
    ) -> None:  # fmt: skip
        if not isinstance(module, nn.Module):
            raise UsageError(f"a generator is a torch.nn.Module that makes pictures of codes; got {type(module).__name__}")
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.code = (int(code),) if isinstance(code, int) else tuple(int(n) for n in code)
        self.range = float(range[0]), float(range[1])
        self.shape = None if shape is None else tuple(shape)
        self.prior, self.made = prior, dict(made or {})
        self.mean, self.deviation = (self._statistic(t) for t in (mean, deviation))
        self._check()
        self.hash = self._hashed()
        self.reference = reference or f"{type(module).__name__} in memory"
        self._copies: dict[tuple[torch.device, torch.dtype], nn.Module] = {}
        _known[self.hash] = self

    def _statistic(self, given: Tensor | None) -> Tensor | None:
        if given is not None and given.numel() != math.prod(self.code):
            raise UsageError(f"statistics of codes have their shape {self.code}; got {tuple(given.shape)}")
        return None if given is None else given.detach().to("cpu", torch.float32).reshape(self.code).clone()

    def _check(self) -> None:
        if len(self.code) not in (1, 3) or min(self.code) < 1:
            raise UsageError(f"a code is a number of entries or (channels, height, width); got {self.code}")
        if self.prior not in ("normal", "features"):
            raise UsageError(f"a generator's prior is 'normal' or 'features'; got {self.prior!r}")
        if not self.range[0] < self.range[1]:
            raise UsageError(
                f"the range of a generator is what it returns for black and white, such as (-1, 1); got {self.range}"
            )
        if (self.mean is None) != (self.deviation is None) or (self.prior == "features" and self.mean is None):
            raise UsageError("a generator of features needs mean and deviation of its codes over data")

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.module.parameters())
        layer = f" of {self.made['layer']}" if "layer" in self.made else ""
        return f"Generator({self.reference}: codes {self.code}{layer}, {self.prior}, {parameters:,} parameters)"

    def _hashed(self) -> str:
        told = (self.code, self.range, self.shape, self.prior, str(self.module))
        digest = hashlib.blake2b(repr(told).encode(), digest_size=8)
        for tensor in (*self.module.state_dict().values(), self.mean, self.deviation):
            if tensor is not None:
                digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
        return digest.hexdigest()

    # ---- pictures of codes
    def __call__(self, codes: Codes) -> Pixels:
        """The pictures of codes `(rows, *code)`, differentiable, where the codes are. Trailing axes of 1 may be left out.

        Raises UsageError for codes of another shape.
        """
        rows = _shaped(codes, self.code)
        out = self._at(rows.device, rows.dtype)(rows)
        if self.shape is not None:
            out = out.reshape(len(rows), *self.shape)
        if out.dim() != 4:
            raise UsageError(
                f"this generator returns {tuple(out.shape)}; say which picture that is: shape=(channels, height, width)"
            )
        low, high = self.range
        return ((out - low) / (high - low)).clamp(0, 1)

    def _at(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The module where codes live; as loaded, or a copy of it."""
        here = next(self.module.parameters(), torch.zeros(0))
        if (here.device, here.dtype) == (device, dtype):
            return self.module
        key = device, dtype
        if key not in self._copies:
            self._copies[key] = copy.deepcopy(self.module).to(device, dtype)
        return self._copies[key]

    @property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """The least and the largest that each entry of a code of features may be, as Nguyen et al. (2016) have it: 0 (or,
        where activations are negative, three deviations under the mean) and three deviations over the mean."""
        if self.prior != "features" or self.mean is None or self.deviation is None:
            return None
        low = self.mean - 3 * self.deviation
        return (torch.zeros_like(low) if self.made.get("rectified", True) else low), self.mean + 3 * self.deviation

    # ---- files
    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Writes a safetensors file, whole or absent, with weights in `dtype` (`torch.float16` halves the file).

        Raises UsageError for a module that a file cannot describe: only trained here is known by its settings.
        """
        if not isinstance(self.module, Upconvolution | Perceptron):
            raise UsageError(
                f"{type(self.module).__name__} cannot be written: files describe generators of `convoscope generator train`; "
                "wrap yours again with cs.Generator(module, ...)"
            )
        path = Path(path)
        told = {
            "architecture": self.module.settings,
            "code": self.code,
            "range": self.range,
            "prior": self.prior,
            "made": self.made,
        }
        tensors = {f"module.{k}": v.to(dtype if v.is_floating_point() else None) for k, v in self.module.state_dict().items()}
        tensors |= {k: v for k, v in (("mean", self.mean), ("deviation", self.deviation)) if v is not None}
        tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
        write_sealed(path, tensors, {"format": FORMAT, "generator": json.dumps(told, sort_keys=True)})
        return path


def load_generator(source: str | Path | Generator) -> Generator:
    """The generator in a file, or the one that ships with the package: "scenes". Raises LoadError, UsageError."""
    if isinstance(source, Generator):
        return source
    path = (
        Path(str(files("convoscope.data.scenes") / "weights" / SHIPPED[str(source)]))
        if str(source) in SHIPPED
        else Path(source)
    )
    if not path.is_file():
        raise UsageError(
            f"no generator {str(source)!r}{did_you_mean(str(source), SHIPPED)}: neither a file nor one of {', '.join(SHIPPED)}"
        )
    found, said = open_sealed(path, "generator", FORMAT)
    tensors = {name: tensor.float() for name, tensor in found.items()}
    told = json.loads(said["generator"])
    mean, deviation = tensors.pop("mean", None), tensors.pop("deviation", None)
    module = build(told["architecture"])
    module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items()}, strict=False)
    return Generator(
        module, told["code"], told["range"], prior=told["prior"], mean=mean, deviation=deviation, made=told["made"],
        reference=str(source),
    )  # fmt: skip


def recall(reference: str, digest: str) -> Generator:
    """The generator of this reference and hash, from this process or its file. Raises UsageError where it is another."""
    if digest in _known:
        return _known[digest]
    if reference not in SHIPPED and not Path(reference).is_file():
        raise UsageError(
            f"the generator {reference!r} ({digest}) is not here; wrap it with cs.Generator first, or bring its file"
        )
    found = load_generator(reference)
    if digest and found.hash != digest:
        raise UsageError(f"the generator in {reference!r} is {found.hash}; this picture was made with {digest}")
    return found


def _shaped(codes: Tensor, code: tuple[int, ...]) -> Tensor:
    if codes.dim() < 2 or tuple(codes.shape[1:]) != code:
        plain = [tuple(n for n in s if n != 1) for s in (codes.shape[1:], code)]
        if codes.dim() < 2 or math.prod(codes.shape[1:]) != math.prod(code) or plain[0] != plain[1]:
            raise UsageError(f"expected codes (rows, {', '.join(map(str, code))}); got shape {tuple(codes.shape)}")
    return codes.reshape(len(codes), *code)


# ---- the architectures that files describe
class Perceptron(nn.Module):
    """The simple GAN: a code `(rows, d)`, hidden layers of rectifiers, pixels by a sigmoid (Goodfellow et al., 2014)."""

    def __init__(self, code: int, size: Sequence[int], channels: int, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        height, across = size
        self.settings = {
            "kind": "perceptron",
            "code": code,
            "size": [height, across],
            "channels": channels,
            "width": width,
            "depth": depth,
        }
        self.shape = channels, height, across
        sides = [code, *[width] * depth]
        hidden = [m for a, b in pairwise(sides) for m in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
        self.layers = nn.Sequential(*hidden, nn.Linear(sides[-1], math.prod(self.shape)), nn.Sigmoid())

    def forward(self, code: Float[Tensor, "rows d"]) -> Pixels:
        return self.layers(code).reshape(len(code), *self.shape)


class Upconvolution(nn.Module):
    """Doubles a code's map until it is a picture of `size` (Radford et al., 2016; Dosovitskiy and Brox, 2016).

    A code is `(rows, d)`, `(rows, d, 1, 1)` or `(rows, C, h, w)`. Each stage is a 4 x 4 transposed convolution of stride 2,
    batch norm and a leaky rectifier; the last has `width` channels, each before it `width` more.
    """

    def __init__(self, code: Sequence[int], size: Sequence[int], channels: int, width: int = 32) -> None:
        super().__init__()
        depth, *place = *code, *(1, 1)[len(code) - 1 :]
        self.settings = {"kind": "upconvolution", "code": list(code), "size": list(size), "channels": channels, "width": width}
        stages = doublings(size, None if place == [1, 1] else place)
        self.start = size[0] >> stages, size[1] >> stages
        widths = [width * (stages - k) for k in range(stages)] or [width]
        self.spread = place == [1, 1]
        first = (
            nn.ConvTranspose2d(depth, widths[0], self.start, bias=False)
            if self.spread
            else nn.Conv2d(depth, widths[0], 3, 1, 1, bias=False)
        )
        parts = [first, *_normal(widths[0])]
        for a, b in pairwise(widths):
            parts += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), *_normal(b)]
        last = nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1) if stages else nn.Conv2d(widths[-1], channels, 3, 1, 1)
        self.layers = nn.Sequential(*parts, last, nn.Sigmoid())

    def forward(self, code: Codes) -> Pixels:
        code = code if code.dim() == 4 else code[:, :, None, None]
        if not self.spread and tuple(code.shape[2:]) != self.start:
            code = nn.functional.interpolate(code, self.start, mode="bilinear", align_corners=False)
        return self.layers(code)


def _normal(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(width), nn.LeakyReLU(0.2)


def doublings(size: Sequence[int], start: Sequence[int] | None = None) -> int:
    """How often a map is doubled to make `size`: from the map of a code where it has one, else from a side of 4 to 7."""
    aim = min(start) if start is not None else 4
    stages = 0
    while all(n % 2 ** (stages + 1) == 0 for n in size) and min(size) >> (stages + 1) >= aim:
        stages += 1
    return stages


def build(settings: Mapping[str, Any]) -> nn.Module:
    """The module, with random weights, that `module.settings` describes."""
    kinds = {"perceptron": Perceptron, "upconvolution": Upconvolution}
    rest = dict(settings)
    kind = rest.pop("kind", None)
    if kind not in kinds:
        raise LoadError(f"this generator is of a kind {kind!r}; this version knows {', '.join(kinds)}")
    with torch.random.fork_rng(devices=[]):
        return kinds[kind](**rest)
