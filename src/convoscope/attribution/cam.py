"""Class activation maps: the channels of a layer, weighted by what they mean to the target."""

from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UnsupportedError
from convoscope.core.probe import Place, Probe
from convoscope.core.spec import About, Paper
from convoscope.method import Maps, Method, in_rows
from convoscope.network import Images
from convoscope.targets import Contrast, Logit, Margin, Sum

Values = Float[Tensor, "batch channels rows columns"]

# Operators behind which a linear target is linear in the layer, and those that keep it linear from kink to kink.
POOLS = frozenset({"adaptive_avg_pool2d", "avg_pool2d", "mean"})
SHAPES = frozenset([
    "flatten", "reshape", "view", "squeeze", "unsqueeze", "getitem", "contiguous", "clone", "permute", "transpose", "identity",
    "dropout", "feature_dropout",
])  # fmt: skip
AFFINE = POOLS | SHAPES | {"linear", "addmm", "conv2d"}
KINKS = frozenset({"relu", "relu6", "leaky_relu", "hardtanh", "max_pool2d", "adaptive_max_pool2d"})
PIECEWISE_LINEAR = AFFINE | KINKS | {"add", "cat", "batch_norm"}


def with_places(values: Tensor, layer: str, title: str) -> Values:
    """The tensor of a layer, if its units have rows and columns. Raises UnsupportedError else."""
    if values.dim() != 4:
        hint = "; tokens (images, positions, channels) have no rows and columns" if values.dim() == 3 else ""
        raise UnsupportedError(
            f"{title} needs a tensor (images, channels, rows, columns); {layer!r} has shape {tuple(values.shape)}{hint}"
        )
    return values


def weighted(values: Values, weights: Tensor) -> Maps:
    """The sum of a layer's channels, each times its weight (or each unit times its own)."""
    return (weights * values).sum(1, keepdim=True)


def gradient_weights(gradients: Values) -> Float[Tensor, "batch channels 1 1"]:
    """Grad-CAM's weights: the mean gradient of each channel (Selvaraju et al. 2017, eq. 1)."""
    return gradients.mean((2, 3), keepdim=True)


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """A quotient that is zero where it is not defined."""
    return torch.where(below == 0, 0, above / torch.where(below == 0, 1, below))


def linear_in_classes(target: Any) -> bool:
    """Whether a target is a weighted sum of the network's outputs."""
    if isinstance(target, Sum):
        return all(linear_in_classes(t) for t in target.terms)
    return isinstance(target, Logit | Contrast) or (isinstance(target, Margin) and target.other is not None)


def linear_behind(probe: Probe, layer: str, operators: frozenset[str]) -> bool:
    """Whether what comes behind a layer is made of some operators only, and the target is linear in what they give."""
    return linear_in_classes(probe.session.target) and operators.issuperset(probe.tail(layer))


def layer_values(probe: Probe, x: Images, layer: str, title: str) -> Values:
    """The tensor of a layer without gradients, if its units have rows and columns."""
    values = with_places(probe.activations(x, layer), layer, title)
    in_rows(values, len(x), layer)
    return values


class GradientCAM(Method, abstract=True):
    """Base of maps made from a layer's tensor and the target's gradient there: a subclass says how in `map`."""

    layer: Annotated[str | None, "address; none is the last spatial tensor"] = None

    unit: ClassVar[str] = "{target} per position"

    def map(self, values: Values, gradients: Values) -> Maps:
        """The map `(B, 1, h, w)` from both, `(B, C, h, w)`."""
        raise NotImplementedError

    def attribute(self, probe: Probe, x: Images) -> Maps:
        layer = probe.layer(self.layer)
        values, gradients = probe.activations_and_gradients(x, layer)
        return self.map(with_places(values, layer, self.title), gradients)

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        return (probe.layer(self.layer),)

    def evaluations(self, x: Images) -> int:
        return 1


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
        pooled = len(tail) == 2 and tail[0] in POOLS and tail[1] in ("linear", "addmm", "conv2d")
        if pooled:
            values, gradients = probe.activations_and_gradients(x, layer)
            if torch.equal(gradients, gradients[..., :1, :1].expand_as(gradients)):
                return weighted(values, gradients.sum((2, 3), keepdim=True))
        raise UnsupportedError(
            f"CAM needs global average pooling and one linear layer after the last feature map; after {layer!r} this "
            f"network runs {', '.join(tail) or 'nothing'}. Grad-CAM works on any network"
        )

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        return (probe.layer(None),)

    def evaluations(self, x: Images) -> int:
        return 1


