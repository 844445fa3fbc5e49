"""One change for all images: a universal perturbation, judged on images it was not made from."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.probe import Probe
from convoscope.core.run import undisturbed
from convoscope.core.spec import AtLeast, Paper
from convoscope.data.dataset import Dataset, open_dataset
from convoscope.network import Network
from convoscope.synthesis.adversarial import (
    AttackMethod,
    Goal,
    Norm,
    Pixels,
    Trial,
    goal_of,
    logits_of,
    result_of,
    session_of,
    space_of,
)
from convoscope.synthesis.adversarial_methods import direction
from convoscope.synthesis.adversarial_minimal import DeepFool
from convoscope.synthesis.adversarial_result import Attack

SHOWN = 16  # held-out images in the result; the rates are about all of them
MEMORY = 1 << 29  # bytes of inputs that are kept between passes


class Universal(AttackMethod):
    """One perturbation that changes what the network says of most images, also of ones it has not seen.

    Made from a share of a data set; the fooling rate on the `held_out` rest is what counts. `by="gradient"` ascends the mean
    log-odds over batches of images, each clipped at `clip` so that images already fooled do not lead (Shafahi et al. 2020);
    `by="deep-fool"` is the paper's: image by image the smallest further change, projected to the epsilon ball.
    """

    title = "Universal perturbation"
    paper = Paper(
        "moosavi2017universal", "Moosavi-Dezfooli, Seyed-Mohsen and Fawzi, Alhussein and Fawzi, Omar and Frossard, Pascal",
        "Universal Adversarial Perturbations", "CVPR", 2017, "1610.08401",
    )  # fmt: skip
    epsilon: Annotated[float | None, "size of the change in pixels 0..1; none: 10/255, or 2.5/255 per value", AtLeast(0)] = None
    norm: Annotated[Norm, "how it is measured: its largest value, or its Euclidean norm"] = "linf"
    by: Annotated[Literal["gradient", "deep-fool"], "batches of gradients, or image by image as in the paper"] = "gradient"
    passes: Annotated[int, "how often to see every image at most", AtLeast(1)] = 10
    rate: Annotated[float, "stop at this fooling rate on the images it is made from", AtLeast(0)] = 0.95
    batch: Annotated[int, "images of one step by gradient", AtLeast(1)] = 16
    clip: Annotated[float, "log-odds beyond which an image counts as fooled and leads no more"] = 3.0
    held_out: Annotated[float, "share of the images that it is judged on", AtLeast(0)] = 0.25

    def settled(self, values: int) -> "Universal":
        chosen = 10 / 255 if self.norm == "linf" else 2.5 / 255 * values**0.5
        return replace(self, epsilon=chosen if self.epsilon is None else self.epsilon)

    def evaluations(self) -> int:
        return 3 * self.passes + 4 if self.by == "gradient" else self.passes * (2 + DeepFool().evaluations()) + 4


@dataclass
class Crowd:
    """The images of a data set as inputs, read when asked for, and what the network says of them."""

    network: Network
    images: Tensor | Dataset
    batch_size: int | str
    seed: int
    target: Any
    progress: Any
    total: int = 0
    evaluations: int = 0
    goal: Goal | None = None

    def __post_init__(self) -> None:
        self.kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: list[int]) -> Tensor:
        """The inputs of some images."""
        if isinstance(self.images, Tensor):
            return self.images[rows]
        found = [self.kept[i] if i in self.kept else self.network.read(self.images.picture(i))[0] for i in rows]
        if len({f.shape for f in found}) > 1:
            raise UsageError("a universal perturbation needs images of one size; give Network a size")
        for i, x in zip(rows, found, strict=True):
            if (len(self.kept) + 1) * x.numel() * x.element_size() <= MEMORY:
                self.kept[i] = x
        return torch.stack(found)

    def trial(self, rows: list[int]) -> Trial:
        """The trial of some images. The first time, what the network says of them is asked."""
        x = self.network.check(self.read(rows))
        session = session_of(self.network, x, self.batch_size, self.seed)
        session.progress = self._told
        probe = Probe(session, torch.arange(len(x)), tuple((i,) for i in rows))
        wide, pixels, std = space_of(self.network, x)
        if self.goal is None:
            return Trial(
                probe, wide, pixels, std, goal_of(self.network, logits_of(probe.activations(x, "output")), self.target, None)
            )
        return Trial(probe, wide, pixels, std, Goal(self.goal.classes[rows], self.goal.targeted))

    def trials(self, rows: list[int], size: int) -> Iterator[tuple[list[int], Trial]]:
        """Those of many images, a batch at a time."""
        for start in range(0, len(rows), size):
            yield rows[start : start + size], self.trial(rows[start : start + size])

    def look(self, size: int) -> None:
        """Asks once what the network says of every image."""
        goals = [t.goal for _, t in self.trials(list(range(len(self))), size)]
        self.goal = Goal(torch.cat([g.classes for g in goals]), goals[0].targeted)

    def rate(self, rows: list[int], delta: Pixels, size: int) -> float:
        """The share of images that the perturbation takes to the goal."""
        there = [t.reached(t.logits(spread(t, delta))) for _, t in self.trials(rows, size)]
        return float(torch.cat(there).double().mean())

    def _told(self, passes: int) -> None:
        self.evaluations += passes
        if self.progress is not None:
            self.progress(min(self.evaluations, self.total), self.total)


def spread(trial: Trial, delta: Pixels) -> Pixels:
    """The one perturbation on each image, cut where it would leave the range of pixels."""
    return trial.within(delta.to(trial.pixels).expand_as(trial.pixels), torch.inf, "linf")


def universal(
    network: Network, images: Any, method: Universal, target: Any, seed: int, batch_size: int | str, progress: Any
) -> Attack:
    """The perturbation of a data set; the result holds held-out images, its `notes` the rates."""
    started = time.perf_counter()
    if isinstance(target, list | tuple):
        raise UsageError("a universal perturbation goes to one class; got several")
    images = network.check(images).detach() if isinstance(images, Tensor) else open_dataset(images)
    count = len(images)
    held = round(method.held_out * count)
    if not 1 <= held < count:
        raise UsageError(f"{count} images with held_out={method.held_out:g} leave none to make it from, or none to judge it on")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    rest, rows = sorted(order[:held]), order[held:]
    crowd = Crowd(network, images, batch_size, seed, target, progress, total=count * method.evaluations())
    with undisturbed(network.plain):
        method = method.settled(crowd.read([0])[0].numel())
        crowd.look(method.batch)
        delta, curve = made_of(crowd, rows, method)
        rates = {"fooling_rate": max(curve), "held_out_fooling_rate": crowd.rate(rest, delta, method.batch)}
        trial = crowd.trial(rest[:SHOWN])
        found = result_of(trial, spread(trial, delta), trial.logits(torch.zeros_like(trial.pixels)))
    about = {"method": method, "network": network, "seed": seed, "evaluations": crowd.evaluations}
    notes = {"images": len(rows), "held_out": len(rest), **rates, "curve": curve}
    about |= {"goal": trial.goal.classes, "targeted": trial.goal.targeted, "seconds": time.perf_counter() - started}
    return Attack(**found, **about, notes=notes, universal=delta[0].clone())


def made_of(crowd: Crowd, rows: list[int], method: Universal) -> tuple[Pixels, list[float]]:
    """The perturbation `(1, C, H, W)` of the best pass, and the fooling rate on the images it is made from after each."""
    delta = best = torch.zeros_like(crowd.trial(rows[:1]).pixels)
    draw, curve = torch.Generator().manual_seed(crowd.seed), list[float]()
    for number in range(method.passes):
        mixed = [rows[i] for i in torch.randperm(len(rows), generator=draw).tolist()]
        step = _by_gradient if method.by == "gradient" else _by_deep_fool
        delta = step(crowd, mixed, delta, method, number)
        curve.append(crowd.rate(rows, delta, method.batch))
        best = delta if curve[-1] == max(curve) else best
        if curve[-1] >= method.rate:
            break
    return best, curve


def bounded(delta: Pixels, method: Universal) -> Pixels:
    """The perturbation, no larger than epsilon."""
    epsilon = float(method.epsilon)  # type: ignore[arg-type]
    if method.norm == "linf":
        return delta.clamp(-epsilon, epsilon)
    return delta * min(1.0, epsilon / max(float(delta.norm()), 1e-30))


def _by_gradient(crowd: Crowd, rows: list[int], delta: Pixels, method: Universal, number: int) -> Pixels:
    """A pass of steps that shrink over the passes."""
    size = 0.25 * float(method.epsilon) * (1 - number / method.passes)  # type: ignore[arg-type]
    for _, trial in crowd.trials(rows, method.batch):
        gradient, odds, _ = trial.slope(spread(trial, delta))
        leading = gradient[odds < method.clip]
        if len(leading):
            delta = bounded(delta + size * direction(leading.mean(0, keepdim=True), method.norm), method)
    return delta


def _by_deep_fool(crowd: Crowd, rows: list[int], delta: Pixels, method: Universal, number: int) -> Pixels:
    """Image by image: the smallest further change of one that is not fooled yet."""
    smallest = DeepFool(norm=method.norm, refine=0, polish=0)
    for row in rows:
        trial = crowd.trial([row])
        before = spread(trial, delta)
        if bool(trial.reached(trial.logits(before))):
            continue
        moved = replace(trial, x=trial.x + before / trial.std, pixels=trial.pixels + before)
        delta = bounded(delta + smallest.perturb(moved), method)
    return delta
