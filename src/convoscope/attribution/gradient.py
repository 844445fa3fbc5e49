"""The gradient of the target, times the input, and what is left of either among noisy copies of the image."""

from collections.abc import Hashable
from typing import Annotated

import torch
from torch import Tensor

from convoscope.core.probe import Place, Probe
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

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        return (probe.session.at,)

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

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        return (probe.session.at,)

    def evaluations(self, x: Images) -> int:
        return 1


def noisy_maps(probe: Probe, x: Images, of: Method, samples: int, sigma: float, paired: bool) -> tuple[Tensor, Tensor]:
    """The mean of a method's maps over noisy copies of each image, and their mean squared deviation from it.

    Noise is Gaussian with a deviation of `sigma` times the image's own range; `paired` copies come in twos with noise of
    opposite sign. Deviations are summed around running means (Chan et al. 1983), so none is negative. Methods of one call
    that ask for the same copies share them.
    """

    def make() -> tuple[Tensor, Tensor]:
        spread = sigma * (x.flatten(1).amax(1) - x.flatten(1).amin(1))
        done, mean, squares = 0, torch.zeros((), device="cpu"), torch.zeros((), device="cpu")
        for block in probe.blocks(samples):
            copies, repeated = probe.repeat(block), x.repeat_interleave(len(block), 0)
            drawn = (probe.repeat([k // 2 for k in block]) if paired else copies).normal(repeated)
            sign = [-1.0 if paired and k % 2 else 1.0 for k in block]
            deviation = spread[:, None] * torch.tensor(sign, device="cpu").to(spread)
            noise = deviation.view(-1, *[1] * (x.dim() - 1)) * drawn
            maps = of.attribute(copies, repeated + noise).unflatten(0, (len(x), len(block)))
            here = maps.mean(1)
            within = (maps - here[:, None]).square().sum(1)
            both = done + len(block)
            if done:
                away = here - mean
                mean, squares = mean + away * (len(block) / both), squares + within + away.square() * (done * len(block) / both)
            else:
                mean, squares = here, within
            done = both
        return mean, squares / samples

    key: Hashable = ("noisy maps", of, samples, sigma, paired)
    return probe.once(x, key, make)


class SmoothGrad(Method):
    """The mean of a method's maps over noisy copies of the image (Smilkov et al. 2017, section 3).

    Noise is Gaussian with a deviation of `sigma` times the image's own range, drawn anew for each image and copy.
    """

    of: Annotated[Method, "the method to average"] = Gradient()
    samples: Annotated[int, "noisy copies of each image", AtLeast(1)] = 16
    sigma: Annotated[float, "deviation of the noise, as a fraction of the image's range", AtLeast(0)] = 0.15
    paired: Annotated[bool, "copies in twos with noise of opposite sign: what is odd in the noise cancels"] = False

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
        return noisy_maps(probe, x, self.of, self.samples, self.sigma, self.paired)[0]

    def evaluations(self, x: Images) -> int:
        return self.samples * self.of.evaluations(x)


class SmoothGradSquared(Method):
    """The mean of the squares of a method's maps over noisy copies of the image (Hooker et al. 2019, section 4.2).

    The same copies as SmoothGrad with the same settings. Units: those of the method, squared.
    """

    of: Annotated[Method, "the method whose squares are averaged"] = Gradient()
    samples: Annotated[int, "noisy copies of each image", AtLeast(1)] = 16
    sigma: Annotated[float, "deviation of the noise, as a fraction of the image's range", AtLeast(0)] = 0.15
    paired: Annotated[bool, "copies in twos with noise of opposite sign"] = False

    title, unit = "SmoothGrad squared", "mean of squared noisy maps"
    stochastic, signed = True, False
    paper = Paper(
        "hooker2019benchmark", "Hooker, Sara and Erhan, Dumitru and Kindermans, Pieter-Jan and Kim, Been",
        "A Benchmark for Interpretability Methods in Deep Neural Networks", "NeurIPS", 2019, "1806.10758",
    )  # fmt: skip
    about = About(
        "decision", "where the score is sensitive, whatever the direction", "samples x the method", "as the method",
        "no sign; explains the neighborhood, not the image",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        mean, variance = noisy_maps(probe, x, self.of, self.samples, self.sigma, self.paired)
        return mean.square() + variance

    def evaluations(self, x: Images) -> int:
        return self.samples * self.of.evaluations(x)


class VarGrad(Method):
    """The variance of a method's maps over noisy copies of the image (Adebayo et al. 2018).

    Divided by samples - 1: the unbiased estimate where copies are not paired. The same copies as SmoothGrad with the same
    settings. Units: those of the method, squared.
    """

    of: Annotated[Method, "the method whose variance is taken"] = Gradient()
    samples: Annotated[int, "noisy copies of each image", AtLeast(2)] = 16
    sigma: Annotated[float, "deviation of the noise, as a fraction of the image's range", AtLeast(0)] = 0.15
    paired: Annotated[bool, "copies in twos with noise of opposite sign"] = False

    title, unit = "VarGrad", "variance of noisy maps"
    stochastic, signed = True, False
    paper = Paper(
        "adebayo2018local", "Adebayo, Julius and Gilmer, Justin and Goodfellow, Ian and Kim, Been",
        "Local Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter Values", "ICLR Workshop", 2018,
        "1810.03307",
    )  # fmt: skip
    about = About(
        "decision", "where the map changes most in the neighborhood of the image", "samples x the method", "as the method",
        "no sign; zero where the network is linear, however important",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        variance = noisy_maps(probe, x, self.of, self.samples, self.sigma, self.paired)[1]
        return variance * (self.samples / (self.samples - 1))

    def evaluations(self, x: Images) -> int:
        return self.samples * self.of.evaluations(x)
