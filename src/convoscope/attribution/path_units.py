"""What the units of inner layers bring to the target on the way from a baseline to the image."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from convoscope.attribution.path import Baseline, on_line, quadrature
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method, in_rows
from convoscope.network import Images


def unit_sums(
    probe: Probe, x: Images, baseline: Baseline, steps: int, layers: Sequence[str]
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """For every unit of some layers, from one sweep over the ends of equal steps on the line from the baseline to the image:
    the target's change through the unit (both ends' mean gradient times the unit's change, summed over steps) and the unit's
    mean gradient by the trapezoid rule; and the target's change. In double precision.
    """

    def make() -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
        start, (nodes, weights) = probe.baseline(baseline, x), quadrature("trapezoid", steps + 1)
        through: dict[str, Tensor] = {}
        mean: dict[str, Tensor] = {}
        last: dict[str, tuple[Tensor, Tensor]] = {}
        scores = []
        for block in probe.blocks(len(nodes)):
            found = probe.repeat(block).gradients(on_line(x, start, [nodes[k] for k in block]), layers)
            scores.append(found["score"].double().unflatten(0, (len(x), len(block))))
            for layer in layers:
                in_rows(found[layer][0], len(x) * len(block), layer)
                values, gradients = (t.double().unflatten(0, (len(x), len(block))) for t in found[layer])
                for i, k in enumerate(block):
                    here = values[:, i], gradients[:, i]
                    if k == 0:
                        through[layer], mean[layer] = torch.zeros_like(here[0]), weights[0] * here[1]
                    else:
                        through[layer] += (here[1] + last[layer][1]) / 2 * (here[0] - last[layer][0])
                        mean[layer] += weights[k] * here[1]
                    last[layer] = here
        every = torch.cat(scores, 1)
        return {a: (through[a], mean[a]) for a in layers}, every[:, -1] - every[:, 0]

    key = ("unit sums", Conductance(steps=steps, baseline=baseline), tuple(layers))
    return probe.once(x, key, make)


class Conductance(Method):
    """The target's change from a baseline to the image that runs through each unit of a layer.

    Dhamdhere et al. 2019, eq. 3: the integral of the target's gradient at the unit along the unit's own change, as the input
    moves on the straight line; by the trapezoid rule over the true ends of every step, the first and last included. Where
    everything passes through the layer, units sum to target(x) - target(baseline); by how much they miss that is reported.
    Values `(B, units, h, w)` at the resolution of the layer, in units of the target. Several layers take one sweep.
    """

    layer: Annotated[str | None, "address; none is the last spatial tensor"] = None
    steps: Annotated[int, "steps on the line", AtLeast(1)] = 32
    baseline: Annotated[Baseline, "where the line starts: a name, a number or a tensor in input space"] = "black"

    title, unit = "Conductance", "{target} per unit of the layer"
    paper = Paper(
        "dhamdhere2019important", "Dhamdhere, Kedar and Sundararajan, Mukund and Yan, Qiqi", "How Important Is a Neuron?",
        "ICLR", 2019, "1805.12233",
    )  # fmt: skip
    about = About(
        "decision", "which units of a layer carry the change of the score", "steps x (1 forward + 1 backward)",
        "any differentiable network, any layer", "depends on the baseline; units, not pixels",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return self.attribute_layers(probe, x, (probe.layer(self.layer),))[0]

    def attribute_layers(self, probe: Probe, x: Images, layers: tuple[str, ...]) -> list[Maps]:
        found, change = unit_sums(probe, x, self.baseline, self.steps, layers)
        if len(layers) == 1:
            probe.note("gap to the target's change", found[layers[0]][0].flatten(1).sum(1) - change)
        return [found[a][0].to(x) for a in layers]

    def evaluations(self, x: Images) -> int:
        return self.steps + 1


class InternalInfluence(Method):
    """The mean gradient of the target at each unit of a layer on the line from a baseline to the image.

    Leino et al. 2018, definition 1, with the uniform distribution on the line; by the trapezoid rule. Values
    `(B, units, h, w)` at the resolution of the layer, in units of the target per unit of activation. Several layers, and
    conductance with the same settings, take one sweep.
    """

    layer: Annotated[str | None, "address; none is the last spatial tensor"] = None
    steps: Annotated[int, "steps on the line", AtLeast(1)] = 32
    baseline: Annotated[Baseline, "where the line starts: a name, a number or a tensor in input space"] = "black"

    title, unit = "Internal influence", "{target} per unit of activation"
    paper = Paper(
        "leino2018influence", "Leino, Klas and Sen, Shayak and Datta, Anupam and Fredrikson, Matt and Li, Linyi",
        "Influence-Directed Explanations for Deep Convolutional Networks", "International Test Conference", 2018, "1802.03788",
    )  # fmt: skip
    about = About(
        "decision", "to which units of a layer the score is sensitive, image and its surroundings",
        "steps x (1 forward + 1 backward)", "any differentiable network, any layer",
        "depends on the baseline; says nothing of how active a unit is",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return self.attribute_layers(probe, x, (probe.layer(self.layer),))[0]

    def attribute_layers(self, probe: Probe, x: Images, layers: tuple[str, ...]) -> list[Maps]:
        found, _ = unit_sums(probe, x, self.baseline, self.steps, layers)
        return [found[a][1].to(x) for a in layers]

    def evaluations(self, x: Images) -> int:
        return self.steps + 1
