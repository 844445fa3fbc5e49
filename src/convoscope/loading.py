"""Networks by name: from the package, from torchvision and timm, from files of weights."""

import inspect
import re
import ssl
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convoscope.core.errors import ConvoscopeError, LoadError, UsageError, did_you_mean
from convoscope.data.checkpoints import check_file, plain_tensors
from convoscope.network import Network

SHIPPED = ("scenes", "scenes-watermark")
LIBRARIES = ("torchvision", "timm")
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".th", ".tar")
_WRAPPERS = re.compile(r"(module|model|net|_orig_mod)\.")
_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "model_ema", "ema", "weights")
_PATIENCE = 4.0  # seconds until a server counts as out of reach
_UNREAD = {
    "ObjectDetection": "detects objects and returns lists of boxes",
    "VideoClassification": "takes videos",
    "OpticalFlow": "takes pairs of pictures",
}


def load(
    name: str, *, weights: str | None = "default", arch: str | None = None, classes: int | None = None,
    categories: Sequence[str] | None = None, allow_partial: bool = False, progress: Callable[[str], None] | None = None,
) -> Network:  # fmt: skip
    """A network by name.

    `"scenes"` and `"scenes-watermark"` ship with the package; `"torchvision:resnet18"` and `"timm:resnet18"` come from
    those libraries with their weights, transforms and category names; a path to a `.safetensors` or state-dict file needs
    `arch="torchvision:resnet18"`. `weights=None` gives random weights; `allow_partial=True` accepts a file that does not
    match completely, `classes` sets the number of classes, `progress` receives lines of text (default: they go to stderr).
    Raises UsageError for an unknown name, LoadError for weights that cannot be loaded.
    """
    if not isinstance(name, str | Path):
        raise UsageError(
            f"a network is loaded by name; got {type(name).__name__}; wrap a module with convoscope.Network(module, ...)"
        )
    library, _, model = str(name).partition(":")
    path = Path(name).expanduser()
    if name in SHIPPED or (library in LIBRARIES and model):
        if arch is not None:
            raise UsageError(f"arch={arch!r} says which network a file of weights is for; {name!r} is a network itself")
        network = _named(str(name), weights, classes)
    elif path.suffix.lower() in SUFFIXES or path.is_file():
        network = _file(path, arch, classes, allow_partial, progress or _say)
    else:
        known = ", ".join([*SHIPPED, *(f"{lib}:NAME" for lib in LIBRARIES), "a file of weights"])
        hint = did_you_mean(str(name), SHIPPED)
        if not hint and re.fullmatch(r"[a-z]\w+", str(name)):
            hint = f"; write torchvision:{name} or timm:{name} for a network of those libraries"
        raise UsageError(f"no network {str(name)!r}{hint} (known: {known})")
    if categories is not None:
        network.categories = tuple(categories)
    return network


def _named(name: str, weights: str | None, classes: int | None, file: str = "") -> Network:
    library, _, model = name.partition(":")
    if name in SHIPPED:
        if weights != "default" or classes is not None:
            raise UsageError(f"{name!r} comes with its own weights and categories; for others load a file with arch={name!r}")
        return _scenes(name)
    if classes is not None and weights is not None:
        raise UsageError(f"classes={classes} makes a new last layer: add weights=None, or load a file with arch={name!r}")
    return (_torchvision if library == "torchvision" else _timm)(model, weights, classes, file)


def _scenes(name: str, module: nn.Module | None = None) -> Network:
    from convoscope.data import scenes

    module = scenes.scenes_network(name) if module is None else module
    return Network(module, scenes.SIZE, scenes.MEAN, scenes.STD, scenes.CATEGORIES, name=name)


# ---- torchvision
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


def _torchvision(model: str, weights: str | None, classes: int | None, file: str) -> Network:
    models = import_torchvision().models
    if model not in models.list_models():
        raise UsageError(f"torchvision has no network {model!r}{did_you_mean(model, models.list_models())}")
    known = models.get_model_weights(model)
    of_file = next((w for w in known if Path(w.url).name == file), None)
    transform = (of_file or known.DEFAULT).transforms()
    unread = _UNREAD.get(type(transform).__name__, "is quantized and has no gradients" if "quantized_" in model else "")
    if unread:
        raise UsageError(f"torchvision:{model} {unread}; convoscope opens networks that take one picture and return numbers")
    choice = None if weights is None else _weights_of(model, known, weights)
    module = _build(models, model, choice, classes, of_file is not None)
    transform = choice.transforms() if choice is not None else transform
    size = tuple((getattr(transform, "crop_size", None) or transform.resize_size) * 2)[:2]
    full = f"torchvision:{model}"
    if choice is not known.DEFAULT:
        full += " (random weights)" if choice is None else f" ({choice.name})"
    categories = None if (choice or of_file) is None else (choice or of_file).meta.get("categories")
    return Network(module, size, transform.mean, transform.std, categories, name=full, transform=transform)


