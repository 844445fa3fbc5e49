"""convoscope opens any convolutional network.

    import convoscope as cs
    net = cs.load("scenes")
    a = cs.explain(net, net.read("picture.png"), "integrated-gradients")

Importing this package imports nothing heavy; each name below is loaded when it is first used.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "loading": ["load"],
    "network": ["Network"],
    "method": ["Method", "explain", "methods"],
    "citation": ["cite"],
    "results": ["Attribution"],
    "targets": [
        "BoxScore", "Channel", "Contrast", "CosineDirection", "Direction", "Diversity", "EmbeddingSimilarity", "Layer",
        "LogProbability", "Logit", "Margin", "Neuron", "Probability", "SegmentationClass", "Target",
    ],
    "attribution": [
        "AblationCAM", "BlurIG", "CAM", "CRP", "Conductance", "ContrastiveExcitationBackprop", "Deconvnet", "DeepLIFT",
        "DeepLIFTSHAP", "DeepTaylor", "EigenCAM", "EigenGradCAM", "ExcitationBackprop", "ExpectedGradients",
        "ExtremalPerturbation", "FeatureAblation", "FinerCAM", "FullGrad", "GradCAM", "GradCAMPlusPlus", "Gradient", "Grid",
        "GuidedBackprop", "GuidedGradCAM", "GuidedIG", "HSIC", "HiResCAM", "IDGI", "ISCAM", "InputXGradient",
        "IntegratedGradients", "InternalInfluence", "KernelSHAP", "LIME", "LRP", "LRPAlphaBeta", "LRPEpsilon",
        "LRPEpsilonGammaBox", "LRPGamma", "LRPZPlus", "LRPZero", "LayerCAM", "MeaningfulPerturbation", "Occlusion",
        "PartitionSHAP", "Quickshift", "RISE", "ReciproCAM", "RectGrad", "SSCAM", "ScoreCAM", "ShapleyCAM", "ShapleySampling",
        "SimpleTaylor", "SmoothGrad", "SmoothGradCAMPlusPlus", "SmoothGradSquared", "Sobol", "Superpixels", "VarGrad",
        "XGradCAM", "XRAI",
    ],
    "attribution.segmentation": ["Segmentation", "segment"],
    "rules": ["Composite", "Rule"],
    "core.statistic": ["Samples", "Statistic"],
    "data.funny_birds": ["FunnyBirds"],
    "data.dataset": ["Concept", "Dataset", "open_dataset", "segments_for"],
    "engine": ["Sweep", "sweep"],
    "units.dissection": ["Dissection", "dissect"],
    "units.dissection_compare": ["compare_dissections"],
    "units.tail": ["Tail"],
    "units.filters": ["Kernels", "kernels"],
    "units.feature_maps": ["FeatureMaps", "feature_maps"],
    "units.fields": ["image_box"],
    "units.exemplars": ["BottomPatches", "Patches", "QuantilePatches", "RandomPatches", "TopPatches"],
    "units.color_study": ["ColorStudy", "color_study"],
    "units.neuron_feature": ["neuron_features"],
    "units.table": ["unit_table"],
    "units.book": ["Book", "Unit", "open_book"],
    "units.book_scan": ["scan"],
    "units.histograms": ["ActivationHistogram", "UnitActivity"],
    "units.selectivity": ["ClassActivity"],
    "units.duplicates": ["UnitCorrelation"],
    "units.reservoir": ["Reservoir", "Sample"],
    "units.tcav": ["tcav"],
    "units.discovered": ["discover"],
    "units.clusters": ["ace"],
    "units.sparse_autoencoder": ["SparseAutoencoder", "train_sparse_autoencoder"],
    "units.atlas": ["Atlas", "atlas"],
    "images.base": ["Image", "Penalty", "Transform"],
    "images.pixels": ["Pixels"],
    "images.measured": ["ColorCovariance", "MeanPicture", "Spectrum", "mean_picture", "measured_axes"],
    "images.maco": ["MACO"],
    "images.cppn": ["CPPN"],
    "images.laplacian": ["Laplacian"],
    "images.penalties": ["L1", "L2", "AlphaNorm", "Blur", "Border", "TotalVariation"],
    "images.code": ["Code"],
    "images.generator": ["Generator", "load_generator"],
    "images.fourier": ["Fourier"],
    "images.transforms": ["Crops", "Jitter", "Noise", "RandomCrop", "Spin"],
    "synthesis.ascent": ["ascend"],
    "synthesis.maximize": ["maximize"],
    "synthesis.result": ["Synthesis"],
    "synthesis.generator_gan": ["train_gan"],
    "synthesis.generator_inverse": ["train_dgn_am"],
    "synthesis.ppgn": ["ppgn"],
    "synthesis.fool": ["fool"],
    "synthesis.genetic": ["GeneticAlgorithm"],
    "synthesis.dream": ["dream"],
    "synthesis.dream_result": ["Dream"],
    "synthesis.caricature": ["accentuate", "caricature"],
    "synthesis.invert": ["invert"],
    "synthesis.invert_result": ["Inversion"],
    "targets.features": ["BestMatch", "DotCosine", "FeatureDistance"],
    "synthesis.adversarial": ["attack", "attacks"],
    "synthesis.adversarial_methods": ["FGSM", "PGD"],
    "synthesis.adversarial_minimal": ["DeepFool"],
    "synthesis.adversarial_result": ["Attack"],
    "synthesis.adversarial_universal": ["Universal"],
    "evaluation.base": ["Case", "Metric", "metrics"],
    "evaluation.evaluate": ["evaluate"],
    "evaluation.result": ["Evaluation"],
    "evaluation.properties": ["properties"],
    "evaluation.properties_result": ["Properties"],
    "evaluation.bench": ["Task", "tasks"],
    "evaluation.bench.run": ["bench"],
    "evaluation.bench.birds_run": ["birds_protocols"],
    "evaluation.bench.ranking": ["rank_metrics"],
    "evaluation.bench.result": ["Bench"],
    "synthesis.experts": ["Expert", "load_expert"],
    "synthesis.experts_training": ["train_expert"],
    "core.errors": [
        "AddressError", "ConvoscopeError", "ImageError", "LoadError", "NonFiniteError", "SpecError", "UnsupportedError",
        "UsageError",
    ],
}  # fmt: skip
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_HOME)
__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"convoscope.{_HOME[name]}"), name)
    elif name == "testing":
        value = import_module("convoscope.testing")
    else:
        raise AttributeError(f"module 'convoscope' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "testing"})
