"""The networks and pictures that methods are measured on."""

import os
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convoscope as cs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILES = {"resnet18": "resnet18-f37072fd.pth", "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth"}
LAYERS = {"resnet18": "layer4", "squeezenet1_1": "features.12", "vgg16": "features.29"}
DEEPER = {"resnet18": ("layer1", "layer2", "layer3", "layer4"), "squeezenet1_1": ("features.5", "features.8", "features.12"),
          "vgg16": ("features.15", "features.22", "features.29")}  # fmt: skip


def network(name: str) -> tuple[nn.Module, str]:
    """The network in evaluation mode, with the weights of ImageNet if `TORCH_HOME` holds them, and which it has."""
    from convoscope.loading import import_torchvision

    torch.manual_seed(0)
    module = import_torchvision().models.get_model(name, weights=None)
    file = Path(os.environ.get("TORCH_HOME", ""), "hub", "checkpoints", FILES.get(name, "-"))
    if file.is_file():
        module.load_state_dict(torch.load(file, weights_only=True))
    elif any(isinstance(m, nn.BatchNorm2d) for m in module.modules()):
        with torch.no_grad():  # statistics that keep the signal alive
            for _ in range(3):
                module(torch.randn(8, 3, 64, 64))
    return module.eval(), "weights of ImageNet" if file.is_file() else "random weights"


def pictures(count: int, size: int) -> Tensor:
    """Scenes of the package, enlarged and normalized: pictures with edges and areas, the same everywhere."""
    from convoscope.data.scenes import Scenes

    drawn = torch.stack([Scenes(count, seed=5, size=128)[k][0] for k in range(count)])
    drawn = torch.nn.functional.interpolate(drawn, (size, size), mode="bilinear", align_corners=False)
    return (drawn - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


@dataclass
class Bench:
    """What a library gets: a network of its own, since some change it, the images, the class, and how much work to do."""

    name: str
    module: nn.Module
    x: Tensor
    target: int
    steps: int = 32
    samples: int = 8
    masks: int = 196
    window: int = 16
    stride: int = 8
    rows: int = 8  # images per pass, where a library lets one choose; about the fastest here for all of them
    best: dict[Any, Any] = field(default_factory=dict)  # what was found out in the run

    @property
    def layer(self) -> str:
        return LAYERS[self.name]

    @property
    def place(self) -> nn.Module:
        return self.module.get_submodule(self.layer)

    @property
    def one(self) -> Tensor:
        return self.x[:1]

    @property
    def start(self) -> Tensor:
        """A baseline that is not zero: black, in input space."""
        black = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)]).view(1, 3, 1, 1)
        return black.expand_as(self.x[:1]).contiguous()

    @property
    def data(self) -> Tensor:
        """Four other pictures, as baselines."""
        return pictures(8, self.x.shape[-1])[4:]

    @property
    def regions(self) -> Tensor:
        """49 equal squares `(1, H, W)`, numbered from 0."""
        cells = torch.arange(self.x.shape[-1]) * 7 // self.x.shape[-1]
        return (cells[:, None] * 7 + cells)[None]

    def copy(self) -> "Bench":
        """The same, with a network and images of its own."""
        return Bench(**{**vars(self), "module": deepcopy(self.module), "x": self.x.clone(), "best": {}})

    def unit(self) -> Tensor:
        """One forward and backward pass of all images."""
        leaf = self.x.detach().clone().requires_grad_()
        return torch.autograd.grad(self.module(leaf)[:, self.target].sum(), leaf)[0]

    def network(self) -> cs.Network:
        return cs.Network(self.module, size=self.x.shape[-1], mean=MEAN, std=STD)
