"""Can I trust the explanation? Metrics of maps, each with its direction, range and unit, and tests that know the answer."""

from convoscope.evaluation.base import Case, Metric, metrics
from convoscope.evaluation.removal import (
    AverageDrop,
    Comprehensiveness,
    Deletion,
    IncreaseInConfidence,
    Insertion,
    LeRF,
    MoRF,
    Sufficiency,
)
from convoscope.evaluation.subsets import FaithfulnessCorrelation, Infidelity, SensitivityN

__all__ = [
    "AverageDrop", "Case", "Comprehensiveness", "Deletion", "FaithfulnessCorrelation", "IncreaseInConfidence", "Infidelity",
    "Insertion", "LeRF", "Metric", "MoRF", "SensitivityN", "Sufficiency", "metrics",
]  # fmt: skip
