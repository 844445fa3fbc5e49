"""Testing with concept activation vectors (TCAV): does a concept, shown by pictures of it, move a target?

Kim et al., "Interpretability Beyond Feature Attribution: Quantitative Testing with Concept Activation Vectors", 2018.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from convoscope.core.errors import UnsupportedError, UsageError, did_you_mean
from convoscope.method import explain
from convoscope.network import Network
from convoscope.targets import Direction, Target
from convoscope.units.concept_data import activations_of, inputs_of
from convoscope.units.logistic import Fits, gram, logistic
from convoscope.units.significance import corrected

LEAST = 10  # pictures of a concept
SETTINGS = "expected at least one concept, 1 run, 19 random concepts, 10 pictures in a run, a penalty above 0, 0 < held_out < 1"
ALIKE = (
    "at {} the gradient of {} is the same for all pictures: a run scores 0 or 1, for random concepts too; look at the "
    "sensitivity"
)
HEADER = ("concept", "layer", "target", "score", "p", "adjusted", "sensitivity", "p", "adjusted", "CAV accuracy", "pictures")


@dataclass(frozen=True)
class ConceptTest:
    """One concept at one layer for one target.

    `score` is the TCAV score, the share of pictures whose target rises along the concept's vector (0.5: no matter), mean of
    several runs with their deviation `spread`. `sensitivity` is the mean cosine between the gradient and the vector. `p` and
    `sensitivity_p` are the shares of random concepts at least as far from 0.5 (from 0), the adjusted ones hold for all tests
    of the call together. `accuracy` is that of the classifier on pictures held out, and `random_accuracy` that of random
    concepts: where they are alike the layer does not tell the concept apart, and the score means nothing.
    """

    concept: str
    layer: str
    target: str
    score: float
    spread: float
    p: float
    adjusted: float
    sensitivity: float
    sensitivity_p: float
    sensitivity_adjusted: float
    accuracy: float
    random_accuracy: float
    pictures: int


class ConceptTests(list[ConceptTest]):
    """The tests of one call; printed, a table. `vectors` has each concept's mean vector of length 1 by (concept, layer)."""

    def __init__(self, rows: Sequence[ConceptTest], vectors: dict[tuple[str, str], Tensor], notes: list[str]) -> None:
        self.extend(rows)
        self.vectors, self.notes = vectors, notes

    def direction(self, concept: str, layer: str | None = None) -> Direction:
        """The concept's vector as a Direction: a target for every tool. Raises UsageError for vectors over positions too."""
        layers = [a for c, a in self.vectors if c == concept]
        if not layers or layer not in (None, *layers):
            known = [c for c, _ in self.vectors]
            raise UsageError(f"no vector of {concept!r} at {layer or 'any layer'}{did_you_mean(concept, known)}")
        if layer is None and len(layers) > 1:
            raise UsageError(f"{concept!r} has a vector at each of {', '.join(layers)}; say which layer")
        vector = self.vectors[concept, layer or layers[0]]
        if vector.dim() > 1:
            raise UsageError("this vector runs over channels and positions; positions='mean' makes one over channels")
        return Direction(layer or layers[0], vector)

    def rows(self) -> list[tuple[str, ...]]:
        """The table as text."""
        return [
            (
                t.concept, t.layer, t.target, f"{t.score:.2f} ± {t.spread:.2f}", _p(t.p), _p(t.adjusted),
                f"{t.sensitivity:+.3f}", _p(t.sensitivity_p), _p(t.sensitivity_adjusted),
                f"{t.accuracy:.0%} (random {t.random_accuracy:.0%})", str(t.pictures),
            )
            for t in self
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The tests as JSON values."""
        return {"tests": [asdict(t) for t in self], "notes": self.notes}

    def __str__(self) -> str:
        rows = [HEADER, *self.rows()]
        widths = [max(len(r[i]) for r in rows) for i in range(len(HEADER))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        from convoscope.show.html import table

        return table(HEADER, self.rows())


def _p(value: float) -> str:
    return f"{value:.2g}"


def tcav(
    network: Network | nn.Module, pictures: Any, concepts: Mapping[str, Any], random: Any, layers: str | Sequence[str],
    target: Any = None, *, positions: Literal["mean", "all"] = "mean", runs: int = 5, null: int = 199, per_run: int = 64,
    correction: str = "benjamini-hochberg", penalty: float = 0.01, held_out: float = 0.25,
    batch_size: int | Literal["auto"] = "auto", seed: int = 0,
) -> ConceptTests:  # fmt: skip
    """How often, and how surely, a target of `pictures` rises along each concept's activation vector (Kim et al. 2018).

    `concepts` maps names to pictures, `random` are pictures of anything; each is an input tensor, a list that `network.read`
    takes, a folder or a data set. `target` is a Target or a list of them (default: the top class of each picture). A
    concept's vector is normal to the plane by which a logistic regression (with `penalty` on activations of unit variance in
    all) tells at most `per_run` of its pictures from as many random ones; `runs` times with others. The null distribution
    comes from `null` random concepts, pictures drawn from `random`, put through the same procedure; p-values are two-sided
    ranks among them, so the smallest is 1 / (null + 1). A t-test over runs, as in the paper, would take for proof that runs
    agree, which they do for a random concept too: they share its pictures. `random` should be like the concepts' pictures but
    for the concept: what else sets the two apart is tested along with it.

    `positions="mean"` averages the layer over positions first, so that a concept's vector has one number per channel and
    concepts may lie anywhere; "all" is the paper's flattened layer. Raises UsageError for too few pictures.
    """
    network = network if isinstance(network, Network) else Network(network)
    if not concepts or runs < 1 or null < 19 or per_run < LEAST or not 0 < held_out < 1 or penalty <= 0:
        raise UsageError(SETTINGS)
    corrected(torch.zeros(0), correction)
    x, others = inputs_of(network, pictures), inputs_of(network, random)
    shown = {name: inputs_of(network, source) for name, source in concepts.items()}
    _check_counts({name: len(rows) for name, rows in shown.items()}, len(others))
    found = ConceptTests([], {}, [])
    for layer in [layers] if isinstance(layers, str) else layers:
        maps = {name: _flat(activations_of(network, rows, layer, batch_size), positions) for name, rows in shown.items()}
        random_maps = _flat(activations_of(network, others, layer, batch_size), positions)
        space = _Space(maps, random_maps, penalty, held_out, per_run, seed)
        trials = {name: space.trials(name, runs, null) for name in maps}
        shape = _shape(network, others[:1], layer, positions)
        found.vectors |= {(name, layer): space.vector(own, shape) for name, (own, _) in trials.items()}
        for t in target if isinstance(target, list) else [target]:
            gradients = explain(network, x, "gradient", t, at=layer, batch_size=batch_size, seed=seed)
            slopes = _Slopes(space, _flat(gradients.values, positions, total=True))
            text = _text(network, t)
            found += [_test(name, layer, text, slopes, *trials[name], len(maps[name])) for name in maps]
            found.notes += [ALIKE.format(layer, text)] if slopes.alike else []
    found[:] = _adjusted(found, correction)
    return found


def _check_counts(counts: Mapping[str, int], random: int) -> None:
    for name, count in counts.items():
        if count < LEAST:
            raise UsageError(f"concept {name!r} has {count} pictures; give at least {LEAST}, better 50")
    if random < 3 * LEAST:
        raise UsageError(f"{random} random pictures; give at least {3 * LEAST}, better 200: they make the random concepts too")


def _flat(maps: Tensor, positions: str, total: bool = False) -> Float[Tensor, "images numbers"]:
    if positions not in ("mean", "all"):
        raise UsageError(f"no positions {positions!r}; expected 'mean' or 'all'")
    if maps.dim() == 2 or positions == "all":
        return maps.detach().flatten(1)
    return maps.detach().sum((2, 3)) if total else maps.detach().mean((2, 3))


def _shape(network: Network, x: Tensor, layer: str, positions: str) -> tuple[int, ...]:
    shape = tuple(activations_of(network, x, layer).shape[1:])
    return shape if positions == "all" else shape[:1]


def _text(network: Network, target: Any) -> str:
    if target is None or (isinstance(target, str) and target == "top"):
        return "top class"
    made = network.target(target)
    index = getattr(made, "index", None)
    return network.category(index) if not isinstance(target, Target) and isinstance(index, int) else str(made)


class _Space:
    """The activations of all pictures at a layer, known by their inner products; random pictures come last."""

    def __init__(
        self, maps: Mapping[str, Tensor], random: Tensor, penalty: float, held_out: float, per_run: int, seed: int
    ) -> None:
        self.mean = random.cpu().double().mean(0).to(random)
        self.points = torch.cat([*maps.values(), random]) - self.mean
        self.products = gram(self.points)
        self.scale = float(self.products.diagonal()[-len(random) :].mean().clamp(min=1e-30))
        if not bool(self.products.isfinite().all()):
            raise UnsupportedError("the layer has activations that are not finite")
        starts = torch.tensor([0, *(len(m) for m in maps.values())]).cumsum(0).tolist()
        self.rows = {name: torch.arange(a, b) for name, a, b in zip(maps, starts, starts[1:], strict=False)}
        self.random = torch.arange(starts[-1], len(self.points))
        self.penalty, self.held_out, self.per_run, self.seed = penalty, held_out, per_run, seed
        self.known: dict[Any, Any] = {}

    def trials(self, name: str, runs: int, null: int) -> tuple["_Trials", "_Trials"]:
        """The concept's own regressions, and those of random concepts of as many pictures."""
        size = min(len(self.rows[name]), len(self.random) // 2, self.per_run)
        draw = torch.Generator().manual_seed(self.seed)
        own = [(_drawn(self.rows[name], size, draw), _drawn(self.random, size, draw)) for _ in range(runs)]
        if size not in self.known:
            made = []
            for _ in range(null):
                order = _drawn(self.random, len(self.random), draw)
                made += [(_drawn(order[:size], size, draw), _drawn(order[size:], size, draw)) for _ in range(runs)]
            self.known[size] = self._fitted(made, runs)
        return self._fitted(own, runs), self.known[size]

    def _fitted(self, pairs: Sequence[tuple[Tensor, Tensor]], runs: int) -> "_Trials":
        size = len(pairs[0][0])
        out = max(1, round(self.held_out * size))
        rows, tests = (
            torch.stack([torch.cat([a[part], b[part]]) for a, b in pairs]) for part in (slice(out, None), slice(out))
        )
        labels = (torch.arange(2 * (size - out)) < size - out).double()
        fits = logistic(self.products / self.scale, rows, labels, self.penalty)
        right = torch.arange(2 * out) < out
        correct = []
        for r, c, b, t in zip(fits.rows, fits.coefficients, fits.intercept, tests, strict=True):
            correct.append((((self.products[t][:, r] @ c) / self.scale + b > 0) == right).double().mean())
        return _Trials(fits, fits.norms(self.products), torch.stack(correct), runs)

    def vector(self, trials: "_Trials", shape: tuple[int, ...]) -> Tensor:
        """The mean of the runs' vectors of length 1, of length 1."""
        weights = torch.zeros(len(self.points), dtype=torch.float64)
        for rows, c, norm in zip(trials.fits.rows, trials.fits.coefficients, trials.norms, strict=True):
            weights.index_add_(0, rows, c / norm.clamp(min=1e-300))
        vector = weights.to(self.points) @ self.points
        return (vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)).view(shape)


