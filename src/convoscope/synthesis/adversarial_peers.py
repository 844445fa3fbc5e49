"""Attacks of torchattacks and foolbox, on the same networks, in the same pixels, with the same result."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from convoscope.core.errors import SpecError, UnsupportedError, UsageError, did_you_mean
from convoscope.core.spec import AtLeast, parse_value
from convoscope.synthesis.adversarial import AttackMethod, Pixels, Trial, logits_of


class Torchattacks(AttackMethod):
    """Any attack of torchattacks 3.5 (Kim 2020, arXiv 2010.01950): CW, AutoAttack, Square, ...; `settings` are its own.

    In text `torchattacks:CW,c=1,steps=50`. Its random draws depend on the batch, and are seeded.
    """

    title = "torchattacks"
    attack: Annotated[str, "name of the class in torchattacks, such as CW"] = "CW"
    settings: Annotated[tuple, "pairs of a name and a value"] = ()

    def perturb(self, trial: Trial) -> Pixels:
        model, pixels = _Seen(trial), trial.pixels.float()
        made = _made(_torchattacks(), self.attack, model, settings=dict(self.settings))
        classes = trial.goal.classes[trial.probe.rows].to(pixels.device)
        if trial.goal.targeted:
            try:
                made.set_mode_targeted_by_label(quiet=True)
            except (ValueError, NotImplementedError):
                raise UnsupportedError(f"torchattacks' {self.attack} knows no target to go to; leave it out") from None
        with _seeded(trial):
            changed = made(pixels, classes)
        return changed.detach().to(trial.pixels) - trial.pixels

    def evaluations(self) -> int:
        return int(dict(self.settings).get("steps", 100))


class Foolbox(AttackMethod):
    """Any attack of foolbox 3.3 (Rauber et al. 2020, JOSS): L2CarliniWagnerAttack, BoundaryAttack, ...; `settings` its own.

    In text `foolbox:LinfPGD,epsilon=0.03,steps=20`. Attacks that look for the smallest change need no epsilon.
    """

    title = "foolbox"
    attack: Annotated[str, "name of the class in foolbox.attacks, such as LinfPGD"] = "L2CarliniWagnerAttack"
    epsilon: Annotated[float | None, "size of the change in the attack's own norm, in pixels 0..1", AtLeast(0)] = None
    settings: Annotated[tuple, "pairs of a name and a value"] = ()

    def perturb(self, trial: Trial) -> Pixels:
        foolbox = _foolbox()
        model, pixels = _Seen(trial), trial.pixels.float()
        made = _made(foolbox.attacks, self.attack, settings=dict(self.settings))
        classes = trial.goal.classes[trial.probe.rows].to(pixels.device)
        criteria = foolbox.criteria
        wanted = criteria.TargetedMisclassification(classes) if trial.goal.targeted else criteria.Misclassification(classes)
        shown = foolbox.PyTorchModel(model, bounds=(0, 1), device=pixels.device)
        try:
            with _seeded(trial):
                _, changed, _ = made(shown, pixels, wanted, epsilons=self.epsilon)
        except (ValueError, NotImplementedError) as error:
            raise UnsupportedError(f"foolbox' {self.attack}: {' '.join(str(error).split())}") from error
        return changed.detach().to(trial.pixels) - trial.pixels

    def evaluations(self) -> int:
        return int(dict(self.settings).get("steps", 100))


def parsed(text: str) -> AttackMethod | None:
    """`torchattacks:CW,c=1` or `foolbox:LinfPGD,epsilon=0.03`; None for the attacks of this package."""
    name, _, rest = text.strip().partition(":")
    kinds: Mapping[str, Any] = {"torchattacks": Torchattacks, "foolbox": Foolbox}
    if name not in kinds:
        return None
    chosen, pairs, own = None, [], {}
    for part in (p.strip() for p in rest.split(",") if p.strip()):
        key, equals, value = part.partition("=")
        if not equals:
            if chosen is not None:
                raise SpecError(f"{part!r} in {text!r} is not a setting; write setting=value")
            chosen = part
        elif key == "epsilon" and name == "foolbox":
            own[key] = parse_value(float, value, key)
        else:
            pairs.append((key, parse_value(int | float | bool | str, value, key)))
    return kinds[name](**({} if chosen is None else {"attack": chosen}), settings=tuple(pairs), **own)


class _Seen(nn.Module):
    """What other libraries are shown: pixels in, logits out. The user's module is not a part of it, so stays as it is."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self.trials = [trial]
        self.where = nn.Parameter(torch.zeros(1, device=trial.pixels.device), requires_grad=False)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        (trial,) = self.trials
        session = trial.probe.session
        mean = trial.pixels[:1] - trial.x[:1] * trial.std  # the same everywhere; in pixels, what zero inputs are
        inputs = ((pixels.to(trial.pixels.dtype) - mean.mean((2, 3), keepdim=True)) / trial.std).to(session.images.dtype)
        parts = []
        for part in inputs.split(session.batch_size):
            output = session.module(part.clone())
            parts.append(logits_of(session.head(output) if session.head else output))
        session.evaluations += len(inputs)
        if session.progress is not None:
            session.progress(len(inputs))
        return torch.cat(parts).float()


@contextmanager
def _seeded(trial: Trial) -> Iterator[None]:
    """Inside, the global generators draw from the trial's seed; they are as they were afterwards."""
    kept = random.getstate(), np.random.get_state()
    seed = (trial.probe.session.seed * 1_000_003 + int(trial.probe.rows[0])) % 2**31
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


def _made(library: Any, name: str, *arguments: Any, settings: dict[str, Any]) -> Any:
    known = [n for n in dir(library) if isinstance(getattr(library, n), type) and not n.startswith("_")]
    if name not in known:
        raise SpecError(f"{library.__name__} has no attack {name!r}{did_you_mean(name, known)}")
    try:
        return getattr(library, name)(*arguments, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise SpecError(f"{library.__name__}' {name}: {' '.join(str(error).split())}") from error


def _torchattacks() -> Any:
    from convoscope.loading import import_torchvision

    try:
        import_torchvision()
        import torchattacks
    except ImportError as error:
        raise UsageError(f"attacks of torchattacks need it: pip install 'convoscope[attacks]' ({error})") from None
    return torchattacks


def _foolbox() -> Any:
    try:
        import foolbox
    except ImportError as error:
        raise UsageError(f"attacks of foolbox need it: pip install 'convoscope[attacks]' ({error})") from None
    return foolbox
