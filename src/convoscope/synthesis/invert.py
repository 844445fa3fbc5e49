"""Inversion: which pictures have this code? What a layer has kept of a picture, and what it has let go."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from convoscope.core.errors import UsageError
from convoscope.core.run import undisturbed
from convoscope.data.tensors import fit
from convoscope.images.base import Draws, Image, Penalty, Space, image_size
from convoscope.network import Network
from convoscope.synthesis.dream_picture import at_once, codes, full_size
from convoscope.synthesis.invert_descent import Momentum, WarmedLBFGS
from convoscope.synthesis.invert_mahendran import Centered, NaturalPrior, schedule, strength
from convoscope.synthesis.invert_result import Inversion
from convoscope.synthesis.invert_run import Rows, Run
from convoscope.targets.features import FeatureDistance

LOG = "log-probabilities"
WARM = 25  # steps of Adam before L-BFGS
Generate = Callable[[Tensor], Tensor]


def invert(
    network: Network | nn.Module, source: Any, layers: str | Sequence[str] | None = None,
    by: Literal["fourier", "mahendran-vedaldi", "generator"] | Image = "fourier", *, size: int | tuple | None = None,
    steps: int | None = None, penalties: Sequence[Penalty] | None = None,
    generator: Generate | str | Path | Mapping[str, Any] | None = None, seed: int = 0, batch_size: int | str = "auto",
    progress: Any = None, watch: Any = None, store: str | Path | None = None,
) -> Inversion:  # fmt: skip
    """Pictures with the codes that pictures have at some layers, one for each layer and picture.

    `source` is a picture or a list of them (as `Network.read` takes), cropped to `size` (default: the network's own), or the
    codes themselves, `{layer: (pictures, ...)}`. A layer is an address, also "output", or "log-probabilities" of the classes.

    The error is that of Mahendran and Vedaldi (2015, eq. 2), `|a - c|^2 / |c|^2`, and is reported for each picture. `by`:

    - "fourier", or any Image: waves from the image's own noise, `steps` evaluations (300) by L-BFGS, with `penalties` (none).
    - "mahendran-vedaldi": pixels from noise, 400 steps with momentum at falling rates, with the alpha-norm and the total
      variation of the paper at the strength for the depth of the layer.
    - "generator": no search at all. `generator` maps codes to pixels 0..1: any callable, a file of `convoscope generator
      train`, or {layer: generator}: a network trained to invert the layer (Dosovitskiy and Brox 2016).

    `watch(step, pixels)` is shown the pictures on the way. `store` is a folder that keeps the state: the same call goes on
    where it was interrupted, with the same result to the bit.
    """
    network = network if isinstance(network, Network) else Network(network)
    began = time.perf_counter()
    originals, asked = _codes(network, source, layers, size)
    space = Space(network.channels, _size(network, originals, size), network.device, network.dtype)
    name = by if isinstance(by, str) else by.name
    settings: dict[str, Any] = {"by": name, "layers": list(asked), "size": list(space.size), "seed": seed}
    run = Run(network, space, seed, progress, watch, None if store is None else Path(store))
    with undisturbed(network.plain):
        if by == "generator":
            run.made = _generated(network, space, asked, generator)
        else:
            settings |= _search(run, asked, by, steps, penalties, batch_size)
        pixels = torch.stack([run.made[layer] for layer in asked])
        errors = torch.stack([_errors(network, layer, code, p) for (layer, code), p in zip(asked.items(), pixels, strict=True)])
    diagnostics = {"seconds": time.perf_counter() - began, "evaluations": run.evaluations}
    originals = None if originals is None else originals.float().cpu()
    return Inversion(
        network, list(asked), pixels.float().cpu(), originals, errors.tolist(), run.history(list(asked)),
        run.frames(list(asked)), settings, diagnostics,
    )  # fmt: skip


def _codes(
    network: Network, source: Any, layers: str | Sequence[str] | None, size: int | tuple | None
) -> tuple[Float[Tensor, "pictures channels height width"] | None, dict[str, Tensor]]:
    """The pictures that the codes are those of, where they are known, and the codes of each layer."""
    if isinstance(source, Mapping):
        if layers is not None or not source or not all(isinstance(c, Tensor) and c.dim() >= 2 for c in source.values()):
            raise UsageError("codes are {layer: tensor (pictures, ...)}, which names the layers; got something else")
        if len({len(c) for c in source.values()}) > 1:
            raise UsageError(f"codes are those of as many pictures at each layer; got {[len(c) for c in source.values()]}")
        return None, {k: c.detach().to(network.device, network.dtype) for k, c in source.items()}
    asked = [layers] if isinstance(layers, str) else list(layers or ())
    if not asked or len(set(asked)) < len(asked):
        raise UsageError(f"name the layers whose codes are inverted, each once, such as 'layer3' or {LOG!r}; got {asked}")
    pixels = _pictures(network, source, size)
    with torch.no_grad():
        found = codes(network, network.normalize(pixels), [_address(a) for a in asked])
    return pixels, {a: found[_address(a)] for a in asked}


def _pictures(network: Network, source: Any, size: int | tuple | None) -> Tensor:
    sources: list[Any] = list(source) if isinstance(source, list | tuple) else [source]
    if isinstance(source, Tensor) and source.dim() == 4:
        sources = list(source)
    whole = [full_size(network, s) for s in sources]
    if not whole:
        raise UsageError("no pictures to invert the codes of")
    side = network.size if size is None else image_size(size, None)
    if side is not None:
        whole = [fit(p, side) for p in whole]
    if len({p.shape for p in whole}) > 1:
        raise UsageError("pictures of different sizes are inverted one by one, or at one size: give size")
    return torch.cat(whole)


def _size(network: Network, originals: Tensor | None, size: int | tuple | None) -> tuple[int, int]:
    if originals is not None:
        return int(originals.shape[2]), int(originals.shape[3])
    return image_size(size, network.size)


def _address(layer: str) -> str:
    return "output" if layer == LOG else layer


def _target(layer: str, code: Tensor) -> FeatureDistance:
    return FeatureDistance(_address(layer), code, LOG if layer == LOG else "activations")


def _errors(network: Network, layer: str, code: Tensor, pixels: Tensor) -> Float[Tensor, " pictures"]:
    from convoscope.core.record import Activations

    with torch.no_grad():
        found = codes(network, network.normalize(pixels), [_address(layer)])
        return _target(layer, code)(Activations.of(found, torch.arange(len(code)))).double().cpu()


def _search(
    run: Run, asked: dict[str, Tensor], by: str | Image, steps: int | None, penalties: Sequence[Penalty] | None,
    batch_size: int | str,
) -> dict[str, Any]:  # fmt: skip
    """Searches for all pictures, layer by layer; the settings that were used."""
    network, space = run.network, run.space
    size = min(128, at_once(network, space.size)) if batch_size == "auto" else int(batch_size)
    run.batch_size = size
    rates = schedule(space, network.std)
    told: dict[str, Any] = {"steps": len(rates) if by == "mahendran-vedaldi" else 300 if steps is None else steps}
    if by == "mahendran-vedaldi":
        if penalties is not None or steps is not None:
            raise UsageError("the schedule and the penalties of mahendran-vedaldi are those of the paper; leave yours out")
        told["total variation"] = {layer: strength(network, space, _address(layer)) for layer in asked}
    else:
        told |= {"penalties": [p.to_dict() for p in penalties or ()]}
    image = _image(by, network, space)
    told["image"] = image.to_dict() if isinstance(image, Image) else by
    if told["steps"] < 1:
        raise UsageError(f"steps is {told['steps']}; expected at least 1")
    plan = [
        (layer, code, range(i, min(i + size, len(code)))) for layer, code in asked.items() for i in range(0, len(code), size)
    ]
    run.total = sum(len(rows) for _, _, rows in plan) * told["steps"]
    for layer, code, numbers in plan:
        priors: Sequence[Any] = penalties or ()

        def make(start: Tensor) -> Momentum | WarmedLBFGS:
            return WarmedLBFGS(start, WARM, image.rate)

        if by == "mahendran-vedaldi":
            priors = [NaturalPrior(told["total variation"][layer], network.mean, network.std)]
            make = lambda start: Momentum(start, rates)  # noqa: E731
        draws = Draws(run.seed, tuple((layer, n) for n in numbers), space)
        part = code[numbers.start : numbers.stop]
        Rows(run, layer, _target(layer, part), numbers, image, priors, make, draws, told["steps"]).go()
    return told


def _image(by: str | Image, network: Network, space: Space) -> Any:
    if by == "mahendran-vedaldi":
        return Centered(network.mean, network.std)
    if isinstance(by, str) and by != "fourier":
        raise UsageError(f"no inversion by {by!r}; expected 'fourier', 'mahendran-vedaldi', 'generator' or an Image")
    from convoscope.images import of

    image = of("image", by)
    if getattr(image, "size", None) is not None and image_size(image.size, None) != space.size:
        raise UsageError(f"the image has size {image.size}, the codes are those of pictures {space.size}; leave its size out")
    return image


def _generated(network: Network, space: Space, asked: dict[str, Tensor], generator: Any) -> dict[str, Tensor]:
    """What generators make of the codes, at the size of the pictures."""
    given = dict(generator) if isinstance(generator, Mapping) else dict.fromkeys(asked, generator)
    made = {}
    for layer, code in asked.items():
        found = given.get(layer)
        if isinstance(found, str | Path):
            from convoscope.images.generator import load_generator

            found = load_generator(found)
        if not callable(found):
            raise UsageError(f"no generator for {layer!r}: give a callable from codes to pixels, or the file of one")
        made_for = getattr(found, "made", {})
        if made_for.get("layer", layer) != layer or made_for.get("network_hash", network.hash) != network.hash:
            raise UsageError(
                f"this generator inverts {made_for.get('layer')!r} of {made_for.get('network', 'another network')}, "
                f"not {layer!r} of {network.name}"
            )
        with torch.no_grad():
            pixels = found(code)
        if pixels.dim() != 4 or pixels.shape[:2] != (len(code), space.channels):
            raise UsageError(
                f"the generator returned {tuple(pixels.shape)}; expected pixels ({len(code)}, {space.channels}, height, width)"
            )
        pixels = pixels.to(space.device, space.dtype).clamp(0, 1)
        if tuple(pixels.shape[2:]) != space.size:
            pixels = F.interpolate(pixels, space.size, mode="bilinear", antialias=True)
        made[layer] = pixels
    return made