def _weights_of(model: str, known: Any, weights: str) -> Any:
    """The member of torchvision's weights, by default the best ones, or those that are in the cache where the best are not."""
    if weights not in ("default", *known.__members__):
        raise UsageError(
            f"torchvision:{model} has no weights {weights!r}{did_you_mean(weights, known.__members__)} "
            f"(known: {', '.join(known.__members__)})"
        )
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    local = [w for w in known if (folder / Path(w.url).name).is_file()]
    choice = known[weights] if weights != "default" else known.DEFAULT if known.DEFAULT in local or not local else local[0]
    if choice not in local and (reason := unreachable(choice.url)):
        raise LoadError(
            f"the weights of torchvision:{model} are not in {folder} and cannot be downloaded ({reason}); "
            f"put {Path(choice.url).name} there, set TORCH_HOME to a folder with hub/checkpoints, or use weights=None "
            "(--weights none)"
        )
    return choice


def _build(models: Any, model: str, choice: Any, classes: int | None, as_trained: bool) -> nn.Module:
    settings: dict[str, Any] = {"num_classes": classes} if classes else {}
    if choice is None and model in ("googlenet", "inception_v3"):
        settings |= {"init_weights": False, "transform_input": as_trained}  # torchvision's own weights expect that transform
    if "weights_backbone" in inspect.signature(models.get_model_builder(model)).parameters:
        settings["weights_backbone"] = None
    if choice is None:
        return models.get_model(model, weights=None, **settings).eval()
    try:
        return models.get_model(model, weights=choice, **settings).eval()
    except Exception as error:  # whatever a damaged file or a broken line makes of it
        raise LoadError(
            f"the weights of torchvision:{model} could not be loaded ({_line(error)}); if {Path(choice.url).name} in "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'} is damaged, delete it"
        ) from error


