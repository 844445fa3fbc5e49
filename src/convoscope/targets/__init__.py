"""What is explained: named activations to one number per image. Closed under `+`, `-` and multiplication by a number."""

from convoscope.targets.base import Scores, Sum, Target
from convoscope.targets.classes import Contrast, Logit, Margin, Probability, probabilities
from convoscope.targets.dense import BoxScore, SegmentationClass
from convoscope.targets.units import Channel, Direction, EmbeddingSimilarity, Layer, Neuron

__all__ = [
    "BoxScore", "Channel", "Contrast", "Direction", "EmbeddingSimilarity", "Layer", "Logit", "Margin", "Neuron", "Probability",
    "Scores", "SegmentationClass", "Sum", "Target", "probabilities",
]  # fmt: skip
