"""Networks by name: from the package, from torchvision and timm, from files of weights."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convoscope.core.errors import LoadError, UsageError, did_you_mean
from convoscope.network import Network

SHIPPED = ("scenes", "scenes-watermark")
LIBRARIES = ("torchvision", "timm")
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_NESTED = ("state_dict", "model_state_dict", "model", "net", "ema", "weights")


def load_network(
    name: str, *, weights: str | None = "default", arch: str | None = None, classes: int | None = None,
    allow_partial: bool = False, progress: Callable[[str], None] | None = None,
) -> Network:  # fmt: skip
    """See `convoscope.load`. `classes` sets the number of classes of an architecture; `progress` receives lines of text."""
    if not isinstance(name, str):
        raise UsageError(
            f"a network is loaded by name; got {type(name).__name__}; wrap a module with convoscope.Network(module, ...)"
        )
    library, _, model = name.partition(":")
    if name in SHIPPED:
        return _shipped(name)
    if library in LIBRARIES and model:
        return (_torchvision if library == "torchvision" else _timm)(model, weights, classes)
    path = Path(name).expanduser()
    if path.suffix.lower() in (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".th") or path.is_file():
        return _file(path, arch, classes, allow_partial, progress or _say)
    known = [*SHIPPED, *(f"{lib}:NAME" for lib in LIBRARIES), "a file of weights"]
    raise UsageError(f"no network {name!r}{did_you_mean(name, SHIPPED)} (known: {', '.join(known)})")


def import_torchvision() -> Any:
    """torchvision, also where its compiled operators do not fit the installed torch (a CPU torch beside the default build).

    Its networks do not need those operators; only their declarations are missing, and are made here.
    """
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    try:
        import torchvision
    except ModuleNotFoundError as error:
        raise UsageError("torchvision is not installed; pip install 'convoscope[torchvision]'") from error
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise LoadError(f"torchvision could not be imported: {error}") from error
        for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_torchvision.declared = library  # type: ignore[attr-defined]  # declarations live as long as this object
        import torchvision
    return torchvision


def _torchvision(model: str, weights: str | None, classes: int | None) -> Network:
    models = import_torchvision().models
    if model not in models.list_models():
        raise UsageError(f"torchvision has no network {model!r}{did_you_mean(model, models.list_models())}")
    settings: dict[str, Any] = {"num_classes": classes} if classes else {}
    if model in ("googlenet", "inception_v3") and weights is None:
        settings["init_weights"] = False
    choice = None
    known = models.get_model_weights(model)
    if weights == "default":
        choice = known.DEFAULT
        local = [w for w in known if (Path(torch.hub.get_dir()) / "checkpoints" / Path(w.url).name).is_file()]
        choice = choice if choice in local or not local else local[0]
    elif weights is not None:
        if weights not in known.__members__:
            raise UsageError(f"torchvision:{model} has no weights {weights!r}{did_you_mean(weights, known.__members__)}")
        choice = known[weights]
    try:
        module = models.get_model(model, weights=choice, **settings).eval()
    except OSError as error:
        raise LoadError(
            f"the weights of torchvision:{model} could not be downloaded ({error}); set TORCH_HOME to a folder that has them, or weights=None"
        ) from error
    transform = (choice or known.DEFAULT).transforms()
    size, mean, std = tuple(transform.crop_size * 2)[:2], transform.mean, transform.std
    categories = choice.meta.get("categories") if choice is not None else None
    full = f"torchvision:{model}" + ("" if choice is not None else " (random weights)")
    return Network(
        module, size, mean, std, categories, name=full, transform=transform, output="out" if "out" in _outputs(choice) else None
    )


def _outputs(choice: Any) -> tuple[str, ...]:
    return ("out",) if choice is not None and "Segmentation" in type(choice.transforms.func).__name__ else ()


def _timm(model: str, weights: str | None, classes: int | None) -> Network:
    import_torchvision()
    try:
        import timm
        from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
    except ModuleNotFoundError as error:
        raise UsageError("timm is not installed; pip install 'convoscope[timm]'") from error
    if not timm.is_model(model.split(".")[0]):
        raise UsageError(f"timm has no network {model!r}{did_you_mean(model, timm.list_models())}")
    settings: dict[str, Any] = {"num_classes": classes} if classes else {}
    try:
        module = timm.create_model(model, pretrained=weights is not None, **settings).eval()
    except (OSError, RuntimeError) as error:
        raise LoadError(f"the weights of timm:{model} could not be loaded ({error}); weights=None gives random ones") from error
    config = resolve_model_data_config(module)
    transform = create_transform(**config, is_training=False)
    categories = None
    if weights is not None and getattr(module, "num_classes", 0) == 1000:
        info = ImageNetInfo()
        categories = [info.index_to_description(i) for i in range(1000)]
    full = f"timm:{model}" + ("" if weights is not None else " (random weights)")
    return Network(
        module, tuple(config["input_size"][1:]), config["mean"], config["std"], categories, name=full, transform=transform
    )


def _shipped(name: str) -> Network:
    from convoscope.data import scenes

    return Network(scenes.scenes_network(name), scenes.SIZE, scenes.MEAN, scenes.STD, scenes.CATEGORIES, name=name)


# ---- files of weights
@dataclass(frozen=True)
class Match:
    """How the names in a file met those of a network."""

    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.reshaped)

    def __str__(self) -> str:
        parts = [f"{self.matched} matched"]
        for word, names in (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.reshaped)):
            parts.append(
                f"{len(names)} {word}" + (f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "")
            )
        return ", ".join(parts)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _file(path: Path, arch: str | None, classes: int | None, allow_partial: bool, progress: Callable[[str], None]) -> Network:
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}")
    if arch is None:
        raise UsageError(
            f"{path.name} holds weights only; say which network they are for with arch='torchvision:resnet18' (--arch)"
        )
    state = read_state(path)
    if classes is None:
        classes = _classes(state)
    network = load_network(arch, weights=None, classes=classes) if arch not in SHIPPED else load_network(arch)
    match = load_state(network.module, state)
    progress(f"{path.name}: {match}")
    if not match.complete and not allow_partial:
        raise LoadError(
            f"{path.name} does not fit {arch}: {match}; choose another arch, or allow_partial=True (--allow-partial) to use what fits"
        )
    network.name = f"{path.name} ({arch})"
    return network


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a `.safetensors` or state-dict file. Raises LoadError; never unpickles code."""
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "weights_only" in str(error) or "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise LoadError(
                f"{path.name} holds pickled Python objects, and loading those would run code from the file; save only the tensors "
                "(torch.save(model.state_dict(), path)) or convert it to .safetensors where you trust it"
            ) from error
        raise LoadError(f"{path.name} is not a file of weights: {line}") from error
    return unwrapped(found, path.name)


