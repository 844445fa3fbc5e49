"""Whether maps point at the right picture of several: a montage of the images themselves, so that no mask is needed."""

from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.spec import AtLeast, Paper, fields_of
from convoscope.evaluation.base import Case, Metric, Scores, class_of, seeded, twin_of
from convoscope.method import Method
from convoscope.network import Network
from convoscope.targets import probabilities


class _Grid(Metric, abstract=True):
    """Base of what asks for the share of the positive relevance that lies on an image's own cell of a montage.

    The other cells are the images after it, of other classes. An image has no score unless its target is its top class and at
    least `least` probable, and there are enough others of which that holds. By chance, one in as many as there are cells.
    """

    family, needs, range = "localization", ("methods", "classes"), (0.0, 1.0)
    unit: ClassVar[str] = "share of the relevance"
    cells: Annotated[int, "images along each side of the montage", AtLeast(2)] = 2
    least: Annotated[float, "how probable the target has to be, 0 to 1; the papers ask for .99"] = 0.5

    def score(self, case: Case) -> Scores:
        groups = case.once(("groups", self.cells, self.least), lambda: groups_of(case, self.cells, self.least, self.name))
        rows = [i for i, group in enumerate(groups) if group]
        out = torch.full(case.maps.shape[:2], torch.nan, dtype=torch.float64)
        if rows:
            montages = torch.stack([montage(case.x[groups[i]], self.cells) for i in rows])
            for number in range(len(case.names)):
                maps = self._maps(case, number, montages, torch.tensor(rows), [groups[i].index(i) for i in rows])
                out[number, rows] = self._own(maps.cpu(), [groups[i].index(i) for i in rows])
        return out

    def passes(self, case: Case) -> int:
        return self.cells**2 + 1

    def _own(self, maps: Float[Tensor, "rows height width"], cells: list[int]) -> Float[Tensor, " rows"]:
        """The share of what is positive in each map that lies on the one cell; NaN where a map is constant or has none."""
        top = maps.amax((1, 2), keepdim=True)
        positive = maps.clamp(min=0) / top.clamp(min=torch.finfo(maps.dtype).tiny)
        mine = torch.stack([p[box(p, self.cells, c)].sum() for p, c in zip(positive, cells, strict=True)])
        known = (top > 0).flatten() & (top > maps.amin((1, 2), keepdim=True)).flatten()
        return torch.where(known, mine / positive.sum((1, 2)).clamp(min=1e-300), torch.nan)

    def _maps(self, case: Case, number: int, montages: Tensor, images: Tensor, cells: list[int]) -> Tensor:
        raise NotImplementedError


def groups_of(case: Case, cells: int, least: float, metric: str) -> list[list[int]]:
    """For each image the images of its montage, itself at a place drawn for it; nothing for those that cannot have one."""
    given = class_of(case.target, metric)
    own = list(map(int, given)) if isinstance(given, tuple) else [int(given)] * len(case.x)
    found = probabilities(case.probe(torch.arange(len(case.x))).activations(case.x, "output").double()).cpu()
    value, top = found.max(1)
    sure = [int(t) == o and float(v) >= least for t, o, v in zip(top, own, value, strict=True)]
    groups = []
    for i in range(len(own)):
        others: list[int] = []
        for j in (*range(i + 1, len(own)), *range(i)):
            if sure[j] and own[j] not in [own[i], *(own[k] for k in others)] and len(others) < cells**2 - 1:
                others.append(j)
        place = int(torch.randint(cells**2, (), generator=seeded(case.seed, "cell", case.places[i])))
        full = sure[i] and len(others) == cells**2 - 1
        groups.append([*others[:place], i, *others[place:]] if full else [])
    return groups


def montage(x: Float[Tensor, "cells channels height width"], cells: int) -> Float[Tensor, "channels height2 width2"]:
    """Images side by side, row after row, `cells` in each."""
    return torch.cat([torch.cat(list(row), -1) for row in x.split(cells)], -2)


