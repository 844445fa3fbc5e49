"""What many tests together prove."""

from jaxtyping import Float
from torch import Tensor, arange, empty_like

from convoscope.core.errors import UsageError, did_you_mean

CORRECTIONS = ("benjamini-hochberg", "bonferroni-holm", "none")


def corrected(p: Float[Tensor, " tests"], method: str = "benjamini-hochberg") -> Float[Tensor, " tests"]:
    """Adjusted p-values: those under a level are significant at it, all tests together.

    "benjamini-hochberg" bounds the expected share of false discoveries (Benjamini and Hochberg 1995),
    "bonferroni-holm" the probability of a single one (Holm 1979).
    """
    if method not in CORRECTIONS:
        raise UsageError(f"no correction {method!r}{did_you_mean(method, CORRECTIONS)} (known: {', '.join(CORRECTIONS)})")
    n, order = len(p), p.argsort(stable=True)
    if method == "none" or not n:
        return p.clone()
    ranks = arange(1, n + 1, dtype=p.dtype)
    if method == "bonferroni-holm":
        steps = (p[order] * (n + 1 - ranks)).cummax(0).values
    else:
        steps = (p[order] * n / ranks).flip(0).cummin(0).values.flip(0)
    return empty_like(p).index_copy_(0, order, steps.clamp(max=1))
