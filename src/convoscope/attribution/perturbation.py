"""What the target loses when parts of the image are hidden."""

from typing import Annotated, Literal

from torch import Tensor

from convoscope.core.errors import SpecError, UsageError
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images

Fill = Literal["black", "white", "mean", "blur", "uniform"] | float | Tensor


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along an axis, so that every position is covered; the last one ends at the edge."""
    last = length - window
    return sorted({*range(0, last + 1, stride), last})


class Occlusion(Method):
    """How much the target falls when a window around a pixel is hidden: the mean over all windows that cover it.

    Zeiler and Fergus 2014, section 4.2. Units: those of the target. Windows start every `stride` pixels, and a last one ends
    at the edge. Raises SpecError for a stride above the window, which would never hide the pixels in between.
    """

    window: Annotated[int, "side of the window, in pixels", AtLeast(1)] = 32
    stride: Annotated[int | None, "distance between windows, in pixels; none is half the window", AtLeast(1)] = None
    fill: Annotated[Fill, "what hides: a name, a number or a tensor in input space"] = "mean"

    title, unit = "Occlusion", "{target} lost when hidden"
    default = True
    paper = Paper(
        "zeiler2014visualizing", "Zeiler, Matthew D. and Fergus, Rob", "Visualizing and Understanding Convolutional Networks",
        "ECCV", 2014, "1311.2901",
    )  # fmt: skip
    about = About(
        "decision", "what the score loses when a part is hidden", "1 forward per window", "any network, also without gradients",
        "slow; depends on the size of the window and on what fills it",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        fill = probe.baseline(self.fill, x)
        windows = self._windows(x)
        total, covered = x.new_zeros(len(x), *x.shape[2:]), x.new_zeros(x.shape[2:])
        clean = probe.score(x)
        for block in probe.blocks(len(windows)):
            hidden = x[:, None].repeat(1, len(block), *[1] * (x.dim() - 1))
            for k, w in enumerate(block):
                hidden[:, k, :, *windows[w]] = fill[:, :, *windows[w]]
            drop = clean[:, None] - probe.repeat(block).score(hidden.flatten(0, 1)).unflatten(0, (len(x), len(block)))
            for k, w in enumerate(block):
                total[:, *windows[w]] += drop[:, k, None, None]
                covered[windows[w]] += 1
        return (total / covered)[:, None]

    def _windows(self, x: Images) -> list[tuple[slice, slice]]:
        if x.dim() != 4:
            raise UsageError(f"occlusion hides windows of (images, channels, rows, columns); got shape {tuple(x.shape)}")
        stride = max(1, self.window // 2) if self.stride is None else self.stride
        if stride > self.window:
            raise SpecError(
                f"occlusion: stride {stride} leaves pixels between windows of {self.window}; expected at most the window"
            )
        height, width = x.shape[2:]
        tall, wide = min(self.window, height), min(self.window, width)
        rows, columns = window_starts(height, tall, stride), window_starts(width, wide, stride)
        return [(slice(i, i + tall), slice(j, j + wide)) for i in rows for j in columns]

    def evaluations(self, x: Images) -> int:
        return 1 + len(self._windows(x))