def unwrapped(found: Any, name: str = "the file") -> dict[str, Tensor]:
    """The state dict inside nested checkpoints, with the prefixes of wrappers removed from every name."""
    while isinstance(found, Mapping) and not any(isinstance(v, Tensor) for v in found.values()):
        inner = next((found[k] for k in _NESTED if isinstance(found.get(k), Mapping)), None)
        if inner is None:
            raise LoadError(f"{name} holds no tensors by name; its entries are {', '.join(map(str, list(found)[:8]))}")
        found = inner
    if not isinstance(found, Mapping):
        raise LoadError(f"{name} holds a {type(found).__name__}, not tensors by name")
    state = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
    return state


def load_state(module: nn.Module, state: dict[str, Tensor]) -> Match:
    """Copies what fits into the module, trying the names without the prefixes of wrappers; says what fitted."""
    own = module.state_dict()
    stripped = state
    for _ in range(3):
        prefix = next(
            (
                p
                for p in _WRAPPERS
                if stripped and all(k.startswith(p) for k in stripped) and not any(k.startswith(p) for k in own)
            ),
            None,
        )
        if prefix is None:
            break
        stripped = {k.removeprefix(prefix): v for k, v in stripped.items()}
    fitting = {k: v for k, v in stripped.items() if k in own and v.shape == own[k].shape}
    reshaped = tuple(
        f"{k}: {tuple(v.shape)} for {tuple(own[k].shape)}" for k, v in stripped.items() if k in own and v.shape != own[k].shape
    )
    module.load_state_dict(fitting, strict=False)
    # Counters of batches seen do not enter evaluation, and older files lack them.
    missing = tuple(k for k in own if k not in stripped and not k.endswith("num_batches_tracked"))
    return Match(len(fitting), missing, tuple(k for k in stripped if k not in own), reshaped)


def _classes(state: dict[str, Tensor]) -> int | None:
    last = [v for k, v in state.items() if k.endswith("weight") and v.dim() == 2]
    return int(last[-1].shape[0]) if last else None
