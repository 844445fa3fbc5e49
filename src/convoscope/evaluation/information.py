"""How soon the network knows, as the picture is sharpened where it is relevant: against information instead of pixels."""

import io
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convoscope.core.spec import Paper
from convoscope.evaluation.base import Case, Metric, Scores, class_of, classes_of, digest, key_of, ranks, seeded
from convoscope.evaluation.imputation import interpolated
from convoscope.evaluation.removal import OF, Fill, Of
from convoscope.targets import Margin, Probability

POINTS = 1000
FEW = "what pixels are that are not shown: few (filled in from those that are), or blur, black, white, mean, a number, a tensor"
SHARES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.13, 0.21, 0.34, 0.5, 0.75)


def information(x: Float[Tensor, "rows channels height width"], network: Any) -> Float[Tensor, " rows"]:
    """About how many bytes each picture needs: as an 8-bit lossless WebP, channels one by one unless there are 1 or 3."""
    from PIL import Image

    black, white = (network.normalize(torch.full_like(x[:1, :, :1, :1], value)) for value in (0.0, 1.0))
    bytes_ = ((x - black) / (white - black) * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    parts = bytes_[:, None] if bytes_.shape[1] == 3 else bytes_[:, :, None]

    def size(channels: Tensor) -> int:
        file = io.BytesIO()
        array = channels.permute(1, 2, 0).contiguous().squeeze(-1).numpy()
        Image.fromarray(array).save(file, format="WEBP", lossless=True, quality=100, method=0)
        return len(file.getvalue())

    return torch.tensor([sum(map(size, row)) for row in parts], dtype=torch.float64)


def information_curve(
    size: Float[Tensor, "... steps"], answer: Float[Tensor, "... steps"], points: int = POINTS
) -> Float[Tensor, "... points"]:
    """The answer against the information, both from 0 for the blurred picture to 1 for the sharp one, at even places.

    The first step is the blurred picture, the last the sharp one. What was known once stays known: the curve takes the best
    answer so far. NaN where the sharp picture has no more information, or no better answer, than the blurred one.
    """
    size, answer = size.double(), answer.double()
    there, known = (_between(v[..., :1], v[..., 1:-1], v[..., -1:]) for v in (size, answer))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(*size.shape[:-1], 2)
    x, order = torch.cat([there, ends], -1).sort(dim=-1, stable=True)
    y = torch.cat([known.cummax(-1).values, ends], -1).gather(-1, order)
    grid = (torch.arange(points, dtype=torch.float64) / points).expand(*size.shape[:-1], points).contiguous()
    left = torch.searchsorted(x.contiguous(), grid, right=True).sub(1).clamp(0, x.shape[-1] - 2)
    x0, x1, y0, y1 = (v.gather(-1, left + k) for v in (x, y) for k in (0, 1))
    found = torch.cat([y0 + (grid - x0) / (x1 - x0) * (y1 - y0), ends[..., 1:]], -1)
    defined = (size[..., -1:] > size[..., :1]) & (answer[..., -1:] > answer[..., :1])
    return torch.where(defined, found, torch.nan)


def _between(low: Tensor, values: Tensor, high: Tensor) -> Tensor:
    return ((values - low) / torch.where(high > low, high - low, 1.0)).clamp(0, 1)


def area(curve: Float[Tensor, "... points"]) -> Float[Tensor, "..."]:
    """The mean height of a curve, by trapezoids."""
    return torch.trapezoid(curve, dim=-1) / (curve.shape[-1] - 1)


def median_curve(curves: Float[Tensor, "methods images points"]) -> Float[Tensor, "methods points"]:
    """The curve of a data set: at each place the median over the images that have one (Kapishnikov et al. 2019)."""
    return curves.nanquantile(0.5, dim=1)


class _Information(Metric, abstract=True):
    """Base of performance information curves: the area under each image's.

    The picture starts blurred, then its most relevant pixels are shown. With `fill="few"` everything else is filled in, coarse
    to fine, from what is shown and from few pixels that are drawn at random, and the corners. Information is what the picture
    needs as a lossless file.
    """

    family, unit, range = "faithfulness", "area from 0 to 1", (0.0, 1.0)
    drawback = "files measure information roughly; pictures that are known when blurred have no score"
    paper: ClassVar[Paper] = Paper(
        "kapishnikov2019xrai", "Kapishnikov, Andrei and Bolukbasi, Tolga and Viégas, Fernanda and Terry, Michael",
        "XRAI: Better attributions through regions", "ICCV", 2019, "1906.02825",
    )  # fmt: skip
    shares: Annotated[tuple, "fractions of the pixels, the most relevant ones, that are shown"] = SHARES
    fill: Annotated[Fill, FEW] = "few"
    start: Annotated[float, "the part of the pixels that are always shown with fill=few, 0 to 1"] = 0.01

    def score(self, case: Case) -> Scores:
        return area(self.curve(case))

    def curve(self, case: Case) -> Float[Tensor, "methods images points"]:
        """The curve of each method and image at 1,001 even places."""
        places = case.once("ranks", lambda: ranks(case.maps)).view(*case.maps.shape)
        known: dict[tuple[int, bytes], Tensor] = {}
        rows = []
        for m in range(len(places)):
            for i in range(places.shape[1]):
                key = (i, digest(places[m, i]))
                if key not in known:
                    known[key] = self._steps(case, i, places[m, i], key)
                rows.append(known[key])
        size, answer = torch.stack(rows).view(*places.shape[:2], 2, -1).unbind(2)
        return information_curve(size, answer)

    def passes(self, case: Case) -> int:
        return len(self.shares) + 2

    def _steps(self, case: Case, image: int, places: Tensor, key: tuple[int, bytes]) -> Float[Tensor, "2 steps"]:
        """The information and the answer of the picture from blurred to sharp."""
        counts = torch.tensor([round(float(s) * places.numel()) for s in self.shares]).view(-1, 1, 1)
        shown = places.cpu() < torch.cat([torch.zeros_like(counts[:1]), counts])
        rows = torch.cat([self._shown(case, image, shown), case.x[image : image + 1]])
        by = ("information", self.shares, self.start, key_of(self.fill), key)
        size = case.once(by, lambda: information(rows, case.network))
        return torch.stack([size, self._answer(case, rows, torch.full((len(rows),), image)).cpu()])

    def _shown(self, case: Case, image: int, shown: Bool[Tensor, "rows height width"]) -> Tensor:
        x = case.x[image].expand(len(shown), *case.x.shape[1:])
        if isinstance(self.fill, Tensor) or self.fill != "few":
            return torch.where(shown[:, None].to(x.device), x, case.fill(self.fill)[image])
        shown = (shown | sharp(case, image, self.start)).to(x.device)[:, None]
        return torch.where(shown, x, interpolated(x.double(), shown.double()).to(x))

    def _answer(self, case: Case, rows: Tensor, images: Tensor) -> Float[Tensor, " rows"]:
        raise NotImplementedError


def sharp(case: Case, image: int, share: float) -> Bool[Tensor, "height width"]:
    """The pixels of an image that are never blurred: some drawn at random, and the corners."""
    found = torch.zeros(case.x.shape[2:], dtype=torch.bool)
    drawn = torch.randperm(found.numel(), generator=seeded(case.seed, "sharp", case.places[image]))
    found.view(-1)[drawn[: int(share * found.numel())]] = True
    found[:: max(1, len(found) - 1), :: max(1, found.shape[1] - 1)] = True
    return found


class SIC(_Information, name="sic"):
    """The area under the softmax information curve: the target against the information shown (Kapishnikov et al. 2019, 4.2).

    Only for images of which the network is surer when they are sharp. The curve of a data set is the median over images:
    `median_curve(SIC().curve(case))`.
    """

    title, use = "Softmax information curve", "is the network sure from little information?"
    of: Annotated[Of, OF] = "probability"

    def _answer(self, case: Case, rows: Tensor, images: Tensor) -> Tensor:
        return case.scores(rows, images, case.judge(self.of))


class AIC(_Information, name="aic"):
    """The area under the accuracy information curve: whether the class is the top one, against the information shown
    (Kapishnikov et al. 2019, section 4.2). Only for images whose target is the top class when sharp, and not when blurred. A
    single class is the top one where it is more probable than not.
    """

    title, use = "Accuracy information curve", "is the network right from little information?"

    def _answer(self, case: Case, rows: Tensor, images: Tensor) -> Tensor:
        index = class_of(case.target, self.name)
        if classes_of(case) == 1:
            return (case.scores(rows, images, Probability(index)) > 0.5).double()
        return (case.scores(rows, images, Margin(index)) > 0).double()
