"""The one list of exceptions to the laws: (method, network, law) and the reason. One that no longer holds fails."""

_REFUSED = "refuses the network"
_RECTIFYING = ("deconvnet", "guided-backprop", "rect-grad")
_NO_RECTIFIER = "it changes what ReLUs send backwards, and the network has none"
_EXACT = "is exact on linear networks"
_PER_REGION = "its values are those of regions of the image, not of single inputs"
_NO_POOLING = "it reads the weights behind global average pooling, and the network has something else there"
_NOT_RELU = "deep Taylor decomposition is defined for networks whose only activation is ReLU"

_UNITS = "its values are those of the units of a layer, as many channels as that has"
_SAME_EVERYWHERE = "the gradient of a linear network is the same at every noisy copy"

_LINEAR_END = (  # behind the last feature map
    "functional-relu", "in-place-relu", "shared-relu", "skip", "skip-in-place", "concatenation", "squeeze-excite",
    "dict-output",
    "tuple-output", "channels-last", "depthwise", "in-place-on-input", "one-channel", "five-channel", "mixed-padding",
    "pre-activation", "convnext-like", "smooth", "channel-shuffle", "overlapping-pools", "dropout", "updated-buffers", "linear",
    "compiled", "partly-compiled",
)  # fmt: skip
_NOISE = "gradients at the last feature map are the same for every image where only linear operators follow"
_NO_CLASS = "it shows what stands out to a layer, whatever the target"
_EMPTY = "the last feature map has no ReLU, and what it shows of each class is negative: nothing is left of its positive part"

EXCEPTIONS: dict[tuple[str, str, str], str] = {
    **{(m, n, _REFUSED): _NO_RECTIFIER for m in _RECTIFYING for n in ("convnext-like", "smooth", "linear")},
    **{("cam", n, _REFUSED): _NO_POOLING for n in ("no-pooling", "overlapping-pools", "linear")},
    ("smooth-grad", "linear", "repeats with a seed"): "the gradient of a linear network is the same at every noisy copy",
    **{(m, "linear", _EXACT): _PER_REGION for m in ("kernel-shap", "partition-shap", "shapley-sampling")},
    **{("deep-taylor", n, _REFUSED): _NOT_RELU for n in ("squeeze-excite", "depthwise", "convnext-like", "smooth")},
    **{(m, "linear", "repeats with a seed"): _SAME_EVERYWHERE for m in ("smooth-grad-squared", "var-grad")},
    ("idgi", "linear", _EXACT): "it shares out each change by squared gradients, not by what the inputs changed",
    ("guided-ig", "overlapping-pools", "is complete"): "its path seeks out the kinks of max pools: more steps are needed",
    **{(m, "*", "keeps shape dtype device"): _UNITS for m in ("conductance", "internal-influence")},
    **{("guided-grad-cam", n, _REFUSED): _NO_RECTIFIER for n in ("convnext-like", "smooth", "linear")},
    **{("smooth-grad-cam-plus-plus", n, "repeats with a seed"): _NOISE for n in _LINEAR_END},
    ("eigen-cam", "*", "tells targets apart"): _NO_CLASS,
    **{
        (m, "channel-shuffle", "tells targets apart"): _EMPTY
        for m in ("grad-cam-plus-plus", "layer-cam", "score-cam", "is-cam", "ss-cam", "smooth-grad-cam-plus-plus")
    },
    ("ss-cam", "channel-shuffle", "repeats with a seed"): _EMPTY,
    ("full-grad", "in-place-on-input", "gives what its plain twin gives"):
        "constants that the network adds are biases of the tensors they are added to, and the twin adds one of them elsewhere",
}
