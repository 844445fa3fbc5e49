"""The scenes: small pictures drawn by rule, of which everything is known.

`Scenes` is the data set, `render(factors)` draws one picture with its exact label maps, `scenes_network` gives the
network that ships with the package. Drawing needs NumPy alone; the data set and the networks need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dataset import Scenes
    from .drawing import Faults, draw_factors
    from .export import write_folder
    from .factors import (
        CATEGORIES,
        COLORS,
        CORNERS,
        DISTRACTOR_KINDS,
        LIGHTS,
        MATERIALS,
        SCENES,
        TEXTURES,
        Distractor,
        Factors,
        part_shapes,
    )
    from .network import MEAN, SIZE, STD, SceneNet, scenes_network
    from .rendering import MAPS, NAMES, Sample, render
    from .training import evaluate, train

_HOMES = {
    "dataset": ("Scenes",),
    "drawing": ("Faults", "draw_factors"),
    "export": ("write_folder",),
    "factors": ("CATEGORIES", "COLORS", "CORNERS", "DISTRACTOR_KINDS", "LIGHTS", "MATERIALS", "SCENES", "TEXTURES",
                "Distractor", "Factors", "part_shapes"),
    "network": ("MEAN", "SIZE", "STD", "SceneNet", "scenes_network"),
    "rendering": ("MAPS", "NAMES", "Sample", "render"),
    "training": ("evaluate", "train"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CATEGORIES", "COLORS", "CORNERS", "DISTRACTOR_KINDS", "LIGHTS", "MAPS", "MATERIALS", "MEAN", "NAMES", "SCENES", "SIZE",
    "STD", "TEXTURES", "Distractor", "Factors", "Faults", "Sample", "SceneNet", "Scenes", "draw_factors", "evaluate",
    "part_shapes", "render", "scenes_network", "train", "write_folder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
