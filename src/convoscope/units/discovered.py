"""Concepts that a layer itself uses, found in crops of pictures, with how much each matters.

Fel et al., "CRAFT: Concept Recursive Activation FacTorization for Explainability", 2023: non-negative factors of the
activations of crops, and total Sobol indices of their amounts. Ghorbani et al., "Towards Automatic Concept-based
Explanations" (ACE), 2019: superpixels instead of squares.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.placing import placed
from convoscope.core.probe import Probe, Session
from convoscope.core.record import canonical
from convoscope.core.run import rows_at_once, undisturbed
from convoscope.files import replaced
from convoscope.network import Images, Network
from convoscope.targets import Direction, Target
from convoscope.units.concept_data import BatchSize, activations_of, inputs_of
from convoscope.units.factors import coefficients, factorized, total_indices

if TYPE_CHECKING:
    from PIL import Image

CROPS = 2000  # at most


@dataclass
class Concepts:
    """Concepts of a layer, the most important first.

    Activations `(positions, channels)` are about `amounts @ basis`. `importance` is the mean total Sobol index of each amount
    over the pictures: the share of the target's variance that goes with it, alone or with others, when all amounts are scaled
    by random factors. `spread` is its deviation over pictures. `explained` is the share of the crops' activations (squared)
    that the factors hold, `scores` the target of each picture, and `rebuilt` that of its rebuilt activations: where these
    differ much, the concepts do not say what the network does. `amounts` are those of the crops.
    """

    network: Network = field(repr=False)
    layer: str
    target: str
    basis: Float[Tensor, "concepts channels"] = field(repr=False)
    importance: Float[Tensor, " concepts"]
    spread: Float[Tensor, " concepts"]
    crops: Images = field(repr=False)
    amounts: Float[Tensor, "crops concepts"] = field(repr=False)
    explained: float
    scores: Float[Tensor, "pictures"] = field(repr=False)
    rebuilt: Float[Tensor, "pictures"] = field(repr=False)
    pictures: Images = field(repr=False)

    def __len__(self) -> int:
        return len(self.basis)

    def direction(self, concept: int) -> Direction:
        """A concept's vector over channels, of length 1, as a Direction: a target for every tool."""
        if not 0 <= concept < len(self):
            raise UsageError(f"no concept {concept}; there are {len(self)}, counted from 0")
        return Direction(self.layer, self.basis[concept].to(self.network.dtype))

    def maps(self, x: Any, placed_: bool = True) -> Float[Tensor, "pictures concepts height width"]:
        """How much of each concept is where in pictures: at input size, or at that of the layer."""
        x = inputs_of(self.network, x)
        values = activations_of(self.network, x, self.layer)
        if values.dim() != 4:
            raise UsageError(f"{self.layer!r} has no positions, so its concepts have no maps")
        found = _amounts(values, self.basis).to(values)
        if not placed_:
            return found
        place = self.network.trace(x).field_of(canonical(self.network.plain, self.layer))
        return placed(found, place, tuple(x.shape[2:]))

    def exemplars(self, concept: int, count: int = 6) -> Int[Tensor, " count"]:
        """The numbers of the crops with most of a concept, most first."""
        return self.amounts[:, concept].topk(min(count, len(self.amounts))).indices

    def rows(self) -> list[tuple[str, ...]]:
        """A table: number, importance with its deviation over pictures."""
        return [(str(k), f"{self.importance[k]:.3f} ± {self.spread[k]:.3f}") for k in range(len(self))]

    def notes(self) -> list[str]:
        """What the numbers rest on, in words."""
        real, made = float(self.scores.mean()), float(self.rebuilt.mean())
        return [
            f"{len(self)} concepts hold {self.explained:.0%} of the activations of {len(self.crops):,} crops at {self.layer}",
            f"{self.target}: {real:.3g} on {len(self.scores)} pictures, {made:.3g} with activations rebuilt from concepts",
        ]

    def to_dict(self) -> dict[str, Any]:
        """All but the tensors of pictures, as JSON values."""
        made = {"layer": self.layer, "target": self.target, "explained": self.explained, "crops": len(self.crops)}
        made |= {"scores": self.scores.tolist(), "rebuilt": self.rebuilt.tolist()}
        each = zip(self.importance.tolist(), self.spread.tolist(), strict=True)
        return made | {"concepts": [{"importance": i, "spread": s} for i, s in each]}

    def image(self, columns: int = 6) -> "Image.Image":
        """Each concept as a row: its strongest crops, and where it is in the pictures that have most of it."""
        from convoscope.show.concepts import Row, draw

        maps = self.maps(self.pictures) if self.basis.shape[1] and self._spatial() else None
        rows = []
        for k in range(len(self)):
            tops = self.network.picture(self.crops[self.exemplars(k, columns)]).permute(0, 2, 3, 1).numpy()
            overlays: list[tuple[Any, Any]] = []
            if maps is not None:
                best = maps[:, k].flatten(1).amax(1).topk(min(3, len(maps))).indices.tolist()
                shown = self.network.picture(self.pictures[best]).permute(0, 2, 3, 1).numpy()
                overlays = [(p, maps[i, k].cpu().numpy()) for p, i in zip(shown, best, strict=True)]
            rows.append(Row(f"concept {k}", f"importance {self.rows()[k][1]}", list(tops), overlays))
        return draw(f"Concepts of {self.layer} for {self.target}", [self.network.name, *self.notes()], rows)

    def _spatial(self) -> bool:
        return activations_of(self.network, self.pictures[:1], self.layer).dim() == 4

    def save(self, path: str | Path) -> Path:
        """Writes `image()` as a PNG, whole or absent."""
        path = Path(path)
        if path.suffix != ".png":
            raise UsageError(f"cannot write {path.name!r}: concepts are drawn as .png")
        with replaced(path) as partial:
            self.image().save(partial, format="PNG")
        return path


