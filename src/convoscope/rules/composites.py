"""Composites: which rule covers which operator. The first entry that matches counts; printed, they read as a table."""

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated

from convoscope.core.errors import SpecError, did_you_mean
from convoscope.core.spec import Spec
from convoscope.rules.contributions import AlphaBeta, Gamma, PerChannel, ZPlus
from convoscope.rules.pixels import Flat, PixelRule, ZBox
from convoscope.rules.rules import Epsilon, Gate, Guided, Normalize, Pass, Rectify, Refuse, Rule, Zero
from convoscope.rules.sums import Attention, PositiveSum, Product


class Entry(Spec, kind="entry"):
    """One line of a composite: operators and addresses by pattern (`conv*|linear`, `layer4.*`), and their rule."""

    operators: Annotated[str, "names of operators, | between alternatives, * for anything"]
    rule: Annotated[Rule, "the rule"]
    addresses: Annotated[str, "addresses, | between alternatives, * for anything"] = "*"
    first: Annotated[bool, "only operators with no linear one before them on the signal's way"] = False


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

    def rule_for(self, name: str, address: str, first: bool = False) -> Rule | None:
        """The rule of an operator call, or None; `first`: it is linear, with no linear operator before it."""
        return _rule_for(self, name, address, first)

    @property
    def of_pixels(self) -> bool:
        """Whether rules of its first layer need the range of the inputs."""
        return any(isinstance(e.rule, PixelRule) for e in self.entries)

    def inside(self) -> "Composite":
        """This table without the lines for the first layer, for tensors inside of the network."""
        return replace(self, entries=tuple(e for e in self.entries if not e.first))

    def __str__(self) -> str:
        rows = [f"{e.operators:50} {e.addresses:12} {e.rule}{' (first layer)' if e.first else ''}" for e in self.entries]
        return "\n".join([*rows, "anything else: " + ("proportional, or an error" if self.strict else "ordinary gradient")])


@lru_cache(maxsize=65536)
def _rule_for(composite: Composite, name: str, address: str, first: bool) -> Rule | None:
    for entry in composite.entries:
        if entry.first and not first:
            continue
        if _matches(entry.operators, name) and _matches(entry.addresses, address):
            return entry.rule
    return None


def _matches(patterns: str, name: str) -> bool:
    return any(fnmatchcase(name, p) for p in patterns.split("|"))


_REST = (
    Entry("relu6|elu|selu|celu|gelu|silu|mish|softplus|softsign|hardswish|hardtanh|tanh|clamp", Pass()),
    Entry("sigmoid|hardsigmoid|softmax|norm|linalg_vector_norm", Gate()),
    Entry("layer_norm|group_norm", Normalize()),
    Entry("normalize", Pass()),
    Entry("addcmul|lerp", Zero()),
)
_NOT_RELU = (
    "leaky_relu|prelu|rrelu|relu6|threshold|elu|selu|celu|gelu|silu|mish|softplus|softsign|hardswish|hardtanh|tanh|clamp|"
    "sigmoid|hardsigmoid|softmax|layer_norm|group_norm"
)


def layered(
    convolutions: Rule, dense: Rule, first: Rule | None = None, stabilizer: float = 1e-9, norms: Rule | None = None
) -> Composite:
    """A rule for convolutions, one for linear operators, one for the first of either, one for batch norms that stand alone.

    `norms` is a rule of convolutions as well, by default the same. Elsewhere: activations pass relevance unchanged, gates
    and attention weights count as constants, normalizations as linear, and sums, pools and rearrangements share in proportion.
    """
    start = () if first is None else (Entry("conv*|linear|*avg_pool*|*max_pool*", first, first=True),)
    affine = Entry("conv*", convolutions), Entry("linear", dense), Entry("batch_norm", PerChannel(norms or convolutions))
    products = Entry("matmul|mm|bmm|addmm|baddbmm|einsum", Product(stabilizer))
    attention = Entry("scaled_dot_product_attention|multi_head_attention_forward", Attention(stabilizer))
    return Composite((*start, *affine, products, attention, *_REST))


def epsilon(stabilizer: float = 1e-9) -> Composite:
    """Epsilon rule on every linear operator (Bach et al. 2015)."""
    return layered(Epsilon(stabilizer), Epsilon(stabilizer), None, stabilizer)


