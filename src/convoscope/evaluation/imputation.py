"""Faithfulness by pixels that are filled in from their neighbors, and by regions."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.spec import AtLeast, Paper
from convoscope.evaluation.axioms import cells_of
from convoscope.evaluation.base import Case, Metric, Scores, digest, ranks, seeded
from convoscope.evaluation.removal import FILL, OF, Fill, Of
from convoscope.evaluation.sweeps import filled, same


def imputed(x: Float[Tensor, "rows channels height width"], gone: Bool[Tensor, "rows height width"]) -> Tensor:
    """Pictures whose missing pixels are the weighted mean of their eight neighbors, direct ones twice as heavy, solved at once.

    The linear system of ROAD (Rong et al. 2022, section 4.2, weights 1/6 and 1/12), by conjugate gradients on all rows at
    once from a coarse-to-fine start. Where everything is gone there is nothing to start from: the picture's mean.
    """
    known = ~gone[:, None]
    start = interpolated(x.double(), known.double())
    free = (~known).double()
    fixed = torch.where(known, x.double(), 0.0)
    weight = _neighbors(torch.ones_like(free))

    def operator(values: Tensor) -> Tensor:
        return free * (weight * values - _neighbors(values))

    right = free * _neighbors(fixed)
    found = _solved(operator, right, free * start, weight.clamp(min=1))  # a single pixel has no neighbors
    nothing = gone.flatten(1).all(1).view(-1, 1, 1, 1)
    return torch.where(known, x, torch.where(nothing, x.double().mean((2, 3), keepdim=True), found).to(x.dtype))


def _neighbors(values: Tensor) -> Tensor:
    """The weighted sum over eight neighbors that exist: 2 for direct ones, 1 for diagonal ones."""
    channels = values.shape[1]
    kernel = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]], dtype=values.dtype, device=values.device)
    return F.conv2d(values, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)


def interpolated(x: Tensor, known: Tensor) -> Tensor:
    """A guess at missing pixels: means of what is known at ever coarser scales, the finest that has any."""
    if min(x.shape[2:]) < 2 or bool((known > 0).all()):
        total = known.sum((2, 3), keepdim=True)
        mean = (x * known).sum((2, 3), keepdim=True) / total.clamp(min=1e-12)
        return torch.where(known > 0, x, mean.expand_as(x))
    pad = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
    held, there = F.avg_pool2d(F.pad(x * known, pad), 2), F.avg_pool2d(F.pad(known, pad), 2)
    coarse = interpolated(held / there.clamp(min=1e-12), (there > 0).double())
    fine = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[..., : x.shape[2], : x.shape[3]]
    return torch.where(known > 0, x, fine)


def _solved(
    operator: Callable[[Tensor], Tensor], right: Tensor, x: Tensor, weight: Tensor, tolerance: float = 1e-6, most: int = 2000
) -> Tensor:
    """Conjugate gradients with the diagonal as preconditioner, all rows and channels as systems of their own."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((2, 3), keepdim=True)

    residual = right - operator(x)
    step = residual / weight
    along, worth = step, dot(residual, step)
    goal = tolerance**2 * dot(right, right / weight).clamp(min=1e-30)
    for _ in range(most):
        if bool((worth <= goal).all()):
            break
        pushed = operator(along)
        length = worth / dot(along, pushed).clamp(min=1e-300)
        x, residual = x + length * along, residual - length * pushed
        step = residual / weight
        new = dot(residual, step)
        along, worth = step + new / worth.clamp(min=1e-300) * along, new
    return x


class ROAD(Metric, name="road"):
    """How much the target falls as the most relevant pixels are filled in from their neighbors, less how much as the least
    relevant are, the mean over shares (Rong et al. 2022). A little noise hides the holes.

    The paper plots both orders for themselves; their difference is our choice (grad-cam takes half of it).
    """

    title, family, unit = "ROAD (remove and debias)", "faithfulness", "{target}"
    use, drawback = "deletion without black holes", "smooth fills leave what is blurred; slower than plain fills"
    paper: ClassVar[Paper] = Paper(
        "rong2022road", "Rong, Yao and Leemann, Tobias and Borisov, Vadim and Kasneci, Gjergji and Kasneci, Enkelejda",
        "A consistent and efficient evaluation strategy for attribution methods", "ICML", 2022, "2202.00449",
    )  # fmt: skip
    shares: Annotated[tuple, "fractions of the pixels that are filled in"] = (0.1, 0.3, 0.5, 0.7, 0.9)
    noise: Annotated[float, "standard deviation of the noise on filled pixels, in units of 0..1 pixels"] = 0.01
    of: Annotated[Of, OF] = "probability"

    def score(self, case: Case) -> Scores:
        places = case.once("ranks", lambda: ranks(case.maps)).view(*case.maps.shape)
        return self._left(case, places.max() - places) - self._left(case, places)

    def _left(self, case: Case, places: Tensor) -> Scores:
        """The mean target after the pixels of the first places are filled in."""
        target = case.judge(self.of)
        counts = torch.tensor([round(s * places[0, 0].numel()) for s in self.shares]).view(-1, 1, 1)
        out, known = torch.empty(places.shape[:2], dtype=torch.float64), {}
        for m in range(len(places)):
            for i in range(places.shape[1]):
                key = (i, digest(places[m, i]))
                if key not in known:
                    gone = (places[m, i] < counts).to(case.x.device)
                    rows = self._filled(case, i, gone)
                    known[key] = case.scores(rows, torch.full((len(rows),), i), target).mean().cpu()
                out[m, i] = known[key]
        return out

    def _filled(self, case: Case, image: int, gone: Tensor) -> Tensor:
        x = case.x[image].expand(len(gone), *case.x.shape[1:])
        one = torch.ones_like(x[:1, :, :1, :1])
        scale = (case.network.normalize(one) - case.network.normalize(0 * one)) * self.noise
        drawn = torch.randn(x.shape[1:], generator=seeded(case.seed, "road", case.places[image])).to(x)
        return torch.where(gone[:, None], imputed(x, gone) + drawn * scale, x)

    def passes(self, case: Case) -> int:
        return 2 * len(self.shares)


