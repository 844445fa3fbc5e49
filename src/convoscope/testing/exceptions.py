"""The one list of exceptions to the laws: (method, network, law) and the reason. One that no longer holds fails."""

_REFUSED = "refuses the network"
_RECTIFYING = ("deconvnet", "guided-backprop")
_NO_RECTIFIER = "it changes what ReLUs send backwards, and the network has none"
_NO_POOLING = "it reads the weights behind global average pooling, and the network has something else there"

EXCEPTIONS: dict[tuple[str, str, str], str] = {
    **{(m, n, _REFUSED): _NO_RECTIFIER for m in _RECTIFYING for n in ("convnext-like", "smooth", "linear")},
    **{("cam", n, _REFUSED): _NO_POOLING for n in ("no-pooling", "overlapping-pools", "linear")},
    ("smooth-grad", "linear", "repeats with a seed"): "the gradient of a linear network is the same at every noisy copy",
}