def epsilon_plus(stabilizer: float = 1e-9, first: Rule | None = None) -> Composite:
    """Positive contributions in convolutions, epsilon rule in linear operators (Montavon et al. 2019)."""
    return layered(ZPlus(min(stabilizer, 1e-9)), Epsilon(stabilizer), first, stabilizer)


def epsilon_gamma_box(stabilizer: float = 1e-9, gamma: float = 0.25) -> Composite:
    """Gamma rule in convolutions, epsilon rule in linear operators, z-B at the pixels (Montavon et al. 2019)."""
    small = min(stabilizer, 1e-9)
    return layered(Gamma(gamma, small), Epsilon(stabilizer), ZBox(epsilon=small), stabilizer)


def epsilon_alpha_beta(stabilizer: float = 1e-9, alpha: float = 2.0, first: Rule | None = None) -> Composite:
    """Alpha-beta rule in convolutions, epsilon rule in linear operators.

    A batch norm that stands alone has one contribution to each value, which alpha would multiply: it gets the z-plus rule.
    """
    small = min(stabilizer, 1e-9)
    return layered(AlphaBeta(alpha, alpha - 1, small), Epsilon(stabilizer), first, stabilizer, ZPlus(small))


def deep_taylor() -> Composite:
    """z-B at the pixels, z+ behind, in networks whose only activation is ReLU (Montavon et al. 2017)."""
    needs = Refuse("deep Taylor decomposition is defined for networks whose only activation is ReLU")
    linear = Entry("conv*|linear", ZBox(), first=True), Entry("conv*|linear", ZPlus()), Entry("batch_norm", PerChannel(ZPlus()))
    return Composite((*linear, Entry("add", PositiveSum()), Entry(_NOT_RELU, needs)))


EPSILON = epsilon()
EPSILON_PLUS = epsilon_plus()
_NO_RELU = "the network calls no ReLU, which this method needs; gradient and integrated-gradients work on any activation"
GUIDED = Composite((Entry("relu|relu6", Guided()),), strict=False, unmatched=_NO_RELU)
DECONVNET = Composite((Entry("relu|relu6", Rectify()),), strict=False, unmatched=_NO_RELU)

_MAKERS: dict[str, Callable[[float], Composite]] = {
    "lrp-0": lambda e: layered(Zero(), Zero(), None, e),
    "epsilon": epsilon,
    "gamma": lambda e: layered(Gamma(epsilon=e), Gamma(epsilon=e), None, e),
    "alpha1beta0": lambda e: layered(ZPlus(e), ZPlus(e), None, e),
    "epsilon-plus": epsilon_plus,
    "epsilon-plus-flat": lambda e: epsilon_plus(e, Flat()),
    "epsilon-gamma-box": epsilon_gamma_box,
    "epsilon-alpha2beta1": epsilon_alpha_beta,
    "epsilon-alpha2beta1-flat": lambda e: epsilon_alpha_beta(e, first=Flat()),
    "deep-taylor": lambda e: deep_taylor(),
}
_OTHER_NAMES = {
    "zero": "lrp-0", "preset-a": "epsilon-plus", "preset-a-flat": "epsilon-plus-flat", "preset-b": "epsilon-alpha2beta1",
    "preset-b-flat": "epsilon-alpha2beta1-flat",
}  # fmt: skip
COMPOSITES = {name: make(1e-9) for name, make in _MAKERS.items()}


def composite(which: str | Composite, stabilizer: float | None = None) -> Composite:
    """A composite by name, with another stabilizer of its epsilon rules if given. Raises SpecError with the closest names.

    Preset A and B (`preset-a`, `preset-b`, each also `-flat`) are the names of iNNvestigate for epsilon-plus and
    epsilon-alpha2beta1.
    """
    if isinstance(which, Composite):
        if stabilizer is not None:
            raise SpecError("epsilon goes with composites by name; a Composite has it in its rules")
        return which
    name = _OTHER_NAMES.get(which, which)
    if name not in _MAKERS:
        known = [*_MAKERS, *_OTHER_NAMES]
        raise SpecError(f"no composite {which!r}{did_you_mean(which, known)} (known: {', '.join(known)})")
    if stabilizer is not None and name in ("lrp-0", "deep-taylor"):
        raise SpecError(f"{name!r} has no epsilon rule; leave epsilon out")
    return COMPOSITES[name] if stabilizer is None else _MAKERS[name](stabilizer)
