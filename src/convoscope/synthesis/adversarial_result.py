"""What an attack returns: the images, what the network says of them, and how large the changes are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from convoscope.core.errors import LoadError, UsageError
from convoscope.core.spec import Spec
from convoscope.data.sealed import open_sealed
from convoscope.network import Network, Prediction

if TYPE_CHECKING:
    from PIL import Image

Images = Float[Tensor, "images channels height width"]
Numbers = Float[Tensor, "images"]
FORMAT = "convoscope.attack/1"


@dataclass(eq=False)
class Attack:
    """Adversarial images with what made them.

    `inputs` are in the network's input space, `pixels` and `clean` in 0..1. `before` and `after` are the probabilities of all
    classes, `saved` those of the images rounded to the 256 levels of a picture file. `success` says which reached the goal,
    `saved_success` which still do so when rounded. `goal` is the class to go to, or, untargeted, the class to leave. `linf`
    and `l2` are norms of the perturbation in pixels. `evaluations` counts passes of one image. Of a
    universal perturbation, `universal` is it, the images are held-out ones, and `notes` has the fooling rates.
    """

    method: Spec
    network: Network
    inputs: Images
    pixels: Images
    clean: Images
    before: Float[Tensor, "images classes"]
    after: Float[Tensor, "images classes"]
    saved: Float[Tensor, "images classes"]
    success: Bool[Tensor, " images"]
    saved_success: Bool[Tensor, " images"]
    goal: Int64[Tensor, " images"]
    targeted: bool
    linf: Numbers
    l2: Numbers
    seed: int
    evaluations: int
    seconds: float
    notes: dict[str, Any] | None = None
    universal: Float[Tensor, "channels height width"] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        return (
            f"Attack({self.method}: {int(self.success.sum())} of {len(self)} images reached the goal, "
            f"{int(self.saved_success.sum())} as 8-bit pictures; linf at most {float(self.linf.max()):.3g}, "
            f"l2 {float(self.l2.mean()):.3g} on average)"
        )

    @property
    def perturbation(self) -> Images:
        """The change of each image, in pixels."""
        return self.pixels - self.clean

    def predictions(self, which: str = "after", top: int = 1) -> list[list[Prediction]]:
        """The `top` classes of each image "before", "after", or "saved", with their probabilities."""
        if which not in ("before", "after", "saved"):
            raise UsageError(f"predictions are those before, after or saved; got {which!r}")
        best = getattr(self, which).double().topk(min(top, self.after.shape[1]), 1)
        return [
            [Prediction(i, self.network.category(i), p) for i, p in zip(index.tolist(), value.tolist(), strict=True)]
            for index, value in zip(best.indices, best.values, strict=True)
        ]

    def picture(self, index: int = 0) -> "Image.Image":
        """An adversarial image as a picture of 8 bits, pixel for pixel: what `saved_success` is about."""
        from PIL import Image

        pixels = (self.pixels[index] * 255).round().to(torch.uint8).cpu().permute(1, 2, 0).numpy()
        if pixels.shape[2] not in (1, 3):
            raise UsageError(f"images of {pixels.shape[2]} channels make no picture; their values are in `pixels`")
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)

    def image(self, index: int | None = None) -> "Image.Image":
        """Original, perturbation (magnified) and adversarial image with what the network says; one, or one row each."""
        from convoscope.synthesis.adversarial_figure import figure_of

        return figure_of(self, rows=None if index is None else [index])

    def save(self, path: str | Path) -> Path:
        """Writes the figure (`.png`), a page (`.html`), or the tensors and what made them (`.safetensors`); whole or absent."""
        from convoscope.synthesis.adversarial_figure import save

        return save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, network: Network) -> "Attack":
        """What `save` wrote as `.safetensors`. Raises LoadError for another or damaged file, or an attack on other weights."""
        tensors, said = open_sealed(path, "attack", FORMAT)
        made = json.loads(said["made"])
        if made["network"]["hash"] != network.hash:
            raise LoadError(f"{str(path)!r} is an attack on other weights than those of {network.name}")
        tensors.pop("perturbation")
        told = {name: made[name] for name in ("targeted", "seed", "evaluations", "seconds")}
        return cls(Spec.from_dict(made["method"]), network, **tensors, **told, notes=made["notes"] or None)

    def _repr_html_(self) -> str:
        from convoscope.synthesis.adversarial_figure import fragment

        return fragment(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON values."""
        said = {w: self.predictions(w) for w in ("before", "after", "saved")}
        return {
            "format": FORMAT,
            "method": self.method.to_dict(),
            "network": {"name": self.network.name, "hash": self.network.hash},
            "targeted": self.targeted,
            "seed": self.seed,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "images": [
                {
                    "goal": {"index": int(self.goal[i]), "category": self.network.category(int(self.goal[i]))},
                    "success": bool(self.success[i]),
                    "success_as_8_bit_picture": bool(self.saved_success[i]),
                    "linf": float(self.linf[i]),
                    "l2": float(self.l2[i]),
                    **{w: said[w][i][0]._asdict() for w in said},
                }
                for i in range(len(self))
            ],
            "notes": self.notes or {},
        }

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, on the CPU."""
        names = ("inputs", "pixels", "clean", "before", "after", "saved", "success", "saved_success", "goal", "linf", "l2")
        found = {n: getattr(self, n) for n in names} | {"perturbation": self.perturbation}
        found |= {} if self.universal is None else {"universal": self.universal}
        return {n: t.detach().cpu().contiguous() for n, t in found.items()}

    def metadata(self) -> dict[str, str]:
        """What made them, for the header of a file."""
        return {"format": FORMAT, "made": json.dumps(self.to_dict(), sort_keys=True)}
