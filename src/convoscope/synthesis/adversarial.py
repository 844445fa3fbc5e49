"""Adversarial examples: changes too small to see that make a network say something else.

Everything is measured in pixels 0..1, whatever the network's input space; pixels never leave that range.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from convoscope.core.errors import SpecError, UnsupportedError, UsageError
from convoscope.core.probe import Probe
from convoscope.core.record import Activations
from convoscope.core.run import rows_at_once, undisturbed
from convoscope.core.session import Session
from convoscope.core.spec import Spec, fields_of, parse_spec, registered
from convoscope.network import Network
from convoscope.synthesis.adversarial_result import Attack
from convoscope.targets.base import check_classes, class_number

Pixels = Float[Tensor, "rows channels height width"]
Outputs = Float[Tensor, "rows classes"]
Norm = Literal["linf", "l2"]
Watch = Callable[[Tensor, Tensor], None]


class AttackMethod(Spec, kind="attack", abstract=True):
    """Base of all attacks: from images and a goal to a change of their pixels.

    `title`: its name in the literature. `bounded`: the change stays within `epsilon`; others look for the smallest one.
    """

    title: ClassVar[str]
    bounded: ClassVar[bool] = True

    def perturb(self, trial: "Trial") -> Pixels:
        """The change of each image's pixels; it is kept in the valid range by `trial`."""
        raise NotImplementedError

    def evaluations(self) -> int:
        """How many passes of one image it needs at most."""
        raise NotImplementedError

    def settled(self, values: int) -> "AttackMethod":
        """This attack with what is open (an epsilon for each number of values in an image) fixed."""
        return self


def attacks() -> dict[str, type[AttackMethod]]:
    """All registered attacks by name."""
    from convoscope.synthesis import (  # noqa: F401  registers them
        adversarial_methods,
        adversarial_minimal,
        adversarial_peers,
        adversarial_universal,
    )

    return registered("attack")  # type: ignore[return-value]


def attack_of(which: AttackMethod | str, settings: dict[str, Any] | None = None) -> AttackMethod:
    """An attack from its name, `name:setting=value`, or itself, with settings replaced. Raises SpecError for unknown ones."""
    attacks()
    from convoscope.synthesis.adversarial_peers import parsed

    made = (parsed(which) or parse_spec("attack", which)) if isinstance(which, str) else which
    if not isinstance(made, AttackMethod):
        raise UsageError(f"an attack is its name or an AttackMethod such as PGD(); got {type(which).__name__}")
    before = {f.name: getattr(made, f.name) for f in fields_of(type(made))}
    return type(made).make(before | settings) if settings else made


@dataclass(frozen=True)
class Goal:
    """What an attack is after, for each image: away from a class, or (`targeted`) to a class."""

    classes: Int64[Tensor, " images"]
    targeted: bool

    def reached(self, outputs: Outputs, rows: Tensor) -> Bool[Tensor, " rows"]:
        """Whether the strongest class of each row is what the attack wants."""
        return (outputs.argmax(1) == self.classes[rows].to(outputs.device)) == self.targeted


@dataclass(frozen=True, eq=False)
class LogOdds:
    """How far each row is on the way to the goal: the log-odds of the target, or those against the class to leave.

    Its gradient points where that of the cross-entropy does, so attacks that use its direction alone are the same; that of
    the cross-entropy itself vanishes in rounding where the network is sure.
    """

    goal: Goal
    open: bool = False

    def addresses(self) -> tuple[str, ...]:
        return ("output",)

    def resolve(self, activations: Activations) -> "LogOdds":
        return self

    def __call__(self, activations: Activations) -> Float[Tensor, " rows"]:
        logits = logits_of(activations["output"])
        own = self.goal.classes[activations.rows].to(logits.device)[:, None]
        odds = logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).logsumexp(1)
        return odds if self.goal.targeted else -odds


def logits_of(output: Tensor) -> Outputs:
    """The network's output as numbers whose softmax are its probabilities; log-probabilities of what is a distribution."""
    if output.dim() != 2:
        raise UnsupportedError(
            f"an attack needs an output (images, classes); got shape {tuple(output.shape)}. Wrap the network so that it "
            "returns one number for each class"
        )
    if output.shape[1] < 2:
        raise UnsupportedError(
            "the network has one output, and no class to go to; wrap it so that it returns two, torch.cat([-z, z], 1) / 2"
        )
    done = (output >= 0).all(1) & ((output.sum(1) - 1).abs() < max(1e-4, 4 * torch.finfo(output.dtype).eps))
    logs = output.clamp(min=torch.finfo(output.dtype).tiny).log()
    return torch.where(done[:, None], logs, output)


