"""Maps that know nothing of the network: what a metric has to tell an explanation from."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.evaluation.base import seeded
from convoscope.network import Images


def noise(x: Images, places: tuple[int, ...], seed: int, number: int = 0) -> Float[Tensor, "images height width"]:
    """Independent uniform numbers at every pixel, drawn for each image's place in the data set."""
    return torch.stack(
        [torch.rand(x.shape[2:], generator=seeded(seed, "noise", number, place), dtype=torch.float64) for place in places]
    )


def edges(x: Images) -> Float[Tensor, "images height width"]:
    """The length of the luminance's gradient (Sobel), edges repeated: an edge detector."""
    gray = x.double().mean(1, keepdim=True).cpu()
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)[None, None] / 8
    padded = F.pad(gray, (1, 1, 1, 1), mode="replicate")
    return (F.conv2d(padded, kernel).square() + F.conv2d(padded, kernel.transpose(2, 3)).square()).sqrt()[:, 0]


NULLS = {"random": lambda x, places, seed: noise(x, places, seed), "edges": lambda x, places, seed: edges(x)}
