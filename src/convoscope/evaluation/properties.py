"""The five properties that a survey asks of an interpretation (Fan et al. 2021, "On interpretability of artificial neural
networks: a survey", IEEE TRPMS, 2001.02522), each as one number with its definition."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.run import rows_at_once
from convoscope.data.dataset import Dataset
from convoscope.evaluation.axioms import recoded
from convoscope.evaluation.base import Case, digest
from convoscope.evaluation.bench.base import Mapper
from convoscope.evaluation.bench.birds_truth import outputs
from convoscope.evaluation.bench.run import fitting
from convoscope.evaluation.nulls import edges, noise
from convoscope.evaluation.parts import groups
from convoscope.evaluation.properties_result import PROPERTIES, Properties
from convoscope.evaluation.randomization import similarity
from convoscope.evaluation.removal import Deletion, Insertion
from convoscope.evaluation.robustness import changed
from convoscope.method import Method, explain, method_of
from convoscope.network import Images, Network
from convoscope.targets import Target

IMAGES = 8  # whose maps are held at once
DRAWS = 4  # random maps that an explanation has to beat
NEAR = 0.01  # the largest change of a pixel, of 0..1, that nobody sees
AS_THEY_ARE = "as they are"
SHARES = (0.02, 0.05, 0.1)  # of the pixels, filled to mend a mistake
FILL = "blur"

Explainer = Callable[[Network, Images, Target, tuple[int, ...], int], Tensor]
"""Who gives maps `(rows, height, width)`: as a Mapper does, with a seed."""


def types(network: Network, x: Images) -> dict[str, Images]:
    """Kinds of pictures that the network can be shown: as they are, without color, and at half their brightness."""
    black = network.normalize(torch.zeros_like(x[:1, :, :1, :1]))
    span = network.normalize(torch.ones_like(black)) - black
    gray = ((x - black) / span).mean(1, keepdim=True)
    found = {AS_THEY_ARE: x, "gray": black + gray * span, "dark": black + (x - black) / 2}
    return found if x.shape[1] > 1 else {k: v for k, v in found.items() if k != "gray"}


def properties(
    network: Network | nn.Module, images: Any, methods: Sequence[Method | str] = (), *, labels: Sequence[int] | None = None,
    networks: Iterable[tuple[Network, Images]] = (), mappers: Mapping[str, Mapper] | None = None,
    nulls: Sequence[str] = ("random", "edges"), steps: int = 16, seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Properties:  # fmt: skip
    """Exactness, consistency, completeness, universality and reward of methods, each a number, higher is better.

    `images` is an input tensor, anything `network.read` takes, or a Dataset; what is explained is the top class of each image.
    Reward needs the true classes, `labels` or those of the data set, and mistakes among the images. Universality needs other
    `networks`, each with inputs for it. `mappers` are maps of your own. `Properties.definitions` says what each number is.
    Windows larger than a third of a picture's side are taken as a third. What cannot be had is NaN, with its reason in
    `missing` or `left_out`.
    """
    network = network if isinstance(network, Network) else Network(network)
    who = _who(methods, mappers or {}, nulls)
    images, labels = _images(network, images, labels)
    run = _Run(network, who, steps, seed)
    others = list(networks)
    total = len(images) + len(others)
    for first, x in groups(network, images, lambda _: IMAGES):
        run.add(x, first, labels[first : first + len(x)] if labels else None)
        if progress is not None:
            progress(first + len(x), total)
    for k, (other, inputs) in enumerate(others):
        run.other(other, inputs)
        if progress is not None:
            progress(len(images) + k + 1, total)
    return run.result(labels is not None, bool(others))


@dataclass
class _Run:
    """What is known so far: numbers of each explainer for each property."""

    network: Network
    who: Mapping[str, Explainer]
    steps: int
    seed: int
    left_out: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.found: dict[str, dict[str, list[Tensor]]] = {p: {name: [] for name in self.who} for p in PROPERTIES}

    def add(self, x: Images, first: int, labels: Sequence[int] | None) -> None:
        """The properties of some images; `first` is the place of the first of them."""
        places = tuple(range(first, first + len(x)))
        passed: dict[str, list[Tensor]] = {name: [] for name in self.who}
        for kind, shown in types(self.network, x).items():
            target = explain(self.network, shown, "gradient").target
            case, said = self._case(shown, target, places)
            gains = _gain(case, self.steps)
            chance = gains[-DRAWS:]
            for name in self.who:
                own = torch.where(said[name], gains[case.names.index(name)], torch.nan)
                passed[name].append((own > chance.amax(0)).double())
                if kind == AS_THEY_ARE:
                    self.found["exactness"][name].append(own - chance.mean(0))
            if kind == AS_THEY_ARE:
                self._agree(case, said)
                self._mend(case, said, labels)
        for name, shares in passed.items():
            self.found["completeness"][name].append(torch.stack(shares).mean(0))

    def other(self, network: Network, inputs: Images) -> None:
        """Whether each can explain another network at all."""
        target = explain(network, inputs, "gradient").target
        for name in self.who:
            said = self._asked(name, network, inputs, target, tuple(range(len(inputs))), self.seed, network.name)[1]
            self.found["universality"][name].append(said.all().double()[None])

    def result(self, labeled: bool, others: bool) -> Properties:
        items = {p: tuple(torch.cat(v) if v else torch.zeros(0).double() for v in found.values())
                 for p, found in self.found.items()}  # fmt: skip
        missing = {}
        if not others:
            missing["universality"] = "no other networks were given: networks=[(network, inputs), ...]"
        if not labeled:
            missing["reward"] = "no true classes were given: labels=[...], or a data set with classes"
        elif all(len(v) == 0 for v in items["reward"]):
            missing["reward"] = "the network makes no mistake on these images"
        return Properties(tuple(self.who), items, missing, self.left_out, self.network.name, self.seed)

    # ---- one property each
    def _agree(self, case: Case, said: Mapping[str, Tensor]) -> None:
        """Consistency: of another run, of the same picture to the eye, of the same function."""
        x = case.x
        shift = (self.network.normalize(torch.ones_like(x[:1, :, :1, :1])) - self.network.normalize(0 * x[:1, :, :1, :1])) / 2
        same = recoded(self.network, shift)
        near = changed(case, 1, NEAR)[0]
        for name in self.who:
            alike = []
            for network, shown, seed in ((self.network, x, 1), (self.network, near, 0), (same, x + shift, 0)):
                maps, _ = self._asked(name, network, shown, case.target, case.places, self.seed + seed)
                alike.append(similarity(case.maps[case.names.index(name)], maps, "spearman"))
            found = torch.stack(alike).nanmean(0)
            self.found["consistency"][name].append(torch.where(said[name], found, torch.nan))

    def _mend(self, case: Case, said: Mapping[str, Tensor], labels: Sequence[int] | None) -> None:
        """Reward: how often filling what is marked for a wrong class mends the mistake, more often than with random maps."""
        classes = [-1] * len(case.x) if labels is None else list(labels)
        predicted = list(case.target.index)  # type: ignore[attr-defined]
        wrong = [i for i, (c, p) in enumerate(zip(classes, predicted, strict=True)) if c >= 0 and c != p]
        if not wrong:
            return
        base, pixels = case.fill("mean"), case.maps[0, 0].numel()
        flat = case.maps.flatten(2)
        mended = torch.zeros(len(case.names), len(wrong), dtype=torch.float64)
        for share in SHARES:
            count = max(1, round(share * pixels))
            for k, i in enumerate(wrong):
                top = torch.zeros_like(flat[:, i], dtype=torch.bool).scatter_(1, flat[:, i].topk(count).indices, True)
                gone = top.view(-1, 1, *case.x.shape[2:]).to(case.x.device)
                found = outputs(self.network, torch.where(gone, base[i], case.x[i]))
                mended[:, k] += (found.argmax(1) == classes[i]).double() / len(SHARES)
        for name in self.who:
            own = torch.where(said[name][wrong], mended[case.names.index(name)], torch.nan)
            self.found["reward"][name].append(own - mended[-DRAWS:].mean(0))

    # ---- maps
    def _case(self, x: Images, target: Target, places: tuple[int, ...]) -> tuple[Case, dict[str, Tensor]]:
        """The maps of everybody, then those of chance; and for which images each has said something."""
        maps, said = [], {}
        for name in self.who:
            found, said[name] = self._asked(name, self.network, x, target, places, self.seed, self.network.name)
            maps.append(found)
        maps += [noise(x, places, self.seed, k + 1) for k in range(DRAWS)]
        names = (*self.who, *(f"chance {k}" for k in range(DRAWS)))
        size = rows_at_once(x)
        return Case(self.network, x, target, torch.stack(maps), names, places=places, seed=self.seed, batch_size=size), said

    def _asked(
        self, name: str, network: Network, x: Images, target: Target, places: tuple[int, ...], seed: int, note: str = ""
    ) -> tuple[Tensor, Bool[Tensor, " images"]]:
        """The maps of one, 0 where it says nothing: it refuses the network, or the map is constant or not finite."""
        nothing = torch.zeros(len(x), *x.shape[2:], dtype=torch.float64)
        try:
            found = self.who[name](network, x, target, places, seed).detach().cpu().double()
        except (UnsupportedError, UsageError) as error:
            if note:
                self.left_out[name, note] = str(error)
            return nothing, torch.zeros(len(x), dtype=torch.bool)
        flat = found.flatten(1)
        said = flat.isfinite().all(1) & (flat.amax(1) > flat.amin(1))
        if note and not said.all():
            self.left_out[name, note] = "maps that are constant, or not finite"
        return torch.where(said[:, None, None], found, nothing), said


def _gain(case: Case, steps: int) -> Float[Tensor, "maps images"]:
    """Insertion less deletion, with one fill."""
    shown, removed = Insertion(steps=steps, fill=FILL), Deletion(steps=steps, fill=FILL)
    return shown.score(case) - removed.score(case)


# ---------------------------------------------------------------- who and what is asked
def _who(methods: Sequence[Method | str], mappers: Mapping[str, Mapper], nulls: Sequence[str]) -> dict[str, Explainer]:
    made = [method_of(m) for m in methods]
    for null in nulls:
        if null not in _NULLS:
            raise UsageError(f"no null {null!r}; expected {', '.join(_NULLS)}")
    names = [*(m.name for m in made), *mappers, *nulls]
    twice = {n for n in names if names.count(n) > 1}
    if twice or not names:
        raise UsageError(f"two maps are called {twice.pop()!r}; rename one" if twice else "no methods and no maps to judge")
    who: dict[str, Explainer] = {m.name: _by_method(m) for m in made}
    who |= {name: _by_mapper(mapper) for name, mapper in mappers.items()}
    return who | {n: _NULLS[n] for n in nulls}


def _by_method(method: Method) -> Explainer:
    def explainer(network: Network, x: Images, target: Target, places: tuple[int, ...], seed: int) -> Tensor:
        return explain(network, x, fitting(method, min(x.shape[2:])), target, seed=seed, places=places).heatmap()

    return explainer


def _by_mapper(mapper: Mapper) -> Explainer:
    return lambda network, x, target, places, seed: mapper(network, x, target, places)


_NULLS: dict[str, Explainer] = {
    # Drawn anew for every picture, as it is to the bit: what is random agrees with nothing, itself neither.
    "random": lambda network, x, target, places, seed: noise(x, places, seed, int.from_bytes(digest(x)[:6])),
    "edges": lambda network, x, target, places, seed: edges(x),
}


def _images(network: Network, images: Any, labels: Sequence[int] | None) -> tuple[Tensor | Dataset, list[int] | None]:
    """Inputs, or the data set that they are read from some at a time, with their classes where these are known."""
    if not isinstance(images, Dataset):
        images = network.check(images if isinstance(images, Tensor) else network.read(images))
    elif labels is None and images.classes:
        labels = [images.class_of(i) for i in range(len(images))]
    if not len(images):
        raise UsageError("no images to ask about")
    if labels is not None and len(labels) != len(images):
        raise UsageError(f"{len(labels)} labels for {len(images)} images; give one for each, -1 where it is not known")
    return images, None if labels is None else [int(k) for k in labels]