@dataclass(frozen=True)
class Trial:
    """Some images under attack: what a method asks the network through.

    `pixels` are those of the clean images, 0..1; a change `delta` has their shape and is what everything here takes.
    """

    probe: Probe
    x: Pixels
    pixels: Pixels
    std: Float[Tensor, "1 channels 1 1"]
    goal: Goal
    watch: Watch | None = None

    def some(self, rows: Tensor) -> "Trial":
        """The trial of some of the images, by number or by yes and no."""
        index = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        here = index.to(self.probe.rows.device)
        probe = replace(self.probe, rows=self.probe.rows[here], keys=tuple(self.probe.keys[int(i)] for i in index))
        return replace(self, probe=probe, x=self.x[index], pixels=self.pixels[index])

    def inputs(self, delta: Pixels) -> Tensor:
        """What the network is given: the clean inputs themselves where nothing changes."""
        dtype = self.probe.session.images.dtype
        return (self.x + delta / self.std).to(dtype)

    def box(self) -> tuple[Pixels, Pixels]:
        """The least and the largest change that leave every pixel in 0..1."""
        return -self.pixels, 1 - self.pixels

    def within(self, delta: Pixels, epsilon: float, norm: Norm) -> Pixels:
        """The change, no larger than `epsilon` and in the valid range."""
        if norm == "linf":
            delta = delta.clamp(-epsilon, epsilon)
        else:
            size = delta.flatten(1).norm(dim=1).clamp(min=torch.finfo(delta.dtype).tiny)
            delta = delta * (epsilon / size).clamp(max=1).view(-1, 1, 1, 1)
        low, high = self.box()
        return torch.minimum(torch.maximum(delta, low), high)

    def logits(self, delta: Pixels) -> Outputs:
        """What the network says of the changed images."""
        return logits_of(self.probe.activations(self.inputs(delta), "output"))

    def reached(self, logits: Outputs) -> Bool[Tensor, " rows"]:
        """Whether each row has what the attack wants."""
        return self.goal.reached(logits, self.probe.rows)

    def judged(self, delta: Pixels) -> tuple[Float[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """The log-odds of each row, and whether it has what the attack wants, without gradients."""
        logits = self.logits(delta)
        found = LogOdds(self.goal)(Activations.of({"output": logits}, self.probe.rows))
        return found.to(self.pixels.dtype), self.reached(logits)

    def slope(self, delta: Pixels) -> tuple[Pixels, Float[Tensor, " rows"], Outputs]:
        """The gradient of the log-odds with respect to the pixels, the log-odds, and what the network says, from one pass."""
        return self.slopes(delta, [LogOdds(self.goal)])[0]

    def slopes(self, delta: Pixels, scores: Sequence[Any]) -> list[tuple[Pixels, Float[Tensor, " rows"], Outputs]]:
        """The same for several scores, from one pass there and one back for each."""
        if self.watch is not None:
            self.watch(self.probe.rows, (self.pixels + delta).clamp(0, 1))
        x, found, shared = self.inputs(delta), [], self.probe.session.shared
        shared.x, shared.planned = x, {}
        try:
            self.probe.plan(x, ("input", "output"), scores)
            for score in scores:
                with self.probe.aiming(score):
                    both = self.probe.gradients(x, ("input", "output"))
                gradient = both["input"][1].to(self.pixels.dtype) / self.std
                found.append((gradient, both["score"].to(self.pixels.dtype), logits_of(both["output"][0])))
        finally:
            shared.x, shared.planned = None, {}
        return found


# ---- the door
def attack(
    network: Network | nn.Module, x: Any, method: AttackMethod | str = "pgd", target: Any = None, *, labels: Any = None,
    seed: int = 0, batch_size: int | Literal["auto"] = "auto", progress: Any = None, watch: Watch | None = None,
    **settings: Any,
) -> Attack:  # fmt: skip
    """Images that look like `x` to us and like something else to the network.

    `x` is an input tensor `(B, C, H, W)` or anything `network.read` takes. `target` is the class to go to: a number, a name,
    or one for each image; without it the attack is away from what the network says of each image, or from its true class
    where `labels` are given. `method` is a name (`attacks()` lists them), `name:setting=value` or an AttackMethod; `settings`
    (`epsilon`, `norm`, `steps`, ...) replace its own. `epsilon` is in pixels 0..1. The network is untouched afterwards, and
    the same seed gives the same images for any batch size up to rounding. `progress` is called with (passes done, at most
    how many), `watch(numbers of images, pixels)` at each step. With `method="universal"`, `x` is a data set, anything
    `open_dataset` takes, or a tensor of inputs, and nothing is watched.
    """
    network = network if isinstance(network, Network) else Network(network)
    started = time.perf_counter()
    chosen = attack_of(method, settings)
    if batch_size != "auto" and not (isinstance(batch_size, Integral) and batch_size >= 1):
        raise UsageError(f"batch_size is {batch_size!r}; expected a whole number of at least 1, or 'auto'")
    if target is not None and labels is not None:
        raise UsageError("give a target to go to, or the labels to leave; not both")
    from convoscope.synthesis.adversarial_universal import Universal, universal

    if isinstance(chosen, Universal):
        if labels is not None:
            raise UsageError("a universal perturbation is away from what the network says, or to a target; it takes no labels")
        return universal(network, x, chosen, target, seed, batch_size, progress)
    with undisturbed(network.plain):
        images = network.check(x if isinstance(x, Tensor) else network.read(x)).detach().clone()
        chosen = chosen.settled(images[0].numel())
        session = session_of(network, images, batch_size, seed)
        wide, pixels, std = space_of(network, images)
        probe = Probe(session, torch.arange(len(images)), tuple((i,) for i in range(len(images))))
        before = logits_of(probe.activations(images, "output"))
        goal = goal_of(network, before, target, labels)
        whole = Trial(probe, wide, pixels, std, goal, watch)
        if progress is not None:
            total = len(images) * (chosen.evaluations() + 3)
            session.progress = lambda _: progress(min(session.evaluations, total), total)
        parts = [chosen.perturb(whole.some(rows)) for rows in torch.arange(len(images)).split(session.batch_size)]
        found = result_of(whole, torch.cat(parts), before)
    about = {"method": chosen, "network": network, "seed": seed, "evaluations": session.evaluations}
    return Attack(**found, goal=goal.classes, targeted=goal.targeted, seconds=time.perf_counter() - started, **about)


def session_of(network: Network, images: Tensor, batch_size: int | str, seed: int) -> Session:
    """The session through which a network is attacked."""
    size = rows_at_once(images) if batch_size == "auto" else int(batch_size)
    session = Session(network.plain, images, None, "input", size, seed, network.head)  # type: ignore[arg-type]
    session.adaptive = batch_size == "auto"
    return session


def space_of(network: Network, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, their pixels 0..1 and the deviations of the normalization, in at least float32.

    Raises UsageError where the pixels of an image are not in 0..1, beyond rounding.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    eps = torch.finfo(x.dtype).eps
    wide = x.to(dtype)
    std, mean = (torch.tensor(v, dtype=dtype, device=x.device).view(1, -1, 1, 1) for v in (network.std, network.mean))
    pixels = wide * std + mean
    known = pixels.isfinite().flatten(1).all(1)
    if not bool(known.all()):
        raise UsageError(f"image {known.tolist().index(False)} holds values that are not finite")
    low, high = (float(v) for v in pixels.aminmax())
    slack = 8 * eps * float((wide.abs() * std).amax() + mean.abs().amax())
    if low < -slack or high > 1 + slack:
        raise UsageError(
            f"the pixels of x go from {low:.4g} to {high:.4g}, and an attack keeps them in 0..1; x is expected in the "
            "network's input space, which is (pixel - mean) / std: net.read() makes it of pictures, net.normalize() of pixels"
        )
    return wide, pixels.clamp(0, 1), std


def goal_of(network: Network, before: Outputs, target: Any, labels: Any) -> Goal:
    """The goal: to the classes in `target`, or away from `labels`, or from what the network says."""
    given = target if labels is None else labels
    if given is None:
        return Goal(before.argmax(1).cpu(), False)
    if isinstance(given, Tensor) or hasattr(given, "tolist"):
        given = given.tolist()
    given = tuple(given) if isinstance(given, list | tuple) else given
    each = given if isinstance(given, tuple) else (given,)
    if not all(isinstance(g, str) or (isinstance(g, Integral) and not isinstance(g, bool)) for g in each):
        raise UsageError(f"classes are numbers or names, one or one for each image; got {given!r}")
    numbers = class_number(tuple(g if isinstance(g, str) else int(g) for g in each), network.categories)
    check_classes(numbers, before.shape[1])
    if len(numbers) not in (1, len(before)):  # type: ignore[arg-type]
        raise UsageError(f"{len(each)} classes for {len(before)} images; give one for each, or one for all")
    classes = torch.tensor(numbers)
    return Goal(classes if len(classes) == len(before) else classes.expand(len(before)).clone(), labels is None)


def result_of(trial: Trial, delta: Tensor, before: Outputs) -> dict[str, Any]:
    """What came of a change, looked at once more: as it is, and as a picture of 8 bits."""
    delta = trial.within(delta, float("inf"), "linf")
    after = trial.logits(delta)
    changed = (trial.pixels + delta).clamp(0, 1)
    saved = (changed * 255).round() / 255
    rounded = trial.logits(saved - trial.pixels)
    return {
        "inputs": trial.inputs(delta),
        "pixels": changed,
        "clean": trial.pixels,
        "before": before.softmax(1),
        "after": after.softmax(1),
        "saved": rounded.softmax(1),
        "success": trial.reached(after),
        "saved_success": trial.reached(rounded),
        "linf": delta.abs().flatten(1).amax(1),
        "l2": delta.flatten(1).norm(dim=1),
    }


def epsilon_of(epsilon: float | None, norm: Norm, values: int) -> float:
    """Where nobody says: 8/255 (linf), or a root mean square of 2/255 over all values of an image (l2)."""
    if epsilon is not None:
        if epsilon > values**0.5:
            raise SpecError(f"epsilon is {epsilon:g}; in pixels 0..1 no change can be larger than {values**0.5:.4g}")
        return epsilon
    return 8 / 255 if norm == "linf" else 2 / 255 * values**0.5
