"""What `convoscope attack` keeps on the way: what is done, a live preview, and pictures of the steps."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from convoscope.cli.synthesis import EVERY

if TYPE_CHECKING:
    from torch import Tensor

    from convoscope.network import Network
    from convoscope.synthesis.adversarial_result import Attack

MOST = 8  # steps in a strip


class Way:
    """`store` holds a file for each group of pictures that is done; where it is the command's `own` it goes at the end."""

    def __init__(self, preview: Path | None, strip: Path | None, show: int, store: Path | None, own: bool) -> None:
        from convoscope.core.errors import UsageError
        from convoscope.files import check_writable

        for path in (preview, strip):
            if path is not None and path.suffix.lower() != ".png":
                raise UsageError(f"cannot write {str(path)!r}: expected a file that ends in .png")
            if path is not None:
                check_writable(path)
        self.preview, self.strip, self.show, self.store, self.own = preview, strip, show, store, own
        self.numbers: Sequence[int] = ()
        self.frames: dict[int, list[Tensor]] = {}
        self.shown = time.monotonic() - EVERY

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        from convoscope.cli.terminal import note

        if kind is not None and issubclass(kind, KeyboardInterrupt) and self.store is not None and self.store.is_dir():
            note(f"stopped; the same command goes on from what is done ({self.store})")
        elif kind is None and self.own and self.store is not None and self.store.is_dir():
            for path in self.store.glob("*.attack.safetensors"):
                path.unlink(missing_ok=True)
            with suppress(OSError):
                self.store.rmdir()

    @property
    def watch(self) -> "Callable[[Tensor, Tensor], None] | None":
        """What an attack shows its pictures to, where anybody asked."""
        return self._watch if self.preview is not None or self.strip is not None else None

    @property
    def files(self) -> list[Path]:
        """What was written."""
        return [p for p in (self.strip, self.preview) if p is not None and p.is_file()]

    def kept(
        self, network: "Network", x: "Tensor", method: Any, goals: Any, job: dict[str, Any], numbers: Sequence[int],
        make: "Callable[[], Attack]",
    ) -> "Attack":  # fmt: skip
        """What `make` gives, or what an earlier run of the same command has kept of it."""
        import torch

        from convoscope.core.errors import LoadError
        from convoscope.data.sealed import read_sealed, write_sealed
        from convoscope.files import make_folder
        from convoscope.synthesis.adversarial_result import Attack

        self.numbers = numbers
        if self.store is None:
            return make()
        said = json.dumps([network.hash, method.to_dict(), goals, job, list(x.shape)], sort_keys=True, default=str)
        digest = hashlib.blake2b(said.encode(), digest_size=8)
        digest.update(memoryview(x.detach().cpu().contiguous().numpy()).cast("B"))
        path = self.store / f"{digest.hexdigest()}.attack.safetensors"
        steps = path.with_name(f"{digest.hexdigest()}.steps.attack.safetensors")
        frames = None if self.strip is None else read_sealed(steps)
        if path.is_file() and (self.strip is None or frames is not None):
            with suppress(LoadError):
                found = Attack.load(path, network)
                self.frames |= {} if frames is None else {int(n): list(f) for n, f in frames[0].items()}
                return found
        made = make()
        make_folder(self.store)
        if self.strip is not None:
            write_sealed(steps, {str(n): torch.stack(self.frames[n]) for n in numbers if n in self.frames})
        made.save(path)
        return made

    def _watch(self, rows: "Tensor", pixels: "Tensor") -> None:
        for row, picture in zip(rows.tolist(), pixels.detach(), strict=True):
            number = self.numbers[row]
            if self.strip is not None and number < self.show:
                self.frames.setdefault(number, []).append(picture.mul(255).round().byte().cpu())
        if self.preview is not None and time.monotonic() - self.shown >= EVERY:
            from convoscope.files import replaced
            from convoscope.synthesis.drawing import contact

            with replaced(self.preview) as partial:
                contact(pixels).save(partial, format="PNG")
            self.shown = time.monotonic()

    def write(self, names: Sequence[str]) -> None:
        """The strip of how the first pictures came to be."""
        if self.strip is None or not self.frames:
            return
        from convoscope.files import replaced
        from convoscope.show import strip
        from convoscope.synthesis.drawing import colored

        groups = []
        for number, frames in sorted(self.frames.items()):
            steps = sorted({round(k * (len(frames) - 1) / (MOST - 1)) for k in range(MOST)})
            tiles = [strip.Tile(colored(frames[s]), f"step {s}", smooth=True) for s in steps]
            groups.append(strip.Group(names[number] if number < len(names) else "", [strip.Grid(tiles, len(tiles))]))
        with replaced(self.strip) as partial:
            strip.figure(strip.Strip("How they came to be", groups, side=96)).save(partial, format="PNG")
