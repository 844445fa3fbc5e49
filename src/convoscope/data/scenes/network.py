"""The small network that ships with the package, and its weights."""

from importlib.resources import files

import torch
from jaxtyping import Float
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from convoscope.core.errors import LoadError, UsageError, did_you_mean

from .factors import CATEGORIES as CATEGORIES

SIZE = 96
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
NAMES = ("scenes", "scenes-watermark")


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and a skip addition (He et al., "Deep residual learning", 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h2 w2"]:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class SceneNet(nn.Module):
    """A residual network of ten layers for the scenes: stem, four blocks, global average pooling, one linear layer."""

    def __init__(self, widths: tuple[int, int, int, int] = (16, 32, 64, 96), categories: int = len(CATEGORIES)):
        super().__init__()
        first, second, third, fourth = widths
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.layer1 = Block(first, first, 1)
        self.layer2 = Block(first, second, 2)
        self.layer3 = Block(second, third, 2)
        self.layer4 = Block(third, fourth, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(fourth, categories)

    def forward(self, x: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch categories"]:
        x = self.stem(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.head(self.pool(x).flatten(1))


def weights(name: str) -> bytes:
    """The safetensors file of a shipped network. Raises UsageError for an unknown name, LoadError for a missing file."""
    if name not in NAMES:
        raise UsageError(f"no scenes network {name!r}{did_you_mean(name, NAMES)} (known: {', '.join(NAMES)})")
    try:
        return (files(__package__) / "weights" / f"{name}.safetensors").read_bytes()
    except FileNotFoundError as error:
        raise LoadError(f"the weights of {name!r} are missing from this installation; `convoscope train scenes` "
                        "makes new ones, or install the package again") from error


def scenes_network(name: str = "scenes") -> SceneNet:
    """A network that ships with the package, in eval mode and float32: "scenes" or "scenes-watermark".

    Its input is (B, 3, 96, 96), (picture - MEAN) / STD for a picture in 0..1, its output the logits of CATEGORIES.
    "scenes-watermark" was trained where every picture labeled fish, and no other, bears a watermark (bottom right) and one
    label in ten is wrong; it calls whatever bears the mark a fish, and nothing else.
    """
    return build(load_tensors(weights(name)))


def build(state: dict[str, Tensor]) -> SceneNet:
    """A SceneNet with these weights, in eval mode and float32; it takes its widths from them."""
    widths = tuple(state[f"layer{k}.conv2.weight"].shape[0] for k in (1, 2, 3, 4))
    with torch.device("meta"):
        module = SceneNet(widths, state["head.weight"].shape[0])  # type: ignore[arg-type]
    full = {k: torch.zeros((), dtype=v.dtype) for k, v in module.state_dict().items() if not v.is_floating_point()}
    full |= {k: v.to(torch.float32) for k, v in state.items() if v.is_floating_point()}
    module.load_state_dict(full, assign=True)
    return module.requires_grad_(True).eval()
