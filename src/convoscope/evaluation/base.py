"""What a metric is, and the case it judges: images, a target, and one map of each method for each image."""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.core.probe import Probe
from convoscope.core.session import Session
from convoscope.core.spec import Spec, registered
from convoscope.evaluation.folding import Folded
from convoscope.method import Method, explain
from convoscope.network import Images, Network
from convoscope.targets import Logit, LogProbability, Probability, Target

Maps = Float[Tensor, "methods images height width"]
Scores = Float[Tensor, "methods images"]
Family = Literal["faithfulness", "robustness", "localization", "complexity", "randomization", "axioms"]


class Metric(Spec, kind="metric", abstract=True):
    """Base of all metrics: one number for each method and image, NaN where it is not defined there.

    `direction`: +1 where higher is better, -1 where lower is, 0 where neither is. `range`: between which numbers it lies.
    `unit`: what it measures, where `{target}` stands for the unit of the target. `needs` lists what a case must have beside
    maps: "truth" (a mask of each image), "methods" (maps can be made anew), "classes" (images of several classes).
    `scale_free`: a map and its multiples score alike. `blind`: it looks at the values of a map alone, neither at the network
    nor at where they are. `still`: the score of a map that does not know the network, for metrics that randomize it. `shared`:
    its passes serve all methods at once.
    """

    title: ClassVar[str]
    family: ClassVar[Family]
    direction: ClassVar[int] = 1
    range: ClassVar[tuple[float, float]] = (float("-inf"), float("inf"))
    unit: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    scale_free: ClassVar[bool] = True
    blind: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    still: ClassVar[float] = 1.0
    use: ClassVar[str] = ""
    drawback: ClassVar[str] = ""

    def score(self, case: "Case") -> Scores:
        """The metric of each map."""
        raise NotImplementedError

    def passes(self, case: "Case") -> int:
        """How many forward passes of one image it needs at most for each image and method; what several share counts once."""
        raise NotImplementedError


def metrics() -> dict[str, type[Metric]]:
    """All registered metrics by name."""
    import convoscope.evaluation  # noqa: F401  registers them

    return registered("metric")  # type: ignore[return-value]


