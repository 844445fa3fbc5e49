"""Can I trust the explanation? Metrics of maps, each with its direction, range and unit, and tests that know the answer."""

from convoscope.evaluation.axioms import Completeness, InputInvariance, NonSensitivity, Symmetry
from convoscope.evaluation.base import Case, Metric, metrics
from convoscope.evaluation.complexity import EffectiveComplexity, Entropy, Gini
from convoscope.evaluation.imputation import IROF, ROAD, RegionPerturbation
from convoscope.evaluation.information import AIC, SIC, median_curve
from convoscope.evaluation.localization import BestIoU, EnergyPointing, IoU, LocalizationAUC, PointingGame, RankAccuracy, TopK
from convoscope.evaluation.montage import DiFull, GridPointingGame
from convoscope.evaluation.nulls import Permuted, permutations
from convoscope.evaluation.randomization import (
    EfficientRandomization,
    ParameterRandomization,
    RandomLogit,
    SmoothRandomization,
    data_randomization,
)
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
from convoscope.evaluation.robustness import (
    AverageSensitivity,
    LocalLipschitz,
    MaxSensitivity,
    RelativeInputStability,
    RelativeOutputStability,
    RelativeRepresentationStability,
)
from convoscope.evaluation.subsets import FaithfulnessCorrelation, Infidelity, SensitivityN

__all__ = [
    "AIC",
    "IROF",
    "ROAD",
    "SIC",
    "AverageDrop",
    "AverageSensitivity",
    "BestIoU",
    "Case",
    "Completeness",
    "Comprehensiveness",
    "Deletion",
    "DiFull",
    "EffectiveComplexity",
    "EfficientRandomization",
    "EnergyPointing",
    "Entropy",
    "FaithfulnessCorrelation",
    "Gini",
    "GridPointingGame",
    "IncreaseInConfidence",
    "Infidelity",
    "InputInvariance",
    "Insertion",
    "IoU",
    "LeRF",
    "LocalLipschitz",
    "LocalizationAUC",
    "MaxSensitivity",
    "Metric",
    "MoRF",
    "NonSensitivity",
    "ParameterRandomization",
    "Permuted",
    "PointingGame",
    "RandomLogit",
    "RankAccuracy",
    "RegionPerturbation",
    "RelativeInputStability",
    "RelativeOutputStability",
    "RelativeRepresentationStability",
    "SensitivityN",
    "SmoothRandomization",
    "Sufficiency",
    "Symmetry",
    "TopK",
    "data_randomization",
    "median_curve",
    "metrics",
    "permutations",
]  # fmt: skip
