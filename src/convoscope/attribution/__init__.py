"""Why this prediction? Methods that give every pixel, or every position of a layer, its share."""

from convoscope.attribution.backprop import Deconvnet, GuidedBackprop
from convoscope.attribution.cam import CAM, GradCAM
from convoscope.attribution.gradient import Gradient, InputXGradient, SmoothGrad
from convoscope.attribution.path import IntegratedGradients
from convoscope.attribution.perturbation import Occlusion
from convoscope.attribution.relevance import LRP

__all__ = [
    "CAM", "LRP", "Deconvnet", "GradCAM", "Gradient", "GuidedBackprop", "InputXGradient", "IntegratedGradients", "Occlusion",
    "SmoothGrad",
]  # fmt: skip
