"""A network: any `nn.Module` plus its input space. Loading by name, reading pictures, predicting, listing layers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convoscope.core.errors import ImageError, NonFiniteError, UsageError
from convoscope.core.finite import finite, place
from convoscope.core.record import record
from convoscope.core.run import undisturbed
from convoscope.core.trace import Trace, trace
from convoscope.data.fingerprint import digest_of, plain_state, version_of
from convoscope.data.tensors import blurred, fit, pixels_of_tensor
from convoscope.targets import Logit, Target, probabilities

Images = Float[Tensor, "batch channel height width"]
Pictures = Float[Tensor, "batch 3 height width"]


class Prediction(NamedTuple):
    """One category of an image, with its softmax probability 0..1."""

    index: int
    category: str
    probability: float


class Layer(NamedTuple):
    """One row of `net.layers()`; sizes in input pixels, vertical and horizontal.

    `receptive_field` is None for the whole image, `stride` and `offset` also where units are not evenly spaced; `exact` is
    False where the field could only be bounded.
    """

    address: str
    operator: str
    shape: tuple[int, ...]
    receptive_field: tuple[int, int] | None
    stride: tuple[float, float] | None
    offset: tuple[float, float] | None
    exact: bool
    parameters: int


class LayerTable(list[Layer]):
    """The addresses of a network in the order they run; printed, a table."""

    header = ("layer", "operator", "shape", "receptive field", "stride", "parameters")

    def rows(self) -> list[tuple[str, ...]]:
        """The table as text."""
        found = []
        for e in self:
            field = "whole image" if e.receptive_field is None else _pair(e.receptive_field) + ("" if e.exact else " at most")
            stride, parameters = _pair(e.stride) if e.stride else "", f"{e.parameters:,}" if e.parameters else ""
            found.append((e.address, e.operator, " x ".join(map(str, e.shape)), field, stride, parameters))
        return found

    def __str__(self) -> str:
        rows = [self.header, *self.rows()]
        widths = [max(len(r[i]) for r in rows) for i in range(len(self.header))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)

    def _repr_html_(self) -> str:
        from convoscope.show.html import table

        return table(self.header, self.rows())


def _pair(values: tuple[float, float]) -> str:
    a, b = (f"{v:g}" for v in values)
    return a if a == b else f"{a} x {b}"


class Network:
    """Any module with its input space. The module is never changed by anything done here; `module` is the same object.

    `size` is the height and width it takes (None: any), `mean` and `std` are per channel in 0..1 pixels (input space is
    `(pixel - mean) / std`), `categories` names the classes, `transform` turns a PIL picture into a `(C, H, W)` input
    (default: resize the shorter side to `size`, crop the center, normalize), `output` names the entry of a mapping or
    sequence that the module returns.
    """

    def __init__(
        self,
        module: nn.Module,
        size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        categories: Sequence[str] | None = None,
        *,
        channels: int | None = None,
        name: str | None = None,
        transform: Callable[[Any], Tensor] | None = None,
        output: str | int | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise UsageError(f"a network is a torch.nn.Module; got {type(module).__name__}")
        if any(t.is_meta or nn.parameter.is_lazy(t) for t in _tensors(module)):
            raise UsageError("the network has parameters without values (lazy, or on the meta device); load its weights first")
        self.module = module
        self.size = None if size is None else _two(size)
        self._takes = channels or _channels(module)
        self.channels = self._takes or (len(mean) if isinstance(mean, Sequence) else 3)
        self.mean, self.std = _per_channel(mean, 0.0, self.channels), _per_channel(std, 1.0, self.channels)
        if min(self.std) <= 0 or max(self.mean) > 1 < max(self.std):
            raise UsageError(f"mean and std are those of pixels 0..1, std above 0; got {self.mean} and {self.std}")
        if isinstance(categories, str):
            raise UsageError(f"categories are a list of names, one for each class; got the text {categories!r}")
        self.categories = tuple(categories or ())
        self.name = name or type(module).__name__
        self.transform, self.output = transform, output
        self._traces: dict[tuple[int, ...], Trace] = {}
        self._hash: tuple[Any, str] = (None, "")
        self._finite: Any = None

    def __repr__(self) -> str:
        size = "any size" if self.size is None else "{} x {}".format(*self.size)
        parameters = sum(p.numel() for p in self.module.parameters())
        categories = f"{len(self.categories) or 'unnamed'} categories"
        return f"Network({self.name}: {self.channels} channels, {size}, {categories}, {parameters:,} parameters)"

    # ---- the module as it is run
    @property
    def plain(self) -> nn.Module:
        """The module itself, or the one a compiled module was made from."""
        return getattr(self.module, "_orig_mod", self.module)

    @property
    def device(self) -> torch.device:
        """Where the first parameter lives."""
        return next((t.device for t in _tensors(self.module)), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the parameters."""
        return next((t.dtype for t in _tensors(self.module) if t.is_floating_point()), torch.float32)

    @property
    def hash(self) -> str:
        """Sixteen digits that change with any weight or buffer."""
        state = plain_state(self.plain)
        version = version_of(state)
        if self._hash[0] != version:
            self._hash = version, digest_of(state)
        return self._hash[1]

    def head(self, output: Any) -> Tensor:
        """The output tensor in what the module returned. Raises UsageError naming the entries where the choice is open."""
        if isinstance(output, Tensor):
            return output
        entries = dict(output) if isinstance(output, Mapping) else None
        if entries is None and isinstance(output, tuple) and hasattr(output, "_asdict"):
            entries = output._asdict()
        if entries is None and isinstance(output, tuple | list):
            entries = dict(enumerate(output))
        if entries is None and is_dataclass(output):  # also with slots
            entries = {f.name: getattr(output, f.name) for f in fields(output)}
        if entries is None:
            entries = dict(vars(output)) if hasattr(output, "__dict__") else {}
        tensors = {k: v for k, v in entries.items() if isinstance(v, Tensor)}
        if self.output in tensors:
            return tensors[self.output]
        names = [k for k in ("logits", "out", "output") if k in tensors] if self.output is None else []
        if self.output is None and (names or len(tensors) == 1):
            return tensors[names[0]] if names else next(iter(tensors.values()))
        if not tensors:
            raise UsageError(f"the network returns no tensor but a {type(output).__name__}; wrap it so that it returns one")
        known = ", ".join(repr(k) for k in tensors)
        raise UsageError(f"the network returns several tensors ({known}); choose one with Network(module, output=...)")

    # ---- pictures in, pictures out
    def read(self, source: Any) -> Images:
        """Pictures in the network's input space.

        `source` is a path, file, PIL picture, array (H, W), (H, W, C), tensor (C, H, W), (B, C, H, W), or a list of them.
        Arrays and tensors hold pixels: integers 0..255 (or uint16, 0..65535) or floats 0..1; a tensor that has the network's
        size already is only normalized. Raises ImageError for what cannot be read, UsageError for a missing file.
        """
        if isinstance(source, list | tuple):
            rows = [self.read(s) for s in source]
            if not rows:
                raise UsageError("no pictures to read; give a path, a picture, an array, a tensor or a list of them")
            if len({r.shape[1:] for r in rows}) > 1:
                raise ImageError(
                    f"pictures of different sizes {[tuple(r.shape[2:]) for r in rows]} make no batch; read them one by one, "
                    "or give Network a size"
                )
            return torch.cat(rows)
        pixels = pixels_of_tensor(source, self.channels) if isinstance(source, Tensor) else self._pixels_of_picture(source)
        if pixels.dim() == 3:  # already transformed
            return pixels[None].to(self.device, self.dtype)
        fits = self.size is not None and tuple(pixels.shape[2:]) == self.size
        if self.transform is not None and self.channels in (1, 3) and not fits:
            return self.read([p.permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy() for p in pixels])
        if self.size is not None and not fits:
            pixels = fit(pixels, self.size)
        return self.normalize(pixels).to(self.device, self.dtype)

    def _pixels_of_picture(self, source: Any) -> Tensor:
        from convoscope.data.pictures import read_picture

        if self.channels not in (1, 3):
            raise ImageError(
                f"the network takes {self.channels} channels, which no picture file has; give a tensor "
                f"(images, {self.channels}, height, width) of pixels 0..1"
            )
        picture = read_picture(source, mode="L" if self.channels == 1 else "RGB")
        if self.transform is not None:
            found = self.transform(picture)
            if not (isinstance(found, Tensor) and found.dim() == 3):
                got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise UsageError(f"the network's transform makes a tensor (channels, height, width) of a picture; got {got}")
            return found
        raw = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return raw.view(1, picture.height, picture.width, self.channels).permute(0, 3, 1, 2).to(torch.float64) / 255

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels 0..1 to input space."""
        return (pixels - _column(self.mean, pixels)) / _column(self.std, pixels)

    def picture(self, x: Images) -> Pictures:
        """The pixels 0..1 of inputs, in color, for showing: the inverse of the normalization, clipped."""
        pixels = (x.detach() * _column(self.std, x) + _column(self.mean, x)).clamp(0, 1).float().cpu()
        if pixels.shape[1] == 3:
            return pixels
        return (pixels if pixels.shape[1] == 1 else pixels.mean(1, keepdim=True)).expand(-1, 3, -1, -1)

    def check(self, x: Any) -> Images:
        """`x` on the network's device and in its floating type. Raises UsageError unless it is `(B, C, H, W)` and fits."""
        if not isinstance(x, Tensor):
            raise UsageError(
                f"expected a tensor (images, {self.channels}, height, width); got {type(x).__name__}; "
                "net.read() makes one from pictures"
            )
        if x.is_meta or x.layout != torch.strided:
            raise UsageError(f"expected a dense tensor with values; got one {'without' if x.is_meta else f'of {x.layout}'}")
        if x.dim() != 4 or x.numel() == 0:
            raise UsageError(f"expected a tensor (images, {self.channels}, height, width); got shape {tuple(x.shape)}")
        if self._takes not in (None, x.shape[1]):
            raise UsageError(f"the network takes {self.channels} channels; got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise UsageError(f"inputs are floats in the network's input space; net.read() makes them of pixels; got {x.dtype}")
        return x.as_subclass(Tensor).to(self.device, self.dtype)  # type: ignore[arg-type]

    def check_weights(self) -> None:
        """Raises NonFiniteError where a weight is NaN or infinite, or a buffer NaN; looks again after a change in place."""
        state = [*self.plain.named_parameters(), *self.plain.named_buffers()]
        version = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for _, t in state)
        if version == self._finite:
            return
        for name, t in state:
            buffer = not isinstance(t, nn.Parameter)  # a mask is full of infinity
            if t.is_floating_point() and not finite(t) and not (buffer and not t.isnan().any()):
                raise NonFiniteError(f"weight {name!r} holds {place(t)}; load the network's weights again")
        self._finite = version

    # ---- questions
    @torch.no_grad()
    def predict(self, x: Any, top: int = 5, batch_size: int = 32) -> list[list[Prediction]]:
        """The `top` categories of each image, most probable first. `x` is an input tensor, or anything `read` takes.

        Probabilities are the softmax of the output (the sigmoid of a single one), or the output itself where it sums to 1.
        """
        if top < 1:
            raise UsageError(f"top is {top}; expected at least 1")
        x = self.check(x if isinstance(x, Tensor) else self.read(x))
        with undisturbed(self.plain):
            outputs = torch.cat(
                [record(self.plain, b, ("output",), head=self.head)["output"] for b in x.clone().split(batch_size)]
            )
        if outputs.dim() != 2 or not outputs.is_floating_point():
            got = f"{tuple(outputs.shape)} of {outputs.dtype}"
            raise UsageError(f"the output has shape {got}, not (images, classes) of real numbers; there is nothing to rank")
        best = probabilities(outputs.double()).topk(min(top, outputs.shape[1]), 1)
        return [
            [Prediction(i, self.category(i), p) for i, p in zip(index.tolist(), value.tolist(), strict=True)]
            for index, value in zip(best.indices, best.values, strict=True)
        ]

    def category(self, index: int) -> str:
        """The name of a class, or `class 7` where it has none."""
        return self.categories[index] if 0 <= index < len(self.categories) else f"class {index}"

    def target(self, which: Any = None) -> Target:
        """A target from a class number, a category name, one of these for each image, "top" or None (the top class of each
        image), or a target."""
        if which is None or (isinstance(which, str) and which == "top"):
            return Logit()
        if isinstance(which, list) or (isinstance(which, Tensor) and which.dim() == 1):
            which = tuple(which.tolist() if isinstance(which, Tensor) else which)
        for one in which if isinstance(which, tuple) else (which,):
            if not isinstance(one, Target | str) and (isinstance(one, bool) or not hasattr(one, "__index__")):
                raise UsageError(f"a target is a class number, a category name, 'top' or a Target; got {type(one).__name__}")
        return (which if isinstance(which, Target) else Logit(which)).named(self.categories)

    def layers(self, size: int | tuple[int, int] | None = None) -> LayerTable:
        """All addresses in the order they run, with shape and receptive field for inputs of `size` (default: the network's)."""
        size = self.size if size is None else _two(size)
        if size is None:
            raise UsageError("this network takes any size; say for which: net.layers(224)")
        entries = self.trace(torch.zeros(1, self.channels, *size, device=self.device, dtype=self.dtype)).entries
        return LayerTable(_row(e) for e in entries)

    def trace(self, x: Images) -> Trace:
        """What one forward pass of the first image runs; kept for each input shape."""
        key = tuple(x.shape[1:])
        if key not in self._traces:
            with undisturbed(self.plain):
                found = trace(self.plain, x[:1].detach().clone(), self.head)
            self._traces[key] = found
        return self._traces[key]

    # ---- baselines
    def baseline(self, which: Any, x: Images) -> Images:
        """An uninformative image for each of `x` `(B, C, H, W)`: "black", "white", "mean", "blur", a number or a tensor."""
        if isinstance(which, Tensor):
            if which.dim() != 4 or any(n not in (1, m) for n, m in zip(which.shape, x.shape, strict=True)):
                raise UsageError(
                    f"a baseline tensor is (1, {x.shape[1]}, {x.shape[2]}, {x.shape[3]}); got {tuple(which.shape)}"
                )
            return which.to(x).expand_as(x)
        if isinstance(which, int | float):
            return torch.full_like(x, float(which))
        pixel = {"black": 0.0, "white": 1.0}
        if which in pixel:
            return self.normalize(torch.full_like(x, pixel[which]))
        if which == "mean":
            return x.mean((2, 3), keepdim=True).expand_as(x)
        if which == "blur":
            return blurred(x)
        raise UsageError(f"no baseline {which!r}; expected black, white, mean, blur, uniform, a number or a tensor")


def _two(size: Any) -> tuple[int, int]:
    both = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else ()
    if len(both) != 2 or not all(isinstance(n, int) and n > 0 for n in both):
        raise UsageError(f"a size is a number of pixels or (height, width); got {size!r}")
    return both


def _per_channel(values: Sequence[float] | float | None, default: float, channels: int) -> tuple[float, ...]:
    values = default if values is None else values
    found = (float(values),) * channels if isinstance(values, int | float) else tuple(float(v) for v in values)
    if len(found) != channels:
        raise UsageError(f"the network takes {channels} channels; mean and std need as many numbers, or one; got {found}")
    return found


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _channels(module: nn.Module) -> int | None:
    for m in module.modules():
        if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return m.in_channels
        if isinstance(m, nn.Linear):
            return None
    return None


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def _row(entry: Any) -> Layer:
    field = entry.field
    whole = field is None or field.whole
    size, stride, offset = (None, None, None) if whole else (field.size, field.stride, field.offset)
    stride, offset = (None if v is None or None in v else v for v in (stride, offset))
    exact = field is not None and field.exact
    return Layer(entry.address, entry.operator, entry.shape, size, stride, offset, exact, entry.parameters)
