"""What the target loses when parts of the image are hidden."""

from typing import Annotated

from convoscope.attribution.regions import Fill
from convoscope.core.errors import SpecError, UsageError
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along an axis, so that every position is covered; the last one ends at the edge."""
    last = length - window
    return sorted({*range(0, last + 1, stride), last})


class Occlusion(Method):
    """How much the target falls when a window is hidden: for each pixel, the mean over all windows that cover it.

    Zeiler and Fergus 2014, section 4.2. Units: those of the target. Windows start every `stride` pixels, and a last one ends
    at the edge. With a target such as `Channel(layer, k, over="max")` or `Layer(layer, "mean")` it is what a unit or layer
    loses. `average=False` gives the loss window by window, `(B, 1, rows, columns)` of window positions, as in their figure 7.
    At a layer, windows of all its channels are hidden. Exactly as if every window went through the whole network, but only
    what a window reaches is computed again, where the network allows that. Raises SpecError for a stride above the window,
    which would leave pixels without a value (unless `average=False`).
    """

    window: Annotated[int | tuple, "side of the window in pixels, or (height, width)", AtLeast(1)] = 32
    stride: Annotated[
        int | tuple | None, "distance between windows in pixels, or (down, across); none is half the window", AtLeast(1)
    ] = None
    fill: Annotated[Fill, "what hides: a name, a number or a tensor in input space"] = "mean"
    average: Annotated[bool, "the mean over the windows that cover a pixel, or one value for each window"] = True

    title, unit = "Occlusion", "{target} lost when hidden"
    default = True
    paper = Paper(
        "zeiler2014visualizing", "Zeiler, Matthew D. and Fergus, Rob", "Visualizing and Understanding Convolutional Networks",
        "ECCV", 2014, "1311.2901",
    )  # fmt: skip
    about = About(
        "decision", "what the score loses when a part is hidden", "1 forward per window, or the part of it that the window "
        "reaches", "any network, also without gradients", "slow; depends on the size of the window and on what fills it",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "stride"):
            value = getattr(self, name)
            if isinstance(value, tuple) and not (len(value) == 2 and all(isinstance(v, int) and v > 0 for v in value)):
                raise SpecError(f"occlusion: {name} is {value}; expected a number of pixels, or two of at least 1")
        for side, step in zip(_pair(self.window), self._strides(), strict=True):
            if self.average and step > side:
                raise SpecError(
                    f"occlusion: stride {step} leaves pixels between windows of {side}; expected at most the window, or "
                    "average=False"
                )

    def attribute(self, probe: Probe, x: Images) -> Maps:
        rows, columns = self._places(x)
        windows = [(r, c) for r in rows for c in columns]
        nothing = (slice(0, 0), slice(0, 0))
        scores = probe.patched(x, probe.baseline(self.fill, x), [*windows, nothing])
        drops = scores[:, -1:] - scores[:, :-1]
        if not self.average:
            return drops.unflatten(1, (1, len(rows), len(columns)))
        total, covered = x.new_zeros(len(x), *x.shape[2:]), x.new_zeros(x.shape[2:])
        for k, window in enumerate(windows):
            total[:, *window] += drops[:, k, None, None]
            covered[window] += 1
        return (total / covered)[:, None]

    def _strides(self) -> tuple[int, int]:
        return tuple(max(1, side // 2) for side in _pair(self.window)) if self.stride is None else _pair(self.stride)

    def _places(self, x: Images) -> list[list[slice]]:
        """The rows and the columns that windows cover."""
        if x.dim() != 4:
            raise UsageError(f"occlusion hides windows of (images, channels, rows, columns); got shape {tuple(x.shape)}")
        found = []
        for length, side, stride in zip(x.shape[2:], _pair(self.window), self._strides(), strict=True):
            side = min(side, length)
            found.append([slice(i, i + side) for i in window_starts(length, side, stride)])
        return found

    def evaluations(self, x: Images) -> int:
        rows, columns = self._places(x)
        return 3 + len(rows) * len(columns)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
