"""Rules: what one operator call sends backwards. Composites: ordered tables of rules."""

from convoscope.rules.composites import COMPOSITES, DECONVNET, EPSILON, EPSILON_PLUS, GUIDED, Composite, Entry
from convoscope.rules.contributions import AlphaBeta, Gamma, ZPlus
from convoscope.rules.pixels import Flat, WSquare, ZBox
from convoscope.rules.rules import Epsilon, Gate, Guided, Normalize, Pass, Rectify, Rule, Zero

__all__ = [
    "COMPOSITES", "DECONVNET", "EPSILON", "EPSILON_PLUS", "GUIDED", "AlphaBeta", "Composite", "Entry", "Epsilon", "Flat",
    "Gamma", "Gate", "Guided", "Normalize", "Pass", "Rectify", "Rule", "WSquare", "ZBox", "ZPlus", "Zero",
]  # fmt: skip
