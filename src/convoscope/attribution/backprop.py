"""Backpropagation with another rule at rectifiers."""

from convoscope.core.probe import Probe
from convoscope.core.spec import About, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images
from convoscope.rules.composites import DECONVNET, GUIDED


class GuidedBackprop(Method):
    """The gradient that passes a ReLU only where both its input and the gradient that arrives are positive.

    Springenberg et al. 2015, figure 1. Every ReLU counts: of modules, of functions, in place, used many times. Activations that
    are not rectifiers keep their ordinary gradient, and the result lists them.
    """

    title, unit = "Guided backprop", "{target} per unit of input, rectified"
    default = True
    paper = Paper(
        "springenberg2015striving", "Springenberg, Jost Tobias and Dosovitskiy, Alexey and Brox, Thomas and Riedmiller, Martin",
        "Striving for Simplicity: The All Convolutional Net", "ICLR Workshop", 2015, "1412.6806",
    )  # fmt: skip
    about = About(
        "decision", "fine structure that excites the class", "1 forward + 1 backward", "networks with ReLU",
        "shows edges of the image; hardly depends on the class (Adebayo et al. 2018)",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        with probe.rules(GUIDED):
            return probe.grad(x)

    def evaluations(self, x: Images) -> int:
        return 1


class Deconvnet(Method):
    """The way back through a deconvolutional network: rectified at every ReLU, through the switches of max pooling.

    Zeiler and Fergus 2014, section 2.1. With `target=Neuron(layer, channel)` it is their projection of a feature's strongest
    activation.
    """

    title, unit = "Deconvnet", "{target} per unit of input, rectified"
    paper = Paper(
        "zeiler2014visualizing", "Zeiler, Matthew D. and Fergus, Rob", "Visualizing and Understanding Convolutional Networks",
        "ECCV", 2014, "1311.2901",
    )  # fmt: skip
    about = About(
        "decision", "reconstruct what excites a unit", "1 forward + 1 backward", "networks with ReLU",
        "needs max pooling to be specific to the image; hardly depends on the class",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        with probe.rules(DECONVNET):
            return probe.grad(x)

    def evaluations(self, x: Images) -> int:
        return 1
