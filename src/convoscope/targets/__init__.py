"""What is explained: named activations to one number per image. Closed under `+`, `-` and multiplication by a number."""

from convoscope.targets.base import Scores, Sum, Target
from convoscope.targets.classes import Contrast, Logit, LogProbability, Margin, Probability, probabilities
from convoscope.targets.dense import BoxScore, SegmentationClass
from convoscope.targets.features import BestMatch, DotCosine, FeatureDistance
from convoscope.targets.together import CosineDirection, Diversity
from convoscope.targets.units import Channel, Direction, EmbeddingSimilarity, Layer, Neuron

__all__ = [
    "BestMatch", "BoxScore", "Channel", "Contrast", "CosineDirection", "Direction", "Diversity", "DotCosine",
    "EmbeddingSimilarity", "FeatureDistance", "Layer", "LogProbability", "Logit", "Margin", "Neuron", "Probability", "Scores",
    "SegmentationClass", "Sum", "Target", "probabilities",
]  # fmt: skip