def discover(
    network: Network | nn.Module, pictures: Any, layer: str | None = None, target: Any = None, *, concepts: int = 10,
    crop: float = 0.35, by: Literal["squares", "superpixels"] = "squares", designs: int = 32, ranked: int = 32,
    residual: bool = False, batch_size: int | Literal["auto"] = "auto", seed: int = 0,
) -> Concepts:  # fmt: skip
    """The concepts of a layer in pictures (of one class, say), ranked by what they matter to a target (CRAFT).

    Pictures are cut into squares of `crop` times the shorter side, a fifth of which overlaps, or into superpixels on gray
    (ACE); each part, enlarged to the input's size, gives one row of activations, the mean over positions. `concepts`
    non-negative factors of these are the concepts. Their importance is that of random factors 0..1 by which the amounts in
    whole pictures (the first `ranked`) are multiplied before the rest of the network sees them: `designs * (concepts + 2)` runs
    of the rest for each. What the factors do not hold is left out there, as in the paper, or with `residual` kept. `target`
    is by default the top class of each picture, `layer` the last with rows and columns; its activations must not be negative.
    The same seed gives the same concepts.
    """
    network = network if isinstance(network, Network) else Network(network)
    if not 0 < crop <= 1 or concepts < 1 or by not in ("squares", "superpixels") or designs < 2 or ranked < 1:
        raise UsageError("expected 0 < crop <= 1, by squares or superpixels, at least 1 concept, 2 designs, 1 picture ranked")
    x = inputs_of(network, pictures)
    layer = last_layer(network, x) if layer is None else layer
    parts = squares(x, crop) if by == "squares" else superpixels(network, x)
    parts = parts[torch.linspace(0, len(parts) - 1, min(CROPS, len(parts))).round().long()]
    values = activations_of(network, parts, layer, batch_size)
    if float(values.min()) < 0:
        raise UnsupportedError(f"{layer!r} has negative activations, and concepts are sums of positive parts; use a layer "
                               "behind a ReLU (net.layers() lists them)")  # fmt: skip
    rows = values.mean((2, 3)) if values.dim() == 4 else values
    amounts, basis = factorized(rows, min(concepts, *rows.shape))
    known = rows.cpu().double()
    left = (known - amounts @ basis).square().sum() / known.square().sum().clamp(min=1e-300)
    indices, scores, rebuilt, aim = _importance(network, x[:ranked], layer, target, basis, designs, residual, batch_size, seed)
    order = indices.mean(0).argsort(descending=True, stable=True)
    return Concepts(
        network, layer, _text(network, target, aim), basis[order], indices.mean(0)[order], indices.std(0, correction=0)[order],
        parts, amounts[:, order], float(1 - left), scores, rebuilt, x,
    )  # fmt: skip


def last_layer(network: Network, x: Images) -> str:
    found = network.trace(x).last_spatial()
    if found is None:
        raise UsageError(f"{network.name} makes no tensor with rows and columns; name a layer")
    return found