class _Regions(Metric, abstract=True):
    """Base of what removes regions of the picture, the most relevant first: the mean fall of the target on the way."""

    family, unit = "faithfulness", "{target}"

    def score(self, case: Case) -> Scores:
        target, orders, jobs = case.judge(self.of), [], []  # type: ignore[attr-defined]
        for i in range(len(case.x)):
            labels = case.once(("regions", self, i), lambda i=i: self._labels(case, i))
            sums = torch.zeros(len(case.maps), int(labels.max()) + 1, dtype=torch.float64)
            sums.index_add_(1, labels.flatten(), case.maps[:, i].flatten(1).cpu())
            order = ranks((sums / torch.bincount(labels.flatten()))[:, None])
            for methods in same(order):
                masks = partial(_gone, order[methods[0]], labels, case.x.device)
                jobs.append((i, min(order.shape[1], self.most(case)), masks))
                orders.append((methods, i))
        out = torch.empty(case.maps.shape[:2], dtype=torch.float64)
        for (methods, i), found in zip(orders, filled(case, case.fill(self.fill), jobs, target), strict=True):  # type: ignore[attr-defined]
            out[methods, i] = (case.clean(target)[i].cpu() - found).sum() / (len(found) + 1)  # none of the fall at the start
        return out

    def most(self, case: Case) -> int:
        """How many regions are removed at most."""
        raise NotImplementedError

    def _labels(self, case: Case, image: int) -> Tensor:
        raise NotImplementedError


def _gone(order: Tensor, labels: Tensor, device: torch.device, some: range) -> Bool[Tensor, "steps height width"]:
    """What is gone after some steps, each of which takes one more region."""
    return order[labels].to(device) < torch.arange(some.start + 1, some.stop + 1, device=device).view(-1, 1, 1)


class RegionPerturbation(_Regions):
    """The mean fall of the target as square regions are removed, the most relevant first (AOPC; Samek et al. 2017, eq. 12).

    The picture is divided into as many cells along each side; a cell's relevance is its mean. The paper's are 9 pixels wide and
    filled with uniform noise: `fill="uniform"`.
    """

    title = "Region perturbation"
    use, drawback = "pixel flipping, region by region", "squares cut across things"
    paper: ClassVar[Paper] = Paper(
        "samek2017evaluating", "Samek, Wojciech and Binder, Alexander and others",
        "Evaluating the visualization of what a deep neural network has learned", "IEEE TNNLS", 2017, "1509.06321",
    )  # fmt: skip
    cells: Annotated[int, "regions along each side", AtLeast(1)] = 9
    regions: Annotated[int, "how many are removed", AtLeast(1)] = 20
    fill: Annotated[Fill, FILL] = "mean"
    of: Annotated[Of, OF] = "probability"

    def most(self, case: Case) -> int:
        return self.regions

    def passes(self, case: Case) -> int:
        return self.regions + 1

    def _labels(self, case: Case, image: int) -> Tensor:
        return cells_of(*case.x.shape[2:], self.cells)


class IROF(_Regions, name="irof"):
    """The mean fall of the target as superpixels are removed, the most relevant first (Rieger and Hansen 2020, eq. 1).

    In units of the target: the paper divides by the target of the whole picture, which a logit near 0 or below does not bear.
    """

    title = "IROF"
    use, drawback = "pixel flipping, thing by thing", "depends on the superpixels"
    paper: ClassVar[Paper] = Paper(
        "rieger2020irof", "Rieger, Laura and Hansen, Lars Kai",
        "IROF: A low resource evaluation metric for explanation methods", "ICLR workshop", 2020, "2003.08747",
    )  # fmt: skip
    segments: Annotated[int, "about how many superpixels", AtLeast(2)] = 60
    fill: Annotated[Fill, FILL] = "mean"
    of: Annotated[Of, OF] = "probability"

    def most(self, case: Case) -> int:
        return 10**6

    def passes(self, case: Case) -> int:
        return 2 * self.segments

    def _labels(self, case: Case, image: int) -> Tensor:
        from skimage.segmentation import slic

        picture = case.network.picture(case.x[image : image + 1])[0].permute(1, 2, 0).double().numpy()
        found = slic(picture, n_segments=self.segments, start_label=0)
        return torch.from_numpy(found).long().unique(return_inverse=True)[1]
