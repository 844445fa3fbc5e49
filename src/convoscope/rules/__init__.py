"""Rules: what one operator call sends backwards. Composites: ordered tables of rules."""

from convoscope.rules.composites import COMPOSITES, DECONVNET, EPSILON, EPSILON_PLUS, GUIDED, Composite, Entry
from convoscope.rules.rules import Epsilon, Gate, Guided, Normalize, Pass, Rectify, Rule, ZPlus

__all__ = [
    "COMPOSITES", "DECONVNET", "EPSILON", "EPSILON_PLUS", "GUIDED", "Composite", "Entry", "Epsilon", "Gate", "Guided",
    "Normalize", "Pass", "Rectify", "Rule", "ZPlus",
]  # fmt: skip