def _text(network: Network, target: Any, aim: Target) -> str:
    if target is None or (isinstance(target, str) and target == "top"):
        return "the top class"
    index = getattr(aim, "index", None)
    return network.category(index) if isinstance(index, int) and not isinstance(target, Target) else str(aim)


def squares(x: Images, part: float) -> Images:
    """Squares of `part` times the shorter side, a fifth of which overlaps, out to the edges, enlarged to the size of `x`."""
    size = tuple(x.shape[2:])
    side = max(1, min(round(part * min(size)), *size))
    step = max(1, round(0.8 * side))
    starts = [torch.linspace(0, n - side, max(1, -(-(n - side) // step) + 1)).round().long().tolist() for n in size]
    found = [x[..., t : t + side, c : c + side] for t in starts[0] for c in starts[1]]
    return F.interpolate(torch.stack(found, 1).flatten(0, 1), size, mode="bilinear", align_corners=False)


def superpixels(network: Network, x: Images, pieces: int = 15) -> Images:
    """Superpixels (SLIC), each on the mean color of the network's pictures, its box enlarged to the size of `x`."""
    from skimage.segmentation import slic

    size, found = tuple(x.shape[2:]), []
    gray = network.normalize(torch.tensor(network.mean).view(1, -1, 1, 1)).to(x)
    for row, picture in zip(x, network.picture(x), strict=True):
        labels = torch.from_numpy(slic(picture.permute(1, 2, 0).numpy(), pieces, compactness=20, start_label=0)).to(x.device)
        for k in range(int(labels.max()) + 1):
            inside = labels == k
            rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
            box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
            cut = torch.where(inside[box], row[:, *box], gray[0].expand_as(row[:, *box]))
            found.append(F.interpolate(cut[None], size, mode="bilinear", align_corners=False))
    return torch.cat(found)


def _amounts(values: Tensor, basis: Tensor) -> Tensor:
    """Non-negative amounts of each concept at every position, `(pictures, concepts, ...)`, in double precision."""
    rows = values.movedim(1, -1)
    return coefficients(rows.reshape(-1, rows.shape[-1]), basis).view(*rows.shape[:-1], -1).movedim(-1, 1)


def _made(amounts: Tensor, basis: Tensor) -> Tensor:
    """The activations `(pictures, channels, ...)` that amounts stand for."""
    return torch.tensordot(amounts, basis, dims=([1], [0])).movedim(-1, 1)


def _importance(
    network: Network, x: Images, layer: str, target: Any, basis: Tensor, designs: int, residual: bool, batch_size: BatchSize,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Target]:  # fmt: skip
    """Total indices of each picture's concepts, the target of each, and that of its rebuilt activations."""
    aim = network.target(target)
    aim.check(len(x))
    found, scores, rebuilt = [], [], []
    size = rows_at_once(x) if batch_size == "auto" else batch_size
    with undisturbed(network.plain):
        session = Session(network.plain, x, aim, "input", size, seed, network.head)
        probe = Probe(session, torch.arange(len(x)), tuple((i,) for i in range(len(x))))
        session.target = aim.resolve(probe.everything(aim.addresses())) if aim.open else aim
        scores = probe.score(x).cpu().double()
        values = probe.activations(x, layer)
        amounts = _amounts(values, basis)
        rest = values.cpu().double() - _made(amounts, basis) if residual else torch.zeros(len(x), *[1] * (values.dim() - 1))
        for i in range(len(x)):
            one = Probe(session, torch.tensor([i]), ((i,),))

            def score(factors: Tensor, one: Probe = one, i: int = i) -> Tensor:
                return _scored(one, x[i : i + 1], layer, amounts[i], basis, factors, rest[i], values)

            found.append(total_indices(score, len(basis), designs, seed))
            rebuilt.append(score(torch.ones(1, len(basis), dtype=torch.float64)))
    return torch.stack(found), scores, torch.cat(rebuilt), aim


def _scored(
    one: Probe, x: Images, layer: str, amounts: Tensor, basis: Tensor, factors: Tensor, rest: Tensor, like: Tensor
) -> Tensor:
    """The target of one image if its concepts were multiplied by each row of `factors`."""
    size = max(1, (1 << 24) // max(1, like[0].numel()))
    parts = []
    for block in torch.arange(len(factors)).split(size):
        scaled = amounts[None] * factors[block].view(len(block), -1, *[1] * (amounts.dim() - 1))
        parts.append(one.repeat(block.tolist()).score_at(x, layer, (_made(scaled, basis) + rest).to(like)))
    return torch.cat(parts).cpu().double()