def box(map_: Tensor, cells: int, number: int) -> tuple[slice, slice]:
    """Where a cell of a montage lies."""
    height, width = (n // cells for n in map_.shape[-2:])
    down, across = divmod(number, cells)
    return slice(down * height, (down + 1) * height), slice(across * width, (across + 1) * width)


class GridPointingGame(_Grid):
    """How much of the positive relevance for an image's class lies on that image, in a montage with images of other classes
    that the network sees as a whole (Böhle et al. 2021, section 4; Rao et al. 2022, section 3.1).

    For networks that take pictures of any size.
    """

    title, use = "Grid pointing game", "does the map point at the right picture of several?"
    drawback = "the network never saw a montage; other pictures do influence its answer"
    paper: ClassVar[Paper] = Paper(
        "boehle2021coda", "Böhle, Moritz and Fritz, Mario and Schiele, Bernt",
        "Convolutional dynamic alignment networks for interpretable classifications", "CVPR", 2021, "2104.00032",
    )  # fmt: skip

    def _maps(self, case: Case, number: int, montages: Tensor, images: Tensor, cells: list[int]) -> Tensor:
        case.once(("takes", self.cells), lambda: _takes(case, montages[:1], images[:1]))
        return case.explain(number, montages, images)


def _takes(case: Case, montages: Tensor, images: Tensor) -> None:
    """Raises UnsupportedError unless the network classifies pictures of the montage's size."""
    sizes = ["{} x {}".format(*x.shape[2:]) for x in (case.x, montages)]
    try:
        shape = case.probe(images).activations(montages, "output").shape
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UnsupportedError(
            f"{case.network.name} takes no pictures of {sizes[1]}, as a montage of those of {sizes[0]} is; "
            "networks that pool adaptively do; di-full needs no larger pictures"
        ) from error
    if len(shape) != 2:
        raise UnsupportedError(f"{case.network.name} does not classify pictures of {sizes[1]}: its output is {tuple(shape)}")


class DiFull(_Grid, name="di-full"):
    """As the grid pointing game, but each cell is classified by itself: no other image of the montage can influence the target
    at all, so that all relevance beside the image's own cell is wrong (Rao et al. 2022, section 3.1).

    For methods that look at the input: layers of such a network see one cell only.
    """

    title, use = "DiFull (disconnected grid)", "is there relevance where there can be no influence?"
    drawback = "gradients are perfect by construction; says nothing of what is inside the cell"
    paper: ClassVar[Paper] = Paper(
        "rao2022towards", "Rao, Sukrut and Böhle, Moritz and Schiele, Bernt",
        "Towards better understanding attribution methods", "CVPR", 2022, "2205.10435",
    )  # fmt: skip

    def _maps(self, case: Case, number: int, montages: Tensor, images: Tensor, cells: list[int]) -> Tensor:
        method = case.methods[number]
        if method is not None and _looks_inside(case, method):
            raise UnsupportedError(f"di-full shows each cell to the network by itself; {method.name} looks at its layers")
        maps = torch.empty(len(montages), *montages.shape[2:], dtype=torch.float64)
        for cell in sorted(set(cells)):
            rows = torch.tensor([k for k, c in enumerate(cells) if c == cell])
            twin = _alone(case.network, montages, self.cells, cell)
            maps[rows] = case.explain(number, montages[rows.to(montages.device)], images[rows], network=twin).cpu()
        return maps


def _looks_inside(case: Case, method: Method) -> bool:
    """Whether a method reads layers, which have one cell's size where the network sees one cell."""
    if "layer" in [f.name for f in fields_of(type(method))]:
        return True
    try:
        return any(place != "input" for place in method.needs(case.probe(torch.arange(1))))
    except UsageError:  # it asks for the last spatial tensor
        return True


class _Cell(nn.Module):
    """A network that sees one part of the picture."""

    def __init__(self, module: nn.Module, part: tuple[slice, slice]) -> None:
        super().__init__()
        self.module, self.part = module, part

    def forward(self, x: Tensor) -> Any:
        return self.module(x[:, :, self.part[0], self.part[1]])


def _alone(network: Network, montages: Tensor, cells: int, cell: int) -> Network:
    """The network for one cell of the montages."""
    return twin_of(network, _Cell(network.plain, box(montages, cells, cell)), (montages.shape[2], montages.shape[3]))