class GradCAM(GradientCAM):
    """A layer's channels, weighted by their mean gradient; the positive part (Selvaraju et al. 2017, eq. 1 and 2).

    Values are at the resolution of the layer, in units of the target per position.
    """

    title = "Grad-CAM"
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

    def map(self, values: Values, gradients: Values) -> Maps:
        return weighted(values, gradient_weights(gradients)).relu()


class GradCAMPlusPlus(GradientCAM):
    """A layer's channels, weighted by a mean of their positive gradients in which few strong places count as much as many.

    Chattopadhay et al. 2018 for an exponential of the target, as they take it: with its gradient g a place counts
    `alpha = g^2 / (2 g^2 + sum(A) g^3)`, a channel `sum(alpha relu(g))`; the positive part. The factor `exp(target)`, which
    all weights of an image have in common, is left out.
    """

    title = "Grad-CAM++"
    signed = False
    paper = Paper(
        "chattopadhay2018grad", "Chattopadhay, Aditya and Sarkar, Anirban and Howlader, Prantik and Balasubramanian, Vineeth N",
        "Grad-CAM++: Generalized Gradient-Based Visual Explanations for Deep Convolutional Networks", "WACV", 2018,
        "1710.11063",
    )  # fmt: skip
    about = About(
        "decision", "all of several objects of a class, whatever their size", "1 forward + backward to the layer",
        "any CNN, any layer", "derived for an exponential of the logit; layers with negative values can upset its denominator",
    )  # fmt: skip

    def map(self, values: Values, gradients: Values) -> Maps:
        g = gradients.relu()
        counted = ratio(g, 2 + values.sum((2, 3), keepdim=True) * g)  # alpha g, shortened by g^2, which may underflow
        return weighted(values, counted.sum((2, 3), keepdim=True)).relu()


class XGradCAM(GradientCAM, name="xgrad-cam"):
    """A layer's channels, weighted by the mean of their gradients in proportion to the activations (Fu et al. 2020).

    The weight `sum(g A) / sum(A)` makes the sum of the map that of gradient times activation. It is zero where activations
    cancel out, which those behind a ReLU never do.
    """

    title = "XGrad-CAM"
    paper = Paper(
        "fu2020axiom", "Fu, Ruigang and Hu, Qingyong and Dong, Xiaohu and Guo, Yulan and Gao, Yinghui and Li, Biao",
        "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", "BMVC", 2020, "2008.02312",
    )  # fmt: skip
    about = About(
        "decision", "where the image holds evidence, in shares that add up", "1 forward + backward to the layer",
        "any CNN, layers behind a ReLU", "weights explode where a channel's values nearly cancel out",
    )  # fmt: skip

    def map(self, values: Values, gradients: Values) -> Maps:
        whole, size = values.sum((2, 3), keepdim=True), values.abs().sum((2, 3), keepdim=True)
        whole = torch.where(whole.abs() <= 1e-6 * size, 0, whole)  # no more than rounding
        return weighted(values, ratio((gradients * values).sum((2, 3), keepdim=True), whole))


class HiResCAM(GradientCAM, name="hires-cam"):
    """Gradient times activation at each place of a layer, summed over channels (Draelos and Carin 2020).

    Nothing is averaged and no sign is dropped: behind this layer a network that is linear, but for its kinks, gives the sum of
    the map plus what its biases add.
    """

    title = "HiResCAM"
    paper = Paper(
        "draelos2020hirescam", "Draelos, Rachel Lea and Carin, Lawrence",
        "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks", "arXiv", 2020,
        "2011.08891",
    )  # fmt: skip
    about = About(
        "decision", "the very places that the network used, for and against", "1 forward + backward to the layer",
        "any CNN, any layer", "as coarse as the layer; speckled in early layers",
    )  # fmt: skip

    def map(self, values: Values, gradients: Values) -> Maps:
        return weighted(values, gradients)


class LayerCAM(GradientCAM):
    """A layer's activations, each times its own gradient where that is positive; the positive part (Jiang et al. 2021).

    Made for early layers, whose fine places it keeps apart.
    """

    title = "LayerCAM"
    signed = False
    paper = Paper(
        "jiang2021layercam", "Jiang, Peng-Tao and Zhang, Chang-Bin and Hou, Qibin and Cheng, Ming-Ming and Wei, Yunchao",
        "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", "IEEE Transactions on Image Processing",
        2021,
    )  # fmt: skip
    about = About(
        "decision", "fine outlines from early layers", "1 forward + backward to the layer", "any CNN, any layer",
        "positive gradients only: evidence against the class is lost",
    )  # fmt: skip

    def map(self, values: Values, gradients: Values) -> Maps:
        return weighted(values, gradients.relu()).relu()
