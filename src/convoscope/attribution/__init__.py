"""Why this prediction? Methods that give every pixel, or every position of a layer, its share."""

from convoscope.attribution.backprop import (
    ContrastiveExcitationBackprop,
    Deconvnet,
    ExcitationBackprop,
    GuidedBackprop,
    RectGrad,
)
from convoscope.attribution.cam import CAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from convoscope.attribution.cam_eigen import EigenCAM, EigenGradCAM
from convoscope.attribution.cam_refined import FinerCAM, GuidedGradCAM, ShapleyCAM, SmoothGradCAMPlusPlus
from convoscope.attribution.cam_scores import ISCAM, SSCAM, AblationCAM, ReciproCAM, ScoreCAM
from convoscope.attribution.deeplift import DeepLIFT, DeepLIFTSHAP
from convoscope.attribution.extremal import ExtremalPerturbation, MeaningfulPerturbation
from convoscope.attribution.gradient import Gradient, InputXGradient, SmoothGrad, SmoothGradSquared, VarGrad
from convoscope.attribution.gradient_full import FullGrad
from convoscope.attribution.masks import HSIC, RISE, Sobol
from convoscope.attribution.path import IDGI, ExpectedGradients, IntegratedGradients
from convoscope.attribution.path_curved import BlurIG, GuidedIG
from convoscope.attribution.path_regions import XRAI
from convoscope.attribution.path_units import Conductance, InternalInfluence
from convoscope.attribution.perturbation import Occlusion
from convoscope.attribution.regions import Grid, Quickshift, Superpixels
from convoscope.attribution.relevance import (
    CRP,
    LRP,
    LRPAlphaBeta,
    LRPEpsilon,
    LRPEpsilonGammaBox,
    LRPGamma,
    LRPZero,
    LRPZPlus,
)  # fmt: skip
from convoscope.attribution.shapley import FeatureAblation, PartitionSHAP, ShapleySampling
from convoscope.attribution.surrogate import LIME, KernelSHAP
from convoscope.attribution.taylor import DeepTaylor, SimpleTaylor

__all__ = [
    "CAM", "CRP", "HSIC", "IDGI", "ISCAM", "LIME", "LRP", "RISE", "SSCAM", "XRAI", "AblationCAM", "BlurIG", "Conductance",
    "ContrastiveExcitationBackprop", "Deconvnet", "DeepLIFT", "DeepLIFTSHAP", "DeepTaylor", "EigenCAM", "EigenGradCAM",
    "ExcitationBackprop", "ExpectedGradients", "ExtremalPerturbation", "FeatureAblation", "FinerCAM", "FullGrad", "GradCAM",
    "GradCAMPlusPlus", "Gradient", "Grid", "GuidedBackprop", "GuidedGradCAM", "GuidedIG", "HiResCAM", "InputXGradient",
    "IntegratedGradients", "InternalInfluence", "KernelSHAP", "LRPAlphaBeta", "LRPEpsilon", "LRPEpsilonGammaBox", "LRPGamma",
    "LRPZPlus", "LRPZero", "LayerCAM", "MeaningfulPerturbation", "Occlusion", "PartitionSHAP", "Quickshift", "ReciproCAM",
    "RectGrad", "ScoreCAM", "ShapleyCAM", "ShapleySampling", "SimpleTaylor", "SmoothGrad", "SmoothGradCAMPlusPlus",
    "SmoothGradSquared", "Sobol", "Superpixels", "VarGrad", "XGradCAM",
]  # fmt: skip
