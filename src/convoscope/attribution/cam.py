"""Class activation maps: the channels of a layer, weighted by what they mean to the target."""

from typing import Annotated

from convoscope.core.errors import UnsupportedError
from convoscope.core.probe import Probe
from convoscope.core.spec import About, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images

POOLS = frozenset({"adaptive_avg_pool2d", "avg_pool2d", "mean"})
SHAPES = frozenset(
    [
        "flatten",
        "reshape",
        "view",
        "squeeze",
        "unsqueeze",
        "getitem",
        "dropout",
        "contiguous",
        "clone",
        "permute",
        "transpose",
        "identity",
        "size",
        "shape",
        "dim",
        "feature_dropout",
    ]
)


class CAM(Method):
    """The last spatial tensor's channels, weighted by the classifier's weights (Zhou et al. 2016, eq. 2).

    Defined for networks that end in global average pooling and one linear layer; raises UnsupportedError for others.
    Units: the mean over positions, plus the classifier's bias, is the logit.
    """

    title, unit = "CAM", "{target} per position, mean taken"
    paper = Paper(
        "zhou2016learning", "Zhou, Bolei and Khosla, Aditya and Lapedriza, Agata and Oliva, Aude and Torralba, Antonio",
        "Learning Deep Features for Discriminative Localization", "CVPR", 2016, "1512.04150",
    )  # fmt: skip
    about = About(
        "decision", "where the image holds evidence for the class", "1 forward", "global average pooling + one linear layer",
        "few architectures; as coarse as the last layer",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        layer = probe.layer(None)
        tail = [name for name in probe.tail(layer) if name not in SHAPES]
        if not (len(tail) == 2 and tail[0] in POOLS and tail[1] in ("linear", "addmm", "conv2d")):
            raise UnsupportedError(
                f"CAM needs global average pooling and one linear layer after the last feature map; after {layer!r} this "
                f"network runs {', '.join(tail) or 'nothing'}. Grad-CAM works on any network"
            )
        values, gradients = probe.activations_and_gradients(x, layer)
        return (gradients.sum((2, 3), keepdim=True) * values).sum(1, keepdim=True)

    def evaluations(self, x: Images) -> int:
        return 1


class GradCAM(Method):
    """A layer's channels, weighted by their mean gradient; the positive part (Selvaraju et al. 2017, eq. 1 and 2).

    Values are at the resolution of the layer, in units of the target per position.
    """

    layer: Annotated[str | None, "address; none is the last spatial tensor"] = None

    title, unit = "Grad-CAM", "{target} per position"
    default = True
    signed = False
    paper = Paper(
        "selvaraju2017grad", "Selvaraju, Ramprasaath R. and Cogswell, Michael and Das, Abhishek and Vedantam, Ramakrishna and "
        "Parikh, Devi and Batra, Dhruv",
        "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", "ICCV", 2017, "1610.02391",
    )  # fmt: skip
    about = About(
        "decision", "where the image holds evidence for the class", "1 forward + backward to the layer", "any CNN, any layer",
        "as coarse as the layer; averaging gradients can mislead in early layers",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        layer = probe.layer(self.layer)
        values, gradients = probe.activations_and_gradients(x, layer)
        if values.dim() != 4:
            raise UnsupportedError(
                f"Grad-CAM needs a tensor (images, channels, rows, columns); {layer!r} has shape {tuple(values.shape)}"
            )
        return (gradients.mean((2, 3), keepdim=True) * values).sum(1, keepdim=True).relu()

    def evaluations(self, x: Images) -> int:
        return 1
