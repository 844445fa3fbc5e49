"""Concepts as clusters of segments that a layer sees alike, each tested for its effect on a target.

Ghorbani, Wexler, Zou and Kim, "Towards automatic concept-based explanations" (ACE), NeurIPS 2019: segments of a class's
pictures at several resolutions, k-means of their activations, and a test with concept activation vectors for each cluster.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.network import Images, Network
from convoscope.units.concept_data import BatchSize, activations_of, inputs_of
from convoscope.units.discovered import last_layer, superpixels
from convoscope.units.tcav import LEAST, ConceptTests, tcav

ROUNDS = 100  # of k-means at most


@dataclass
class Clusters:
    """Clusters of segments of pictures, those that raise the target most often first.

    `segments` are those nearest to each center, as inputs, nearest first; `pictures` says of how many pictures a cluster has
    segments, and `tests` what concept activation vectors say of it (`tcav`), in the same order.
    """

    layer: str
    segments: dict[str, Images] = field(repr=False)
    pictures: dict[str, int]
    tests: ConceptTests

    def __len__(self) -> int:
        return len(self.segments)

    def __str__(self) -> str:
        return str(self.tests)


def ace(
    network: Network | nn.Module, pictures: Any, random: Any, layer: str | None = None, target: Any = None, *,
    clusters: int = 25, pieces: tuple[int, ...] = (15, 50, 80), kept: int = 40, shared: float = 0.25, null: int = 199,
    batch_size: BatchSize = "auto", seed: int = 0,
) -> Clusters:  # fmt: skip
    """Cluster the segments of `pictures` (of one class, say) by what `layer` makes of them, and test every cluster.

    Each picture is cut into about so many `pieces`, at each resolution; a segment on gray, enlarged to the input's size, gives
    one row of activations, the mean over positions, and k-means makes `clusters` of them. The `kept` nearest to a center stand
    for it; a cluster counts if these are at least 10 and from a share of at least `shared` of the pictures. Unlike the paper's
    t-test, p-values are those of `tcav`: ranks among `null` random concepts drawn from the `random` pictures, cut into segments
    in the same way, so that being a segment is no concept. The same seed gives the same clusters. Raises UsageError where no
    cluster counts.
    """
    network = network if isinstance(network, Network) else Network(network)
    if clusters < 1 or not pieces or min(pieces) < 2 or kept < LEAST or not 0 <= shared <= 1:
        raise UsageError(f"expected 1 or more clusters, pieces of 2 or more, {LEAST} or more kept, 0 <= shared <= 1")
    x, others = inputs_of(network, pictures), inputs_of(network, random)
    layer = last_layer(network, x) if layer is None else layer
    parts, picture_of = _segments(network, x, pieces)
    values = activations_of(network, parts, layer, batch_size)
    rows = (values.mean((2, 3)) if values.dim() == 4 else values).cpu().double()
    centers, member = k_means(rows, min(clusters, len(rows)), seed)
    found: dict[str, Images] = {}
    spread: dict[str, int] = {}
    for k in range(len(centers)):
        mine = (member == k).nonzero()[:, 0]
        near = mine[(rows[mine] - centers[k]).square().sum(1).argsort(stable=True)[:kept]]
        seen = len(picture_of[near].unique())
        if len(near) >= LEAST and seen >= shared * len(x):
            name = f"cluster {k}"
            found[name], spread[name] = parts[near.to(parts.device)], seen
    if not found:
        raise UsageError(
            f"none of {len(centers)} clusters has {LEAST} segments of enough pictures; take fewer clusters or more pictures"
        )
    contrast, _ = _segments(network, others, pieces[:1])
    tests = tcav(network, x, found, contrast, layer, target, null=null, batch_size=batch_size, seed=seed)
    order = sorted(tests, key=lambda t: (-t.score, -t.sensitivity))
    names = list(dict.fromkeys(t.concept for t in order))
    ranked = ConceptTests(order, tests.vectors, tests.notes)
    return Clusters(layer, {n: found[n] for n in names}, {n: spread[n] for n in names}, ranked)


def _segments(network: Network, x: Images, pieces: tuple[int, ...]) -> tuple[Images, Int[Tensor, " segments"]]:
    """Segments of all pictures at all resolutions, and the picture of each."""
    found = [(i, superpixels(network, x[i : i + 1], n)) for i in range(len(x)) for n in pieces]
    return torch.cat([s for _, s in found]), torch.tensor([i for i, s in found for _ in range(len(s))])


def k_means(rows: Float[Tensor, "n d"], clusters: int, seed: int = 0) -> tuple[Float[Tensor, "k d"], Int[Tensor, " n"]]:
    """Centers, and the nearest center of each row: Lloyd's rounds from seeds of k-means++ (Arthur and Vassilvitskii 2007).

    A center that no row is nearest to stays where it is.
    """
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(len(rows), (1,), generator=draw)
    centers, distance = rows[first], (rows - rows[first]).square().sum(1)
    while len(centers) < clusters and float(distance.max()) > 0:
        chosen = rows[torch.multinomial(distance / distance.max(), 1, generator=draw)]
        centers = torch.cat([centers, chosen])
        distance = torch.minimum(distance, (rows - chosen).square().sum(1))
    member = torch.full((len(rows),), -1)
    for _ in range(ROUNDS):
        nearest = torch.cdist(rows, centers).argmin(1)
        if torch.equal(nearest, member):
            break
        member = nearest
        counts = torch.bincount(member, minlength=len(centers))
        sums = torch.zeros_like(centers).index_add_(0, member, rows)
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centers)
    return centers, member
