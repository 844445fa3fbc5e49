"""Pictures that a generator makes: what is optimized is its code."""

import math
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.spec import AtLeast, Paper
from convoscope.data.tensors import fit
from convoscope.images.base import Draws, Image, Parameters, PixelRows, Space
from convoscope.images.generator import load_generator, recall


class Code(Image):
    """The code of a generator is optimized, so that pictures stay among those it can make.

    Codes of features (DGN-AM) are multiplied by `decay` after each step and kept within the bounds of each entry, from 0 to
    three deviations over its mean over data; a step has the same mean length for all (`optimizer="normalized"`), first a
    fifth of their deviation and falling to nothing, in place of the paper's 8 for CaffeNet's fc6. Codes of a GAN, which was
    trained on N(0, I), are brought back to the shell where nearly all of that lies, |z| = sqrt(d). The pictures of the
    generator are resized to cover `size` and cropped.
    """

    paper: ClassVar[Paper | None] = Paper(
        "nguyen2016synthesizing", "Nguyen, Anh and Dosovitskiy, Alexey and Yosinski, Jason and Brox, Thomas and Clune, Jeff",
        "Synthesizing the preferred inputs for neurons in neural networks via deep generator networks", "NeurIPS", 2016,
        "1605.09304",
    )  # fmt: skip
    generator: Annotated[Any, "a Generator, the name of one that ships (scenes), or the file of one"] = "scenes"
    size: Annotated[int | tuple | None, "side in pixels, (height, width), or None for the network's own"] = None
    keep: Annotated[
        Literal["bounds", "shell", "ball", "nothing"] | None, "what codes are kept in; None: as the generator was trained"
    ] = None
    decay: Annotated[float | None, "codes are multiplied by this after each step; None: 0.99, for a GAN 1"] = None
    spread: Annotated[float, "start: standard deviations around the mean code", AtLeast(0)] = 1.0

    def __post_init__(self) -> None:
        given = self.generator
        made = recall(given["reference"], given["hash"]) if isinstance(given, dict) else load_generator(given)
        object.__setattr__(self, "generator", made)
        super().__post_init__()
        if self._keeps == "bounds" and made.bounds is None:
            raise UsageError(
                f"{made.reference} is no generator of features and has no bounds; expected keep='shell' or 'nothing'"
            )

        if made.prior == "features":
            object.__setattr__(self, "optimizer", "normalized")
            object.__setattr__(self, "rate", (0.2 * float(made.deviation.mean()) or 0.2, 1e-10))

    @property
    def _keeps(self) -> str:
        return self.keep or ("bounds" if self.generator.prior == "features" else "shell")

    def to_dict(self) -> dict[str, Any]:
        """This image as JSON values: of the generator its file or name and the hash of its weights."""
        plain = replace(self)
        object.__setattr__(plain, "generator", {"reference": self.generator.reference, "hash": self.generator.hash})
        return super(Code, plain).to_dict()

    # ---- Image
    def begin(self, space: Space, draws: Draws) -> Parameters:
        """Codes at random: N(0, I) for a GAN, the mean of the data and `spread` deviations around it for features."""
        code = draws.normal(self.generator.code, "start") * self.spread
        if self.generator.mean is not None and self.generator.deviation is not None:
            code = self.generator.mean.to(code) + self.generator.deviation.to(code) * code
        parameters = {"code": code}
        self._confine(parameters["code"])
        return parameters

    def pixels(self, parameters: Parameters, space: Space) -> PixelRows:
        """The generator's pictures at the network's size and channels."""
        code = parameters["code"]
        # On the shell only directions count, also to gradients: an optimizer that scales them would else stop elsewhere.
        made = self.generator(_on_shell(code) if self._keeps == "shell" else code)
        return _channels(made if tuple(made.shape[2:]) == space.size else fit(made, space.size), space.channels)

    def encode(self, pixels: PixelRows, space: Space) -> Parameters:
        """Codes whose pictures come near these pixels: 200 steps of Adam on the squared error."""
        with torch.inference_mode(False), torch.enable_grad():
            aim = pixels.detach().clone()
            start, scale = self._middle(torch.zeros(len(aim), *self.generator.code, device=space.device, dtype=space.dtype))
            shift = torch.zeros_like(start).requires_grad_()
            optimizer = torch.optim.Adam([shift], 0.05, foreach=False)
            for _ in range(200):
                error = (self.pixels({"code": start + scale * shift}, space) - aim).square().flatten(1).mean(1).sum()
                (shift.grad,) = torch.autograd.grad(error, [shift])
                optimizer.step()
            code = (start + scale * shift).detach()
        self._confine(code)
        return {"code": code}

    def _middle(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Codes to begin a search at, and how far to look: mean and deviation of features; on the shell, which has no middle,
        any one place."""
        mean, deviation = self.generator.mean, self.generator.deviation
        if mean is not None and deviation is not None:
            return like + mean.to(like), like + deviation.to(like)
        drawn = torch.randn(self.generator.code, generator=torch.Generator().manual_seed(0))
        return like + (drawn.to(like) if self._keeps == "shell" else 0), like + 1

    def settle(self, parameters: Parameters, space: Space, step: int) -> None:
        decay = (0.99 if self.generator.prior == "features" else 1.0) if self.decay is None else self.decay
        if decay != 1:
            parameters["code"].mul_(decay)
        self._confine(parameters["code"])

    @torch.no_grad()
    def _confine(self, code: Float[Tensor, "rows ..."]) -> None:
        """Codes back to where the generator knows them, in place."""
        if self._keeps == "bounds":
            low, high = self.generator.bounds
            code.copy_(torch.minimum(torch.maximum(code, low.to(code)), high.to(code)))
        elif self._keeps == "shell":
            code.copy_(_on_shell(code))
        elif self._keeps == "ball":
            shell = _on_shell(code)
            within = code.flatten(1).norm(dim=1) <= shell.flatten(1).norm(dim=1)
            code.copy_(torch.where(within.view(-1, *[1] * (code.dim() - 1)), code, shell))


def _on_shell(code: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
    """Codes of the same direction and the length that nearly all of N(0, I) has."""
    length = code.flatten(1).norm(dim=1).clamp(min=torch.finfo(code.dtype).tiny)
    return code * (math.sqrt(code[0].numel()) / length).view(-1, *[1] * (code.dim() - 1))


def _channels(pixels: PixelRows, channels: int) -> PixelRows:
    """Pictures in as many channels as a network takes: gray to color and back. Raises UsageError for anything else."""
    if pixels.shape[1] == channels:
        return pixels
    if pixels.shape[1] == 1 and channels == 3:
        return pixels.expand(-1, channels, -1, -1)
    if pixels.shape[1] == 3 and channels == 1:
        return pixels.mean(1, keepdim=True)
    raise UsageError(f"the generator makes pictures of {pixels.shape[1]} channels, the network takes {channels}")
