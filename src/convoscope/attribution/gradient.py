"""The gradient of the target, times the input, averaged over noise."""

from typing import Annotated

from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images

SIMONYAN = Paper(
    "simonyan2014deep", "Simonyan, Karen and Vedaldi, Andrea and Zisserman, Andrew",
    "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps",
    "ICLR Workshop", 2014, "1312.6034",
)  # fmt: skip


class Gradient(Method):
    """The derivative of the target with respect to each input value: the saliency map of Simonyan et al. 2014, eq. 4.

    Units: target per unit of input space. Their picture is `heatmap("max-abs")`.
    """

    title, unit = "Gradient", "{target} per unit of input"
    paper = SIMONYAN
    about = About(
        "decision", "which pixel changes the score fastest", "1 forward + 1 backward", "any differentiable network",
        "noisy; blind to what is saturated",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return probe.grad(x)

    def evaluations(self, x: Images) -> int:
        return 1


class InputXGradient(Method):
    """The input times its gradient: what each value contributes to a linear network (Shrikumar et al. 2016).

    Units: those of the target. Depends on where zero lies in input space.
    """

    title = "Input x gradient"
    paper = Paper(
        "shrikumar2016not", "Shrikumar, Avanti and Greenside, Peyton and Shcherbina, Anna and Kundaje, Anshul",
        "Not Just a Black Box: Learning Important Features Through Propagating Activation Differences",
        "arXiv", 2016, "1605.01713",
    )  # fmt: skip
    about = About(
        "decision", "what each pixel contributes, to first order", "1 forward + 1 backward", "any differentiable network",
        "noisy; zero input gets zero, so the color that maps to zero is never shown",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return x * probe.grad(x)

    def evaluations(self, x: Images) -> int:
        return 1


class SmoothGrad(Method):
    """The mean of a method's maps over noisy copies of the image (Smilkov et al. 2017, section 3).

    Noise is Gaussian with a deviation of `sigma` times the image's own range, drawn anew for each image and copy.
    """

    of: Annotated[Method, "the method to average"] = Gradient()
    samples: Annotated[int, "noisy copies of each image", AtLeast(1)] = 16
    sigma: Annotated[float, "deviation of the noise, as a fraction of the image's range", AtLeast(0)] = 0.15

    title, unit = "SmoothGrad", "mean of noisy maps"
    stochastic = True
    paper = Paper(
        "smilkov2017smoothgrad", "Smilkov, Daniel and Thorat, Nikhil and Kim, Been and Viegas, Fernanda and Wattenberg, Martin",
        "SmoothGrad: removing noise by adding noise", "arXiv", 2017, "1706.03825",
    )  # fmt: skip
    about = About(
        "decision", "a less noisy map of any method", "samples x the method", "as the method",
        "explains the neighborhood, not the image; depends on the amount of noise",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        spread = self.sigma * (x.flatten(1).amax(1) - x.flatten(1).amin(1))
        total = None
        for block in probe.blocks(self.samples):
            copies = probe.repeat(block)
            repeated = x.repeat_interleave(len(block), 0)
            deviation = spread.repeat_interleave(len(block)).view(-1, *[1] * (x.dim() - 1))
            maps = self.of.attribute(copies, repeated + deviation * copies.normal(repeated))
            part = maps.unflatten(0, (len(x), len(block))).sum(1)
            total = part if total is None else total + part
        assert total is not None
        return total / self.samples

    def evaluations(self, x: Images) -> int:
        return self.samples * self.of.evaluations(x)