def _drawn(rows: Int[Tensor, " rows"], count: int, draw: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=draw)[:count]]


@dataclass(frozen=True)
class _Trials:
    """Regressions, `runs` for each concept one after the other."""

    fits: Fits
    norms: Tensor
    accuracy: Tensor
    runs: int


class _Slopes:
    """How a target of some pictures changes along the vectors of regressions."""

    def __init__(self, space: _Space, gradients: Float[Tensor, "pictures numbers"]) -> None:
        self.products = gram(gradients, space.points)
        self.norms = gradients.cpu().double().norm(dim=1)
        first, largest = gradients[:1], gradients.abs().max()
        self.alike = len(gradients) > 1 and bool((gradients - first).abs().max() <= 1e-5 * largest)

    def scores(self, trials: _Trials) -> tuple[Tensor, Tensor]:
        """For each concept and run the share of pictures whose target rises, and the mean cosine with the gradient."""
        slopes = trials.fits.applied(self.products)
        cosines = slopes / (trials.norms[:, None] * self.norms).clamp(min=1e-300)
        shares = (slopes > 0).double().mean(1)
        return shares.view(-1, trials.runs), cosines.mean(1).view(-1, trials.runs)


def _test(name: str, layer: str, target: str, slopes: _Slopes, own: _Trials, null: _Trials, pictures: int) -> ConceptTest:
    (shares, cosines), (random_shares, random_cosines) = slopes.scores(own), slopes.scores(null)
    return ConceptTest(
        name, layer, target, float(shares.mean()), float(shares.std(correction=0)),
        _rank(shares.mean() - 0.5, random_shares.mean(1) - 0.5), 1.0, float(cosines.mean()),
        _rank(cosines.mean(), random_cosines.mean(1)), 1.0, float(own.accuracy.mean()), float(null.accuracy.mean()), pictures,
    )  # fmt: skip


def _rank(value: Tensor, null: Tensor) -> float:
    """The share of random concepts at least as far from zero, the concept itself among them."""
    return float(1 + (null.abs() >= value.abs() - 1e-12).sum()) / (1 + len(null))


def _adjusted(tests: Sequence[ConceptTest], correction: str) -> list[ConceptTest]:
    p, q = (corrected(torch.tensor([getattr(t, n) for t in tests], dtype=torch.float64), correction).tolist()
            for n in ("p", "sensitivity_p"))  # fmt: skip
    return [ConceptTest(**{**asdict(t), "adjusted": a, "sensitivity_adjusted": b}) for t, a, b in zip(tests, p, q, strict=True)]
