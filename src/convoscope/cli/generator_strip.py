"""How a training came to make pictures: some steps, one below the other, kept beside the training's own state."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MOST = 16  # steps kept


class Strip:
    """Writes `path`, a .png, anew at each step it is shown; `kept` holds the steps so far, for a run that goes on."""

    def __init__(self, path: Path, kept: Path, resumed: bool) -> None:
        from convoscope.core.errors import UsageError
        from convoscope.data.sealed import read_sealed
        from convoscope.files import check_writable

        if path.suffix.lower() != ".png":
            raise UsageError(f"cannot write {str(path)!r}: expected a file that ends in .png")
        check_writable(path)
        self.path, self.kept = path, kept
        self.frames: dict[int, Tensor] = {}
        if resumed and (found := read_sealed(kept)) is not None:
            self.frames = {int(step): pixels for step, pixels in found[0].items()}

    def __call__(self, step: int, pixels: "Tensor") -> None:
        """The pictures after so many steps."""
        from convoscope.data.sealed import write_sealed
        from convoscope.files import replaced
        from convoscope.show import strip
        from convoscope.synthesis.drawing import colored

        self.frames = {s: f for s, f in self.frames.items() if s < step}
        if len(self.frames) >= MOST:  # every other one, the first among them
            self.frames = {s: self.frames[s] for s in sorted(self.frames)[::2]}
        self.frames[step] = pixels.detach()[:16].clamp(0, 1).mul(255).round().byte().cpu().contiguous()
        write_sealed(self.kept, {str(s): f for s, f in self.frames.items()})
        groups = [
            strip.Group(f"step {s}", [strip.Grid([strip.Tile(colored(p), smooth=True) for p in f], 8)])
            for s, f in sorted(self.frames.items())
        ]
        with replaced(self.path) as partial:
            strip.figure(strip.Strip("How the generator learned", groups, side=64)).save(partial, format="PNG")