@dataclass
class Case:
    """Some images with a target each, and a map of each method for each; what metrics compute in common is kept in `memo`.

    `maps` are signed, at the size of the images, in float64. `truth` marks where the evidence is, if that is known. Draws
    depend on the seed and on the image's place in the data set, `places`, never on what else is in the case. `kept` is what
    several cases of an evaluation have in common. `room`: how many bytes the random masks of a metric may take.
    """

    network: Network
    x: Images
    target: Target
    maps: Maps
    names: tuple[str, ...]
    methods: tuple[Method | None, ...] = ()
    values: tuple[Tensor, ...] = ()
    truth: Bool[Tensor, "images height width"] | None = None
    places: tuple[int, ...] = ()
    seed: int = 0
    batch_size: int = 32
    passes: int = 0
    progress: Callable[[int], None] | None = None
    room: int = 1 << 28
    memo: dict[Hashable, Any] = field(default_factory=dict)
    kept: dict[Hashable, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = (len(self.names), len(self.x), *self.x.shape[2:])
        if tuple(self.maps.shape) != expected:
            raise UsageError(f"maps are (methods, images, height, width) = {expected}; got {tuple(self.maps.shape)}")
        if not self.maps.isfinite().all():
            raise UsageError("some maps hold values that are not finite; no metric can rank them")
        if self.truth is not None and tuple(self.truth.shape) != tuple(self.x[:, 0].shape):
            raise UsageError(f"the truth is a mask of each image {tuple(self.x[:, 0].shape)}; got {tuple(self.truth.shape)}")
        self.places = self.places or tuple(range(len(self.x)))
        self.methods = self.methods or (None,) * len(self.names)

    # ---- asking the network
    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for all metrics of the case."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def judge(self, of: Literal["target", "probability"]) -> Target:
        """The target itself, or the probability of its class where it is a logit."""
        return Probability(self.target.index) if of == "probability" and isinstance(self.target, Logit) else self.target

    def scores(self, x: Tensor, images: Tensor, target: Target | None = None) -> Float[Tensor, " rows"]:
        """The target of each row of `x`; row i is a version of image `images[i]`. In float64."""
        probe = self.probe(images, target)
        if set(probe.session.target.addresses()) == {"output"}:
            probe.session.module = self._folded()
        found = probe.score(x).double()
        self.batch_size = probe.session.batch_size  # halved where memory did not suffice
        return found

    def probe(self, images: Tensor, target: Target | None = None) -> Probe:
        """A probe whose row i is a version of image `images[i]`."""
        session = Session(self.network.plain, self.x, target or self.target, batch_size=self.batch_size, seed=self.seed)
        session.head, session.adaptive, session.progress = self.network.head, True, self._count
        session.baseline = lambda which, z, probe: self._baseline(which, z, probe)
        return Probe(session, images, tuple((self.places[int(i)],) for i in images))

    def clean(self, target: Target | None = None) -> Float[Tensor, " images"]:
        """The target of each image as it is."""
        target = target or self.target
        return self.once(("clean", target), lambda: self.scores(self.x, torch.arange(len(self.x)), target))

    def fill(self, which: Any) -> Images:
        """What stands in for removed pixels: a baseline of the unchanged images."""
        rows = torch.arange(len(self.x))
        return self.once(("fill", key_of(which)), lambda: self.probe(rows).baseline(which, self.x))

    def explain(self, number: int, x: Tensor, images: Tensor, target: Target | None = None, network: Any = None) -> Tensor:
        """New maps `(rows, height, width)` of a method, for rows that are versions of the images."""
        method = self.methods[number]
        if method is None:
            raise UsageError(f"{self.names[number]} is given as maps alone; this metric makes maps anew and needs the method")
        wanted, places = rows_of(target or self.target, images), tuple(self.places[int(i)] for i in images)
        made_for = {"seed": self.seed, "batch_size": self.batch_size, "places": places}
        found = explain(network or self.network, x, method, wanted, **made_for)
        self._count(int(found.diagnostics.get("evaluations", 0)))
        return found.heatmap().double()

    def only(self, number: int) -> "Case":
        """The case of one method alone, for metrics that make maps anew."""
        own = slice(number, number + 1)
        return replace(
            self, maps=self.maps[own], names=self.names[own], methods=self.methods[own], values=self.values[own], memo={},
            passes=0, progress=self._count,
        )  # fmt: skip

    def _folded(self) -> Folded:
        if "folded" not in self.kept:
            self.kept["folded"] = Folded(self.network.plain, self.x)
        return self.kept["folded"]

    def _baseline(self, which: Any, z: Tensor, probe: Probe) -> Tensor:
        if which == "uniform":
            return self.network.normalize(probe.uniform(z))
        return self.network.baseline(which, z)

    def _count(self, passes: int) -> None:
        self.passes += passes
        if self.progress is not None:
            self.progress(passes)


def twin_of(network: Network, module: nn.Module, size: tuple[int, int] | None = None) -> Network:
    """Another module in the place of a network's own, with all that the network knows of its pictures and classes."""
    return Network(
        module, size or network.size, network.mean, network.std, network.categories, channels=network.channels,
        name=network.name, output=network.output,
    )  # fmt: skip


def rows_of(target: Target, images: Tensor) -> Target:
    """The target for rows that are versions of some images: entries for each image, repeated."""
    given = {name: getattr(target, name) for name in target.each}
    changes = {name: tuple(value[int(i)] for i in images) for name, value in given.items() if isinstance(value, tuple)}
    return replace(target, **changes) if changes else target


def classes_of(case: Case) -> int:
    """How many classes the network tells apart."""

    def ask() -> int:
        output = case.probe(torch.arange(1)).activations(case.x[:1], "output")
        return 1 if output.dim() == 1 else output.shape[1]

    return case.once("classes", ask)


def class_of(target: Target, metric: str) -> Any:
    """The class number of a target, or one for each image. Raises UsageError for targets that are no class."""
    if not isinstance(target, Logit | Probability | LogProbability):
        raise UsageError(f"{metric} asks for a class; the target is {target}, not a class")
    return target.index


def ranks(maps: Maps, device: torch.device | str = "cpu") -> Int32[Tensor, "methods images pixels"]:
    """The place of each pixel from the most relevant, 0, down; of equal ones the first comes first.

    Map after map, sorted on the device: what it takes at once does not depend on how many there are.
    """
    flat = maps.flatten(-2)
    found = torch.empty(flat.shape, dtype=torch.int32)
    count = torch.arange(flat.shape[-1], dtype=torch.int32, device=device)
    for values, place in zip(flat.reshape(-1, flat.shape[-1]), found.view(-1, flat.shape[-1]), strict=True):
        order = values.to(device).argsort(descending=True, stable=True)
        place.copy_(torch.empty_like(count).scatter_(0, order, count))
    return found


def key_of(fill: Any) -> Hashable:
    """What tells a fill from others: itself, or what a tensor holds at the moment."""
    return (tuple(fill.shape), fill.dtype, digest(fill.detach())) if isinstance(fill, Tensor) else fill


def rounding(dtype: torch.dtype) -> float:
    """The part of an output below which a change of it is rounding: errors add up, but coarse numbers hide them."""
    eps = torch.finfo(dtype).eps
    return 16 * eps if eps < 1e-6 else eps


def digest(values: Tensor) -> bytes:
    """What is equal for equal tensors."""
    return hashlib.blake2b(memoryview(values.cpu().contiguous().view(-1).view(torch.uint8).numpy()), digest_size=16).digest()


def seeded(case_seed: int, *what: Hashable) -> torch.Generator:
    """A generator of its own for a seed and a purpose."""
    raw = hashlib.blake2b(repr((case_seed, *what)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(raw) >> 1)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """The correlation along the last axis; NaN where one of them is constant."""
    limit = torch.finfo(a.dtype).eps * a.shape[-1]
    steady = [limit * v.abs().amax(-1) for v in (a, b)]  # differences of equal values, by rounding
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    scale = a.norm(dim=-1) * b.norm(dim=-1)
    flat = (a.abs().amax(-1) <= steady[0]) | (b.abs().amax(-1) <= steady[1])
    return torch.where(flat, torch.nan, ((a * b).sum(-1) / scale.clamp(min=torch.finfo(a.dtype).tiny)).clamp(-1, 1))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of ranks along the last axis, ties with their mean rank; NaN where one of them is constant."""
    return pearson(mean_ranks(a), mean_ranks(b))


def mean_ranks(values: Tensor) -> Tensor:
    """The ranks along the last axis from 0 up, equal values sharing the mean of theirs, in float64."""
    ordered, order = values.sort(dim=-1, stable=True)
    places = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    start = torch.where(first, places, 0).cummax(-1).values
    last = torch.ones_like(first)
    last[..., :-1] = first[..., 1:]
    end = torch.where(last, places, values.shape[-1] - 1).flip(-1).cummin(-1).values.flip(-1)
    mean = (start + end).double() / 2
    return torch.empty_like(mean).scatter_(-1, order, mean)


def chunks(total: int, size: int) -> Sequence[range]:
    """0 .. total in ranges of at most `size`."""
    return [range(i, min(i + size, total)) for i in range(0, total, max(1, size))]
