"""`convoscope generator`: networks that make pictures of codes, trained and sampled."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convoscope.cli import options as opt
from convoscope.cli import synthesis as syn
from convoscope.cli.atlas import Data

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

app = typer.Typer(
    no_args_is_help=True,
    help="Networks that make pictures of codes: train one (GAN, DCGAN, or DGN-AM, the inverse of a layer), sample it, or "
    "sample a class through it. `convoscope maximize MODEL TARGET --image code:generator=FILE` optimizes its codes.",
)
Which = Annotated[
    str, typer.Option("--generator", "-g", metavar="FILE|scenes", help="A generator's file, or scenes, which ships.")
]
Kind = Annotated[
    Literal["gan", "dcgan", "dgn-am"], typer.Option(help="A perceptron or a convolutional GAN, or the inverse of a layer.")
]


@app.command()
def train(
    data: Data,
    kind: Kind = "dgn-am",
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="dgn-am: the network whose layer is inverted.")
    ] = "",
    layer: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="dgn-am: the layer; with --components it may be repeated.")
    ] = None,
    components: Annotated[
        int | None, typer.Option(min=1, help="dgn-am: codes are so many principal components. Default: the activations.")
    ] = None,
    compare: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="dgn-am: where features are compared. Default: the layer.")
    ] = None,
    adversarial: Annotated[float, typer.Option(min=0, help="dgn-am: weight of the adversarial loss; 0: none.")] = 0.05,
    size: syn.Size = None,
    channels: Annotated[int, typer.Option(min=1, help="Channels of the pictures (GANs).")] = 3,
    code: Annotated[int, typer.Option(min=1, help="Numbers in a code (GANs).")] = 64,
    width: Annotated[int | None, typer.Option(min=1, help="Channels of the last hidden map; a GAN's hidden layers.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to train on.")] = 4000,
    pictures: Annotated[
        int, typer.Option(min=2, help="At most how many pictures, evenly spread, are kept in memory.")
    ] = 20_000,
    batch_size: Annotated[int, typer.Option(min=2, help="Pictures in a batch.")] = 32,
    rate: Annotated[float | None, typer.Option(help="Learning rate. Default: 0.002, for GANs 0.0004.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Write weights of half precision, in half the bytes.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write it, .safetensors.")] = Path(
        "generator.safetensors"
    ),
    preview: syn.Preview = None,
    strip: syn.StripFile = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    device: opt.Device = None,
    seed: opt.Seed = 0,
    as_json: opt.JSON = False,
) -> None:
    """Train a generator on pictures. A run that was stopped or killed goes on where the same command is given again."""
    _check(kind, model, layer, out)
    common = {"steps": steps, "batch_size": batch_size, "pictures": pictures, "seed": seed}
    if width is not None:
        common["width"] = width
    common["rate"] = rate or (2e-3 if kind == "dgn-am" else 4e-4)
    if kind == "dgn-am":
        losses = {"adversarial": adversarial, "comparators": tuple(compare or ())}
        net = opt.load_network(model, arch, weights, allow_partial, device)
        make = _inverse(net, data, layer or [], components, losses, common)
    else:
        place = opt.find_device(device) or "cpu"
        make = _gan(data, kind, {"size": size or 64, "channels": channels, "code": code, "device": place, **common})
    _train(make, out, half, preview, strip, as_json)


def _check(kind: str, model: str, layer: list[str] | None, out: Path) -> None:
    from convoscope.core.errors import UsageError
    from convoscope.files import check_writable

    if kind == "dgn-am" and not (model and layer):
        raise UsageError("dgn-am inverts a layer of a network: --model scenes --layer layer4")
    if kind != "dgn-am" and (model or layer):
        raise UsageError(f"--model and --layer are for dgn-am; {kind} learns from pictures alone")
    if out.suffix != ".safetensors":
        raise UsageError(f"cannot write {str(out)!r}: expected a file that ends in .safetensors")
    check_writable(out)


def _inverse(net: Any, data: str, layer: list[str], components: int | None, losses: Any, settings: Any) -> Callable[..., Any]:
    from convoscope.synthesis.generator_inverse import Losses, train_dgn_am

    return lambda **live: train_dgn_am(net, data, layer, components=components, losses=Losses(**losses), **settings, **live)


def _gan(data: str, kind: Any, settings: Any) -> Callable[..., Any]:
    from convoscope.synthesis.generator_gan import train_gan

    return lambda **live: train_gan(data, kind, **settings, **live)


def _train(make: Callable[..., Any], out: Path, half: bool, preview: Path | None, strip: Path | None, as_json: bool) -> None:
    import torch

    from convoscope.cli.generator_strip import Strip
    from convoscope.cli.terminal import Progress, console, note, print_json
    from convoscope.cli.work import jsonable
    from convoscope.files import size_text
    from convoscope.images.generator import load_generator

    state = out.with_suffix(".state")
    resumed = state.is_file()
    way = None if strip is None else Strip(strip, out.with_suffix(".steps"), resumed)
    losses: dict[str, float] = {}
    try:
        with Progress("training") as progress:

            def watch(step: int, pixels: Any, found: dict[str, float]) -> None:
                losses.update(found)
                progress.label = "training, " + ", ".join(f"{k} {v:.3g}" for k, v in found.items())
                if preview is not None:
                    _write(_grid(pixels), preview)
                if way is not None:
                    way(step, pixels)

            made = make(progress=progress, watch=watch, store=state)
    except KeyboardInterrupt:
        if state.is_file():
            note(f"stopped; the same command goes on from {state}")
        raise
    made = load_generator(made.save(out, torch.float16 if half else None))
    state.unlink(missing_ok=True)
    out.with_suffix(".steps").unlink(missing_ok=True)
    if as_json:
        told = {"code": list(made.code), "prior": made.prior, "made": made.made, "losses": losses, "resumed": resumed}
        print_json(jsonable({"schema": "convoscope.generator/1", **told, "hash": made.hash, "file": str(out)}))
    else:
        console().print(f"{made!r}\n{out} ({size_text(out)})", soft_wrap=True)


@app.command()
def sample(
    generator: Which = "scenes",
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 24,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture, .png.")] = Path(
        "convoscope-generator.png"
    ),
    device: opt.Device = None,
    seed: opt.Seed = 0,
    as_json: opt.JSON = False,
) -> None:
    """Pictures of codes drawn at random: what a generator can make."""
    import torch

    from convoscope.cli.terminal import console, print_json
    from convoscope.images.base import Draws, Space
    from convoscope.images.code import Code

    _png(out)
    image = Code(generator)
    space = Space(3, (1, 1), torch.device(opt.find_device(device) or "cpu"))
    codes = image.begin(space, Draws(seed, tuple((k,) for k in range(count)), space))["code"]
    with torch.no_grad():
        pixels = torch.cat([image.generator(part) for part in codes.split(64)])
    _write(_grid(pixels), out)
    if as_json:
        print_json(
            {
                "schema": "convoscope.generator-sample/1",
                "image": image.to_dict(),
                "count": count,
                "seed": seed,
                "file": str(out),
            }
        )
    else:
        console().print(f"{image.generator!r}\n{out}", soft_wrap=True)


@app.command()
def ppgn(
    model: opt.ModelArgument,
    classes: Annotated[list[str], typer.Argument(metavar="CLASS...", help="Names or numbers of classes.")],
    generator: Which = "scenes",
    copies: Annotated[int, typer.Option(min=1, help="Chains for each class.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a chain.")] = 200,
    every: Annotated[int, typer.Option(min=0, help="A picture after every so many steps. Default: at the end.")] = 0,
    prior: Annotated[float, typer.Option(help="Weight of the codes' own likelihood.")] = 0.01,
    condition: Annotated[float, typer.Option(help="Weight of the class.")] = 1.0,
    noise: Annotated[float, typer.Option(min=0, help="Deviation of the noise in each step.")] = 0.01,
    out: syn.Out = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    batch_size: opt.BatchSize = "auto",
    device: opt.Device = None,
    seed: opt.Seed = 0,
    as_json: opt.JSON = False,
) -> None:
    """Sample pictures of classes by plug and play generative networks: a chain over a generator's codes."""
    making = syn.Making("ppgn", out, as_json)
    from convoscope.show.figure import number
    from convoscope.synthesis.ppgn import ppgn as run

    net = opt.load_network(model, arch, weights, allow_partial, device)
    settings = {"copies": copies, "steps": steps, "every": every, "prior": prior, "condition": condition, "noise": noise}
    wanted = [int(c) if c.isdecimal() else c for c in classes]
    made = making(
        lambda progress, **_: run(net, wanted, generator, **settings, batch_size=batch_size, seed=seed, progress=progress)
    )
    making.tell(made, list(zip(made.names, map(number, made.scores), strict=True)), ("class", "log probability"))


def _png(out: Path) -> None:
    from convoscope.core.errors import UsageError
    from convoscope.files import check_writable

    if out.suffix.lower() != ".png":
        raise UsageError(f"cannot write {str(out)!r}: expected a file that ends in .png")
    check_writable(out)


def _grid(pixels: Any) -> "Picture":
    from convoscope.synthesis.drawing import contact

    return contact(pixels)


def _write(picture: "Picture", path: Path) -> None:
    from convoscope.files import replaced

    with replaced(path) as partial:
        picture.save(partial, format="PNG")