def unreachable(url: str) -> str:
    """Why the server of a file does not answer within a few seconds; empty where it does."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return "" if isinstance(reason, ssl.SSLError) else _line(reason)
    return ""


# ---- timm
def _timm(model: str, weights: str | None, classes: int | None, file: str) -> Network:
    import_torchvision()
    try:
        import timm
        from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_model_data_config
    except ModuleNotFoundError as error:
        raise UsageError("timm is not installed; pip install 'convoscope[timm]'") from error
    plain, _, tag = model.partition(".")
    if not timm.is_model(plain):
        raise UsageError(f"timm has no network {model!r}{did_you_mean(plain, timm.list_models())}")
    tag = weights if weights not in (None, "default") else tag
    tags = [m.partition(".")[2] for m in timm.list_pretrained(f"{plain}.*") + timm.list_pretrained(plain)]
    if tag and tag not in tags:
        raise UsageError(f"timm:{plain} has no weights {tag!r}{did_you_mean(tag, tags)} (known: {', '.join(tags)})")
    model = f"{plain}.{tag}" if tag else plain
    settings: dict[str, Any] = {"num_classes": classes} if classes else {}
    module = timm.create_model(model, **settings).eval() if weights is None else _timm_weights(timm, model)
    config = resolve_model_data_config(module)
    subset = infer_imagenet_subset(module) if weights is not None else None
    info = ImageNetInfo(subset) if subset else None
    categories = [info.index_to_description(i) for i in range(info.num_classes())] if info else None
    full = f"timm:{model}" + ("" if weights is not None else " (random weights)")
    transform = create_transform(**config, is_training=False)
    size = tuple(config["input_size"][1:])
    return Network(module, size, config["mean"], config["std"], categories, name=full, transform=transform)


def _timm_weights(timm: Any, model: str) -> nn.Module:
    config = timm.get_pretrained_cfg(model)
    where = config.hf_hub_id if config is not None else None
    overlay = None
    if where:
        import huggingface_hub
        from huggingface_hub import constants

        names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        cached = [c for n in names if isinstance(c := huggingface_hub.try_to_load_from_cache(where, n), str)]
        overlay = {"file": cached[0]} if cached and not config.custom_load else None
        if not cached and (reason := unreachable(constants.ENDPOINT)):
            raise LoadError(
                f"the weights of timm:{model} are not in the cache of the Hugging Face hub and cannot be downloaded "
                f"({reason}); set HF_HOME to a folder that has them, or use weights=None (--weights none)"
            )
    try:
        return timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    except Exception as error:  # whatever a damaged file or a broken line makes of it
        raise LoadError(
            f"the weights of timm:{model} could not be loaded ({_line(error)}); weights=None (--weights none) gives random ones"
        ) from error


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
        return bool(self.matched) and not (self.missing or self.unexpected or self.reshaped)

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
        near = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise UsageError(f"no file {str(path)!r}{did_you_mean(path.name, near)}")
    if arch is None:
        raise UsageError(
            f"{path.name} holds weights only; say which network they are for with arch='torchvision:resnet18' (--arch)"
        )
    if arch not in SHIPPED and arch.partition(":")[0] not in LIBRARIES:
        raise UsageError(f"no architecture {arch!r}{did_you_mean(arch, SHIPPED)} (known: torchvision:NAME, timm:NAME, scenes)")
    state = read_state(path)
    network = _empty(arch, classes, path.name)
    own = network.module.state_dict()
    state = without_wrappers(state, own)
    if classes is None and (classes := _classes(state, own)) is not None:
        network = _empty(arch, classes, path.name)
    match = load_state(network.module, state)
    progress(f"{path.name}: {match}")
    if not match.matched or not (match.complete or allow_partial):
        raise LoadError(
            f"{path.name} does not fit {arch}: {match}; choose another arch"
            + (", or allow_partial=True (--allow-partial) to use what fits" if match.matched else "")
        )
    network.name = f"{path.name} ({arch}" + ("" if match.complete else ", partly random weights") + ")"
    return network


def _empty(arch: str, classes: int | None, file: str) -> Network:
    if arch not in SHIPPED:
        return _named(arch, None, classes, file)
    from convoscope.data.scenes import SceneNet

    return _scenes(arch, (SceneNet(categories=classes) if classes else SceneNet()).eval())


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a `.safetensors` or state-dict file. Raises LoadError; never unpickles code."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {(error.strerror or str(error)).lower()}") from None
    try:
        check_file(path)
        if path.suffix.lower() == ".safetensors" or start[8:9] == b"{":
            from safetensors.torch import load_file

            return plain_tensors(load_file(path), path.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
        return plain_tensors(unwrapped(found, path.name), path.name)
    except ConvoscopeError:
        raise
    except Exception as error:
        reason = _why_unread(start, str(error)) or f"is not a file of weights: {_line(error)}"
        raise LoadError(f"{path.name} {reason}") from error


def _why_unread(start: bytes, message: str) -> str:
    if not start:
        return "is empty"
    found = re.search(r"GLOBAL\s+(\S+)|Trying to instantiate class (\S+)", message)
    if found or ("weights_only" in message and start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        which = f" ({found[1] or found[2]})" if found else ""
        return (
            f"holds pickled Python objects{which}, and loading those would run code from the file; save only the tensors "
            "(torch.save(model.state_dict(), path)) or convert it to .safetensors where you trust it"
        )
    if "central directory" in message or "Header" in message:
        return "is damaged or not complete"
    if start[:2] != b"PK" and start[:1] != b"\x80":
        return f"is not a file of weights: it starts with {start!r}"
    return ""


def _line(error: Any) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def unwrapped(found: Any, name: str = "the file") -> dict[str, Tensor]:
    """The state dict inside nested checkpoints. Raises LoadError with the entries where there is none."""
    for _ in range(5):
        if not isinstance(found, Mapping):
            raise LoadError(f"{name} holds a {type(found).__name__}, not tensors by name")
        inner = [found[k] for k in _NESTED if isinstance(found.get(k), Mapping)]
        if not inner:
            if any(isinstance(v, Tensor) for v in found.values()):
                return {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
            inner = [v for v in found.values() if isinstance(v, Mapping) and any(isinstance(t, Tensor) for t in v.values())]
        if len(inner) == 0:
            break
        found = inner[0]
    raise LoadError(f"{name} holds no tensors by name; its entries are {', '.join(map(str, list(found)[:8])) or 'none'}")


def without_wrappers(state: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """`state` without the prefixes that wrappers put before names (`module.`, `_orig_mod.`, ...), where more names match."""
    best = current = {k.replace("._orig_mod.", "."): v for k, v in state.items()}
    for _ in range(4):
        shorter = {_WRAPPERS.sub("", k, count=1) if _WRAPPERS.match(k) else k: v for k, v in current.items()}
        if len(shorter) < len(current):
            break
        current = shorter
        if len(current.keys() & own.keys()) > len(best.keys() & own.keys()):
            best = current
    return best


def load_state(module: nn.Module, state: dict[str, Tensor]) -> Match:
    """Copies what fits into the module, trying the names without the prefixes of wrappers; says what fitted."""
    own = module.state_dict()
    state = without_wrappers(state, own)
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    reshaped = tuple(
        f"{k}: {tuple(v.shape)} for {tuple(own[k].shape)}" for k, v in state.items() if k in own and v.shape != own[k].shape
    )
    module.load_state_dict(fitting, strict=False)
    # Counters of batches seen do not enter evaluation, and older files lack them.
    missing = tuple(k for k in own if k not in state and not k.endswith("num_batches_tracked"))
    return Match(len(fitting), missing, tuple(k for k in state if k not in own), reshaped)


def _classes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> int | None:
    """The number of classes in a file that fits but for the length of its last layers; None for any other."""
    lengths = set()
    for key in state.keys() & own.keys():
        a, b = state[key].shape, own[key].shape
        if a != b:
            lengths.add((a[0], b[0]) if len(a) and a[1:] == b[1:] else None)
    found = lengths.pop() if len(lengths) == 1 else None
    return int(found[0]) if found else None
