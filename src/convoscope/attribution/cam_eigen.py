"""Class activation maps from the principal component of a layer."""

from dataclasses import replace
from typing import Annotated

import torch

from convoscope.attribution.cam import GradientCAM, Values, layer_values
from convoscope.core.probe import Place, Probe
from convoscope.core.spec import About, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images

MUHAMMAD = Paper(
    "muhammad2020eigen", "Muhammad, Mohammed Bany and Yeasin, Mohammed",
    "Eigen-CAM: Class Activation Map using Principal Components", "IJCNN", 2020, "2008.00299",
)  # fmt: skip


def principal(values: Values, centered: bool = False) -> Maps:
    """The projection of each position's channels on their principal direction.

    From the smaller of the two Gram matrices, of positions or of channels. A singular vector has no sign of its own: this one
    points to where the mean over channels is large. `centered` takes each channel's mean over positions away first.
    """
    rows = values.flatten(2).to(torch.promote_types(values.dtype, torch.float32))
    mean = rows.mean(1)
    if centered:
        rows = rows - rows.mean(2, keepdim=True)
    if rows.shape[1] < rows.shape[2]:
        direction = torch.linalg.eigh(rows @ rows.mT).eigenvectors[..., -1:]
        found = (direction * rows).sum(1)
    else:
        strength, vectors = torch.linalg.eigh(rows.mT @ rows)
        found = vectors[..., -1] * strength[:, -1:].clamp(min=0).sqrt()
    sign = torch.where((found * mean).sum(1, keepdim=True) < 0, -1, 1)
    return (sign * found).to(values).unflatten(1, values.shape[2:])[:, None]


class EigenCAM(Method):
    """A layer's positions, projected on the principal direction of their channels (Muhammad and Yeasin 2020).

    Shows what the layer sees most of, whatever the target is. Not centered, as in the paper; the sign is that of the mean
    activation. Units: those of the activations.
    """

    layer: Annotated[str | None, "address; none is the last spatial tensor"] = None
    centered: Annotated[bool, "take each channel's mean away first, as in a principal component analysis"] = False

    title, unit = "Eigen-CAM", "activation"
    paper = MUHAMMAD
    about = About(
        "decision", "what stands out to a layer, without a class", "1 forward to the layer, 1 forward", "any CNN, any layer",
        "the same for every class",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        layer = probe.layer(self.layer)
        values = layer_values(probe, x, layer, self.title)
        planned = probe.session.shared.planned if x is probe.session.shared.x else {}
        if probe.session.target not in planned:  # the map is that of any target, but a class that does not exist is a mistake
            replace(probe, rows=probe.rows[:1], keys=probe.keys[:1]).score(x[:1])
        return principal(values, self.centered)

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        return (probe.layer(self.layer),)

    def evaluations(self, x: Images) -> int:
        return 2


class EigenGradCAM(GradientCAM):
    """A layer's activations times their gradients, projected on the principal direction of their channels.

    Eigen-CAM (Muhammad and Yeasin 2020) of what HiResCAM sums up: it depends on the target. The sign is that of HiResCAM's map.
    """

    centered: Annotated[bool, "take each channel's mean away first, as in a principal component analysis"] = False

    title = "Eigen-Grad-CAM"
    paper = MUHAMMAD
    about = About(
        "decision", "the main pattern of evidence in a layer, cleaner than its sum", "1 forward + backward to the layer",
        "any CNN, any layer", "leaves out all evidence beside one pattern",
    )  # fmt: skip

    def map(self, values: Values, gradients: Values) -> Maps:
        return principal(values * gradients, self.centered)
