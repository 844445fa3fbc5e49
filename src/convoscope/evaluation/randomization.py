"""Whether maps know the network: they have to change where its weights, its target or what it learned from does.

Noisy maps change with anything; similarity is always read beside that of maps of noise (Binder et al. 2023).
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.spec import AtLeast, Paper
from convoscope.evaluation.base import Case, Metric, Scores, class_of, classes_of, seeded, spearman, twin_of
from convoscope.network import Network
from convoscope.targets import Target

_REVISITED = Paper(
    "hedstroem2024revisited", "Hedström, Anna and Weber, Leander and Lapuschkin, Sebastian and Höhne, Marina",
    "Sanity checks revisited: An exploration to repair the model parameter randomisation test", "preprint", 2024, "2401.06465",
)  # fmt: skip
Alike = Literal["spearman", "ssim"]
BY = "how maps are compared: ranks of pixels, or structural similarity"


def similarity(a: Float[Tensor, "images height width"], b: Float[Tensor, "images height width"], by: Alike) -> Tensor:
    """How alike two maps are, image by image: 1 the same. NaN where one of them is constant."""
    a, b = a.double().cpu(), b.double().cpu()
    if by == "spearman":
        return spearman(a.flatten(1), b.flatten(1))
    return ssim(_scaled(a), _scaled(b))


def _scaled(maps: Tensor) -> Tensor:
    """Zero mean, the standard deviation 1; NaN for constant maps."""
    flat = maps.flatten(1)
    deviation = flat.std(1, correction=0)
    limit = 1e-12 * flat.abs().amax(1)
    return (maps - flat.mean(1).view(-1, 1, 1)) / torch.where(deviation > limit, deviation, torch.nan).view(-1, 1, 1)


def ssim(a: Tensor, b: Tensor, sigma: float = 1.5, spread: float = 4.0) -> Float[Tensor, " images"]:
    """Mean structural similarity of two-dimensional maps, by Gaussian windows (Wang et al. 2004, eq. 13); `spread`: range."""
    reach = min(int(3.5 * sigma + 0.5), *(n - 1 for n in a.shape[1:]))
    offsets = torch.arange(-reach, reach + 1, dtype=a.dtype)
    window = torch.exp(-offsets.square() / (2 * sigma**2))
    window = window / window.sum()

    def mean(values: Tensor) -> Tensor:
        values = F.pad(values[:, None], (reach, reach, reach, reach), mode="reflect")
        return F.conv2d(F.conv2d(values, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))[:, 0]

    one, two = (0.01 * spread) ** 2, (0.03 * spread) ** 2
    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    found = (2 * ma * mb + one) * (2 * both + two) / ((ma * ma + mb * mb + one) * (va + vb + two))
    return found.flatten(1).mean(1)


class ParameterRandomization(Metric, name="mprt"):
    """How alike the map stays as the network's weights are replaced by random ones, layer after layer (Adebayo et al. 2018).

    The mean similarity over the steps; each layer's weights are replaced by their own values shuffled, so that their
    distribution stays (the paper draws them anew). `order="top-down"` goes from the last layer down and keeps what is above
    random, "bottom-up" from the first up, in the order in which the network names them; "once" randomizes all at once, at a
    fraction of the cost.
    """

    title, family, needs, direction = "Parameter randomization (MPRT)", "randomization", ("methods",), -1
    unit, range = "similarity", (-1.0, 1.0)
    use, drawback = "does the map know the weights?", "rewards noise: noisy maps change with anything; see smprt and emprt"
    paper: ClassVar[Paper] = Paper(
        "adebayo2018sanity", "Adebayo, Julius and Gilmer, Justin and Muelly, Michael and Goodfellow, Ian and others",
        "Sanity checks for saliency maps", "NeurIPS", 2018, "1810.03292",
    )  # fmt: skip
    order: Annotated[Literal["top-down", "bottom-up", "once"], "which layers lose their weights first"] = "top-down"
    by: Annotated[Alike, BY] = "spearman"
    smooth: Annotated[int, "maps of how many noisy copies are averaged first (sMPRT); 1: none", AtLeast(1)] = 1
    noise: Annotated[float, "standard deviation of their noise, in units of 0..1 pixels"] = 0.05

    def score(self, case: Case) -> Scores:
        return torch.stack([self.curve(case, number).nanmean(0) for number in range(len(case.names))])

    def curve(self, case: Case, number: int = 0) -> Float[Tensor, "steps images"]:
        """The similarity after each step."""
        clean = self._map(case, number, case.network)
        steps = [similarity(clean, self._map(case, number, net), self.by) for net in randomized_steps(case, self.order)]
        return torch.stack(steps)

    def passes(self, case: Case) -> int:
        return self.smooth * (2 if self.order == "once" else 1 + len(layers_with_weights(case.network.plain)))

    def _map(self, case: Case, number: int, network: Network) -> Tensor:
        rows = torch.arange(len(case.x))
        if self.smooth == 1:
            return case.maps[number].cpu() if network is case.network else case.explain(number, case.x, rows, network=network)
        scale = (network.normalize(torch.ones_like(case.x[:1])) - network.normalize(torch.zeros_like(case.x[:1]))) * self.noise
        total = torch.zeros_like(case.maps[number].cpu())
        for k in range(self.smooth):
            drawn = [torch.randn(case.x.shape[1:], generator=seeded(case.seed, "smooth", k, p)) for p in case.places]
            total += case.explain(number, case.x + torch.stack(drawn).to(case.x) * scale, rows, network=network).cpu()
        return total / self.smooth


class SmoothRandomization(ParameterRandomization, name="smprt"):
    """Parameter randomization of maps that are averaged over noisy copies of the picture first, so that noise of the maps is
    not taken for knowledge of the weights (Hedström et al. 2024, section 4.1).
    """

    title = "Smooth parameter randomization (sMPRT)"
    use, drawback = "does what is steady in the map know the weights?", "costs as many maps as there are noisy copies"
    paper: ClassVar[Paper] = _REVISITED
    smooth: Annotated[int, "maps of how many noisy copies are averaged first", AtLeast(1)] = 10


class EfficientRandomization(Metric, name="emprt"):
    """How much more complex the map gets as all weights are replaced by random ones (eMPRT; Hedström et al. 2024, eq. 5).

    The rise of the entropy of the map's values, in a histogram over their range, as a share of what it was. 0 for a map that
    does not know the network. Compares no maps, so that noise gains nothing.
    """

    title, family, needs = "Efficient parameter randomization (eMPRT)", "randomization", ("methods",)
    unit, range, still = "share of the map's entropy", (-1.0, float("inf")), 0.0
    use, drawback = "do random weights make the map disorderly?", "a map may be as disorderly with the right weights"
    paper: ClassVar[Paper] = _REVISITED
    bins: Annotated[int, "bins of the histogram", AtLeast(2)] = 100

    def score(self, case: Case) -> Scores:
        (twin,) = randomized_steps(case, "once")
        rows, found = torch.arange(len(case.x)), []
        for number, maps in enumerate(case.maps):
            clean = histogram_entropy(maps.cpu(), self.bins)
            lost = histogram_entropy(case.explain(number, case.x, rows, network=twin).cpu(), self.bins)
            found.append((lost - clean) / torch.where(clean > 0, clean, torch.nan))
        return torch.stack(found)

    def passes(self, case: Case) -> int:
        return 1


def histogram_entropy(maps: Float[Tensor, "images height width"], bins: int) -> Float[Tensor, " images"]:
    """The entropy of each map's values, in nats: the values of a map sorted into equal bins from its least to its largest."""
    flat = maps.double().flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    scaled = (flat - low) / torch.where(high > low, high - low, 1.0)
    places = (scaled * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(len(flat), bins, dtype=torch.float64).scatter_add_(1, places, torch.ones_like(flat))
    return torch.special.entr(counts / flat.shape[1]).sum(1)


def layers_with_weights(module: nn.Module) -> list[tuple[str, list[str]]]:
    """The modules that have parameters of their own, in the order of the network, with the names of these."""
    found = [(name, [n for n, _ in m.named_parameters(recurse=False)]) for name, m in module.named_modules()]
    return [(name, own) for name, own in found if own]


def randomized_steps(case: Case, order: str) -> Iterator[Network]:
    """The network with more and more layers random; the user's own is never touched."""
    network = case.network
    module = copy.deepcopy(network.plain)
    layers = layers_with_weights(module)
    if not layers:
        raise UsageError(f"{network.name} has no weights to randomize")
    layers = layers if order == "bottom-up" else layers[::-1]
    twin = twin_of(network, module)
    for step, (name, own) in enumerate(layers):
        part = module.get_submodule(name)
        with torch.no_grad():
            for parameter in own:
                values = getattr(part, parameter)
                shuffled = torch.randperm(values.numel(), generator=seeded(case.seed, "weights", name, parameter))
                values.copy_(values.reshape(-1)[shuffled.to(values.device)].view_as(values))
        if order != "once" or step + 1 == len(layers):
            yield twin


class RandomLogit(Metric):
    """How alike the maps of the target and of another class are (Sixt et al. 2020): one that knows the target differs.

    The other class is drawn for each image.
    """

    title, family, needs, direction = "Random logit", "randomization", ("methods",), -1
    unit, range = "similarity", (-1.0, 1.0)
    use, drawback = "does the map know the class?", "classes may have the same evidence, with another sign"
    paper: ClassVar[Paper] = Paper(
        "sixt2020explanations", "Sixt, Leon and Granz, Maximilian and Landgraf, Tim",
        "When explanations lie: Why many modified BP attributions fail", "ICML", 2020, "1912.09818",
    )  # fmt: skip
    by: Annotated[Alike, BY] = "spearman"

    def score(self, case: Case) -> Scores:
        rows = torch.arange(len(case.x))
        other = self._other(case)
        return torch.stack([similarity(m, case.explain(n, case.x, rows, other), self.by) for n, m in enumerate(case.maps)])

    def passes(self, case: Case) -> int:
        return 1

    def _other(self, case: Case) -> Target:
        index, classes = class_of(case.target, self.name), classes_of(case)
        if classes < 2:
            raise UnsupportedError(f"random-logit compares classes; {case.network.name} has one")
        own = index if isinstance(index, tuple) else (index,) * len(case.x)
        drawn = [int(torch.randint(classes - 1, (), generator=seeded(case.seed, "class", place))) for place in case.places]
        return replace(case.target, index=tuple(d + (d >= int(o)) for d, o in zip(drawn, own, strict=True)))  # type: ignore[call-arg]


def data_randomization(case: Case, twin: Network, by: Alike = "spearman") -> Scores:
    """How alike the maps of the network and of a twin that learned shuffled labels are (Adebayo et al. 2018, section 4.2).

    Low is good: a map that stays shows the picture, not what was learned.
    """
    rows = torch.arange(len(case.x))
    return torch.stack([similarity(m, case.explain(n, case.x, rows, network=twin), by) for n, m in enumerate(case.maps)])
