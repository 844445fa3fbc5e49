"""Options that several commands share, and how a network and a device come out of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convoscope.core.errors import UsageError

if TYPE_CHECKING:
    from convoscope.network import Network
    from convoscope.targets import Target

JSON = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random; the same seed gives the same bytes on a CPU.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ...; by default the CPU.")]


def batch_size_of(value: str | int) -> int | str:
    """`auto`, or a whole number of at least 1."""
    text = str(value)
    if text != "auto" and not (text.isdecimal() and int(text) >= 1):
        raise typer.BadParameter(f"{text!r} is neither 'auto' nor a whole number of at least 1")
    return text if text == "auto" else int(text)


BatchSize = Annotated[
    Any,
    typer.Option(
        metavar="N|auto", parser=batch_size_of, help="Images run at once: less needs less memory; auto: what fits into memory."
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="torchvision:NAME, timm:NAME, scenes, or a file of weights together with --arch.",
    ),
]
ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="torchvision:NAME, timm:NAME, scenes, or a file of weights with --arch."),
]
Arch = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The architecture a file of weights belongs to, such as torchvision:resnet18."),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|none",
        help="Which weights of a library's network; none: random ones. Default: its best.",
    ),
]
Partial = Annotated[bool, typer.Option("--allow-partial", help="Accept weights that fit the architecture only partly.")]


def load_network(
    model: str, arch: str | None = None, weights: str | None = None, partial: bool = False, device: str | None = None
) -> "Network":
    """The network that `--model`, `--arch`, `--weights` and `--allow-partial` name, on `--device`."""
    from convoscope.loading import load

    place = find_device(device)
    settings = {"weights": None if weights.lower() == "none" else weights} if weights else {}
    net = load(model, arch=arch, allow_partial=partial, **settings)
    if place is not None:
        net.module.to(place)
    return net


def find_target(net: "Network", text: str) -> "Target":
    """The target that `--target` names: a class, "top", or a target with its settings, `margin:index=cat,other=dog`."""
    from convoscope.core.spec import parse_spec, registered

    name, colon, _ = text.partition(":")
    return net.target(parse_spec("target", text) if colon and name in registered("target") else text)


def find_device(name: str | None) -> str | None:
    """`name` if this machine has such a device. Raises UsageError with what there is."""
    if name is None:
        return None
    import torch

    there = ["cpu"]
    there += [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    known = {*there, *(n.split(":")[0] for n in there), "cpu:0"}
    if name not in known:
        raise UsageError(f"no device {name!r} on this machine; it has {', '.join(there)}")
    return name


def split_settings(words: list[str], switches: set[str]) -> tuple[list[str], dict[str, str]]:
    """Separate pictures from settings, `--name value` or `--name=value`; `switches` need no value."""
    pictures: list[str] = []
    settings: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--" or Path(word).exists():
            pictures.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if not equals:
            if rest and (key not in switches or rest[0].lower() in ("true", "false", "yes", "no")):
                value = rest.pop(0)
            elif key in switches:
                value = "true"
            else:
                raise UsageError(f"{word} needs a value")
        settings[key] = value
    return pictures, settings
