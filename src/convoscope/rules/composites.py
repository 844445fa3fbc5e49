"""Composites: which rule covers which operator. The first entry that matches counts; printed, they read as a table."""

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated

from convoscope.core.errors import SpecError, did_you_mean
from convoscope.core.spec import Spec
from convoscope.rules.rules import Epsilon, Gate, Guided, Normalize, Pass, Rectify, Rule, ZPlus


class Entry(Spec, kind="entry"):
    """One line of a composite: operators and addresses by pattern (`conv*|linear`, `layer4.*`), and their rule."""

    operators: Annotated[str, "names of operators, | between alternatives, * for anything"]
    rule: Annotated[Rule, "the rule"]
    addresses: Annotated[str, "addresses, | between alternatives, * for anything"] = "*"


class Composite(Spec, kind="composite"):
    """An ordered table of rules.

    A strict one raises for an operator that carries a signal, has no entry and shares no value proportionally by its
    ordinary gradient; otherwise such operators keep their ordinary gradient.
    """

    entries: Annotated[tuple, "the lines, the first match counts"]
    strict: Annotated[bool, "raise for operators without a rule"] = True
    unmatched: Annotated[str, "what to say of a network with no operator that matches"] = (
        "the composite matched no operator of this network"
    )

    def rule_for(self, name: str, address: str) -> Rule | None:
        """The rule of an operator call, or None."""
        return _rule_for(self, name, address)

    def __str__(self) -> str:
        rows = [f"{e.operators:50} {e.addresses:12} {e.rule}" for e in self.entries]
        return "\n".join([*rows, "anything else: " + ("proportional, or an error" if self.strict else "ordinary gradient")])


@lru_cache(maxsize=65536)
def _rule_for(composite: Composite, name: str, address: str) -> Rule | None:
    for entry in composite.entries:
        if _matches(entry.operators, name) and _matches(entry.addresses, address):
            return entry.rule
    return None


def _matches(patterns: str, name: str) -> bool:
    return any(fnmatchcase(name, p) for p in patterns.split("|"))


_REST = (
    Entry("relu6|elu|selu|celu|gelu|silu|mish|softplus|softsign|hardswish|hardtanh|tanh|clamp", Pass()),
    Entry("sigmoid|hardsigmoid|softmax", Gate()),
    Entry("layer_norm|group_norm", Normalize()),
)


def epsilon(stabilizer: float = 1e-9) -> Composite:
    """Epsilon rule on every linear operator."""
    return Composite((Entry("conv*|linear|matmul|mm|bmm|addmm", Epsilon(stabilizer)), *_REST))


def epsilon_plus(stabilizer: float = 1e-9) -> Composite:
    """Positive contributions in convolutions, epsilon rule in linear operators (Montavon et al. 2019)."""
    return Composite((Entry("conv*", ZPlus(stabilizer)), Entry("linear|matmul|mm|bmm|addmm", Epsilon(stabilizer)), *_REST))


EPSILON = epsilon()
EPSILON_PLUS = epsilon_plus()
_NO_RELU = "the network calls no ReLU, which this method needs; gradient and integrated-gradients work on any activation"
GUIDED = Composite((Entry("relu|relu6", Guided()),), strict=False, unmatched=_NO_RELU)
DECONVNET = Composite((Entry("relu|relu6", Rectify()),), strict=False, unmatched=_NO_RELU)

COMPOSITES = {"epsilon": EPSILON, "epsilon-plus": EPSILON_PLUS}


def composite(which: str | Composite) -> Composite:
    """A composite by name. Raises SpecError with the closest names."""
    if isinstance(which, Composite):
        return which
    if which not in COMPOSITES:
        raise SpecError(f"no composite {which!r}{did_you_mean(which, COMPOSITES)} (known: {', '.join(COMPOSITES)})")
    return COMPOSITES[which]
