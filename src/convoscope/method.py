"""Methods, and `explain`: one method, one target, some images."""

import contextlib
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convoscope.core.errors import ConvoscopeError, NonFiniteError, UnsupportedError, UsageError
from convoscope.core.finite import finite, place, search
from convoscope.core.probe import Place, Probe
from convoscope.core.record import canonical, record
from convoscope.core.run import rows_at_once, undisturbed
from convoscope.core.session import Answers, Session, Shared
from convoscope.core.spec import About, Spec, fields_of, parse_spec, registered
from convoscope.network import Images, Network
from convoscope.results import Attribution
from convoscope.targets import Target

Maps = Float[Tensor, "batch channel height width"]


class Method(Spec, kind="method", abstract=True):
    """Base of all attribution methods: one tensor in, one tensor out, raw and signed.

    `title`: its name in the literature. `unit`: what its values measure, where `{target}` stands for the target's unit.
    `complete`: the map sums to the target's change from the baseline. `stochastic`: it draws random numbers.
    `default`: it belongs to the set shown when nobody chose. `signed`: values on both sides of zero mean something.
    """

    title: ClassVar[str]
    unit: ClassVar[str] = "{target} per pixel"

    complete: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    default: ClassVar[bool] = False
    signed: ClassVar[bool] = True
    about: ClassVar[About]

    def attribute(self, probe: Probe, x: Images) -> Maps:
        """The map of each image in `x`, in units of the target (or of the target per unit of the input)."""
        raise NotImplementedError

    def attribute_layers(self, probe: Probe, x: Images, layers: tuple[str, ...]) -> list[Maps]:
        """The maps of several layers: for methods with a `layer` that find them all at once."""
        raise NotImplementedError

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        """Where it reads activations and ordinary gradients at the images themselves, through `probe.gradients` and the like.

        Several methods explained in one call share one such pass.
        """
        return ()

    def evaluations(self, x: Images) -> int:
        """How many forward passes of one image it needs at most for each image of `x`."""
        raise NotImplementedError


def methods() -> dict[str, type[Method]]:
    """All registered methods by name."""
    import convoscope.attribution  # noqa: F401  registers them

    return registered("method")  # type: ignore[return-value]


def method_of(which: Method | str) -> Method:
    """A method from its name, `name:setting=value`, or itself. Raises SpecError with the closest names."""
    methods()
    if isinstance(which, str):
        return parse_spec("method", which)  # type: ignore[return-value]
    if not isinstance(which, Method):
        raise UsageError(f"a method is its name or a Method such as GradCAM(); got {type(which).__name__}")
    return which


def explain(
    network: Network | nn.Module, x: Any, method: Method | str | list, target: Any = None, *,
    at: str | list[str] | None = None, batch_size: int | Literal["auto"] = "auto", seed: int = 0, progress: Any = None,
    nonfinite: Literal["raise", "propagate"] = "raise", places: Sequence[int] | None = None,
) -> Any:  # fmt: skip
    """The attribution of each image by a method, for a target.

    `x` is an input tensor `(B, C, H, W)` or anything `network.read` takes; `target` a Target, a class number, a category
    name, one of these for each image, or None for the top class of each image; `at` an address whose tensor is explained
    instead of the input (for methods with a `layer`, that layer); `progress` is called with (evaluations done, at most how
    many). `batch_size` "auto" takes as many rows as run fast (8 of 224 x 224 pixels on a CPU, 128 on a GPU) and halves where
    memory does not suffice. The network is untouched afterwards. The same seed gives the same numbers, for any batch size up
    to rounding; random draws follow it and `places`, a number for each image (default: its row). NaN or infinity in images,
    weights, activations, targets or maps raises NonFiniteError saying where it comes from, unless `nonfinite` is "propagate".

    Lists of methods, of Targets or of addresses give the list of all their Attributions, methods first, then targets, then
    addresses. They share what they can: one pass there and back serves all that need gradients at the images, the same
    changed picture is shown to the network once.
    """
    network = network if isinstance(network, Network) else Network(network)
    started = time.perf_counter()
    whole = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
    if batch_size != "auto" and not (whole and batch_size >= 1):  # type: ignore[operator]
        raise UsageError(f"batch_size is {batch_size!r}; expected a whole number of at least 1, or 'auto'")
    if nonfinite not in ("raise", "propagate"):
        raise UsageError(f"nonfinite is {nonfinite!r}; expected 'raise' or 'propagate'")
    device, strict = x.device if isinstance(x, Tensor) else network.device, nonfinite == "raise"
    with undisturbed(network.plain):
        x = network.check(x if isinstance(x, Tensor) else network.read(x)).clone()  # ours, outside inference mode
        if strict:
            _finite(network, x)
        jobs = _jobs(network, x, method, target, at, batch_size, seed)
        places = range(len(x)) if places is None else places
        if len(places) != len(x):
            raise UsageError(f"{len(places)} places for {len(x)} images; give one for each")
        if progress is not None:
            _report(jobs, x, progress)
        with _explained(network, x, jobs, strict):
            _resolve(jobs)
            jobs[0].seconds += time.perf_counter() - started
            for rows in torch.arange(len(x), device="cpu").split(jobs[0].session.batch_size):
                _chunk(jobs, rows, tuple((int(k),) for k in places[int(rows[0]) : int(rows[-1]) + 1]))
    found = [j.attribution(network, x, device) for j in jobs]
    return found if any(isinstance(v, list) for v in (method, at)) or _several(target) else found[0]


def _finite(network: Network, x: Tensor) -> None:
    if not finite(x):
        bad = next(i for i, image in enumerate(x) if not finite(image))
        raise NonFiniteError(f"image {bad} holds values that are not finite: {place(x[bad])} (channel, row, column)")
    network.check_weights()


_FROM_THE_NETWORK = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


@contextlib.contextmanager
def _explained(network: Network, x: Tensor, jobs: list["_Job"], strict: bool) -> Iterator[None]:
    """Why the network cannot be run on such images, or what is not finite in it, said before anything that follows from it."""
    rows = jobs[0].session.batch_size
    try:
        yield
    except ConvoscopeError:
        raise
    except Exception as error:
        if strict:
            try:
                search(network.plain, x, network.head, rows)
            except _FROM_THE_NETWORK as again:
                if isinstance(again, ConvoscopeError):
                    raise again from error
                raise _unfit(network, x, again) from error
        if isinstance(error, _FROM_THE_NETWORK) and (reason := _choosy(network, x) or _inside(error)):
            raise UnsupportedError(reason) from error
        raise
    if strict:
        if any(j.session.suspect is not None and bool(j.session.suspect) for j in jobs):
            search(network.plain, x, network.head, rows)
            raise NonFiniteError("the target is not finite for some changed picture; nonfinite='propagate' runs all the same")
        for j in jobs:
            for start, values in zip(range(0, len(x), rows), j.maps, strict=False):
                if not finite(values):
                    raise NonFiniteError(
                        f"{j.method.name} gives {place(values, start)}, although the network's values are finite; "
                        "nonfinite='propagate' hands it over"
                    )


def _unfit(network: Network, x: Tensor, error: Exception) -> UsageError:
    lines, takes = str(error).strip().splitlines() or [type(error).__name__], ""
    if network.size not in (None, tuple(x.shape[2:])):
        takes = "; it takes {} x {}".format(*network.size)  # type: ignore[misc]
    return UsageError(f"the network fails on inputs of {' x '.join(map(str, x.shape[1:]))}{takes}: {lines[0]}")


def _choosy(network: Network, x: Tensor) -> str:
    """How a network that runs on the images fails on another number of them; empty where it runs."""
    for count in (1, len(x) + 1):
        try:
            search(network.plain, x[:1].expand(count, *x.shape[1:]), network.head, count)
        except NonFiniteError:
            continue
        except Exception as error:
            line = str(error).strip().splitlines() or [type(error).__name__]
            return (
                f"the network runs on {len(x)} images at once and not on {count} ({line[0]}); it has to take any number: "
                "in torch.export by dynamic_shapes, elsewhere without sizes of batches written into it"
            )
    return ""


def _inside(error: Exception) -> str:
    """What failed within the network as a method ran it; empty where the failure is not the network's."""
    names = [f.f_globals.get("__name__", "") for f, _ in traceback.walk_tb(error.__traceback__)]
    last = [n for n in names if n.split(".")[0] != "torch"][-1]
    ours = last.startswith("convoscope.") and last not in ("convoscope.core.record", "convoscope.core.operators")
    if ours or "torch.nn.modules.module" not in names:
        return ""
    line = str(error).strip().splitlines() or [""]
    return (
        f"the network runs on the images as they are, and fails where a method changes them or asks for gradients: "
        f"{type(error).__name__}: {line[0]}"
    )


@dataclass
class _Job:
    """One method for one target at one address."""

    method: Method
    session: Session
    layers: tuple[str, ...] = ()  # all layers that the method is asked for, this one among them
    maps: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    def run(self, probe: Probe, x: Tensor) -> Tensor:
        layer = getattr(self.method, "layer", None)
        if len(self.layers) < 2 or layer not in self.layers or type(self.method).attribute_layers is Method.attribute_layers:
            return self.method.attribute(probe, x)
        same = replace(self.method, layer=None)  # type: ignore[call-arg]
        maps = probe.once(x, (same, self.layers), lambda: self.method.attribute_layers(probe, x, self.layers))
        probe.layer(layer)
        return maps[self.layers.index(layer)]

    def attribution(self, network: Network, x: Tensor, device: torch.device) -> Attribution:
        session = self.session
        session.notes["evaluations"] = session.evaluations
        session.notes["seconds"] = self.seconds
        values = torch.cat(self.maps).to(device)
        return Attribution(values, self.method, session.target, session.at, session.seed, network, x, session.notes)  # type: ignore[arg-type]


def in_rows(values: Tensor, images: int, at: str) -> None:
    """Raises UnsupportedError unless a tensor of an address has one row for each image."""
    if len(values) != images:
        raise UnsupportedError(
            f"{at!r} holds {len(values)} rows for {images} images: the network looks at them one by one, or in pieces; where "
            "it is one row for each image, batch_size=1 explains one at a time"
        )


def _several(target: Any) -> bool:
    return isinstance(target, list) and (not target or any(isinstance(t, Target) for t in target))


def _jobs(network: Network, x: Tensor, method: Any, target: Any, at: Any, batch_size: int | str, seed: int) -> list[_Job]:
    methods_ = [method_of(m) for m in (method if isinstance(method, list) else [method])]
    targets = [network.target(t) for t in (target if _several(target) else [target])]
    for t in targets:
        t.check(len(x))
    places: list[str | None] = at if isinstance(at, list) else [at]
    if not methods_ or not targets or not places:
        raise UsageError("nothing to explain: an empty list of methods, targets or addresses")
    if odd := [p for p in places if not isinstance(p, str | None)]:
        raise UsageError(f"at is the address of a layer, a list of them, or None; got {odd[0]!r}")
    size = rows_at_once(x) if batch_size == "auto" else int(batch_size)
    jobs, shared = [], {}
    for m in methods_:
        layered = "layer" in [f.name for f in fields_of(type(m))]
        for t in targets:
            for a in places:
                here = "input" if layered or a is None else a
                made = m if a is None or not layered else m.make({**vars_of(m), "layer": a})
                session = _session(network, x, t, here, size, seed)
                session.adaptive, session.shared = batch_size == "auto", shared.setdefault(here, Shared())
                jobs.append(_Job(made, session, tuple(dict.fromkeys(p for p in places if p)) if layered else ()))
    return jobs


def _session(network: Network, x: Tensor, target: Target, at: str, batch_size: int, seed: int) -> Session:
    session = Session(network.plain, x, target, at, batch_size, seed, network.head)
    session.last_spatial = lambda: _last_spatial(network, x)
    session.tail = lambda layer: network.trace(x).tail(canonical(network.plain, layer))
    session.field = lambda layer: network.trace(x).field_of(canonical(network.plain, layer))
    session.picture = lambda images: network.picture(images).to(images.device)
    session.bounds = lambda: tuple(network.baseline(b, x[:1, :, :1, :1]) for b in ("black", "white"))  # type: ignore[return-value]
    session.baseline = lambda which, z, probe: _baseline(network, session, which, z, probe)
    return session


def vars_of(spec: Spec) -> dict[str, Any]:
    """The settings of a spec by name."""
    return {f.name: getattr(spec, f.name) for f in fields_of(type(spec))}


def _report(jobs: list[_Job], x: Tensor, progress: Any) -> None:
    total = sum(len(x) * j.method.evaluations(x) for j in jobs)

    def step(_: int) -> None:
        done = sum(j.session.evaluations for j in jobs)
        progress(done, max(total, done))

    for j in jobs:
        j.session.progress = step


def _chunk(jobs: list[_Job], rows: Tensor, keys: tuple[tuple[int, ...], ...]) -> None:
    """Every job for some of the images, whose draws the keys tell apart."""
    for at in dict.fromkeys(j.session.at for j in jobs):
        here = [j for j in jobs if j.session.at == at]
        started = time.perf_counter()
        session, shared = here[0].session, here[0].session.shared
        x = session.images[int(rows[0]) : int(rows[-1]) + 1]
        if at != "input":
            x = Probe(session, rows, keys).everything((at,), x)[at]
        shared.x, shared.planned, shared.memo = x, {}, {}
        if len(here) > 1:
            shared.targets = tuple(dict.fromkeys(j.session.target for j in here))
            shared.answers = Answers(a for t in shared.targets for a in t.addresses())
            _plan(here, rows, keys)
        here[0].seconds += time.perf_counter() - started
        for j in here:
            started = time.perf_counter()
            j.maps.append(j.run(Probe(j.session, rows, keys), x))
            in_rows(j.maps[-1], len(rows), j.session.notes.get("layer", j.session.at))
            j.seconds += time.perf_counter() - started
        shared.x, shared.planned, shared.memo, shared.answers = None, {}, {}, None


def _plan(jobs: list[_Job], rows: Tensor, keys: tuple[tuple[int, ...], ...]) -> None:
    """One pass for all gradients at the images themselves that more than one job would ask for."""
    probes = [Probe(j.session, rows, keys) for j in jobs]
    wanted = [j.method.needs(p) for j, p in zip(jobs, probes, strict=True)]
    takers = [p for p, w in zip(probes, wanted, strict=True) if w]
    if len(takers) > 1:
        at = tuple(dict.fromkeys(a for w in wanted for a in w))
        x = takers[0].session.shared.x
        assert x is not None
        with contextlib.suppress(UnsupportedError):  # then whoever asks for what the target does not depend on says so
            takers[0].plan(x, at, tuple(dict.fromkeys(p.session.target for p in takers)))


def _resolve(jobs: list[_Job]) -> None:
    """What is open in the targets, fixed by one clean pass."""
    opened = [j.session for j in jobs if j.session.target.open]
    if not opened:
        return
    first = opened[0]
    addresses = tuple(dict.fromkeys(a for s in opened for a in s.target.addresses()))
    probe = Probe(first, torch.arange(len(first.images), device="cpu"), tuple((i,) for i in range(len(first.images))))
    whole = probe.everything(addresses)
    made: dict[Any, Any] = {}
    for s in opened:
        if s.target not in made:
            made[s.target] = s.target.resolve(whole)
        s.target = made[s.target]


def _last_spatial(network: Network, x: Tensor) -> str:
    found = network.trace(x).last_spatial()
    if found is None:
        raise UsageError(f"{network.name} makes no tensor with rows and columns; name a layer")
    return found


def _baseline(network: Network, session: Session, which: Any, z: Tensor, probe: Probe) -> Tensor:
    if isinstance(which, Tensor):
        which = _fitting(session, which, z, probe)
    if session.at != "input" and not isinstance(which, str):
        return which.to(z).expand_as(z) if isinstance(which, Tensor) else torch.full_like(z, float(which))
    images = z if session.at == "input" else session.images[probe.rows.to(z.device)]
    found = network.normalize(probe.uniform(images)) if which == "uniform" else network.baseline(which, images)
    if session.at == "input":
        return found
    with torch.no_grad():
        session.evaluations += len(found)
        return record(session.module, found.contiguous(), (session.at,), head=session.head)[session.at]


def _fitting(session: Session, which: Tensor, z: Tensor, probe: Probe) -> Tensor:
    """A baseline given as a tensor, a row for each of `z` or one for all."""
    images = len(session.images)
    rest = which.shape[1:] if which.dim() == z.dim() and len(which) in (1, images) else ()
    if not rest or any(n not in (1, m) for n, m in zip(rest, z.shape[1:], strict=True)):
        sizes = ", ".join(map(str, z.shape[1:]))
        raise UsageError(f"a baseline tensor for {session.at!r} is (1 or {images}, {sizes}); got {tuple(which.shape)}")
    return which if len(which) == 1 else which[probe.rows.to(which.device)]
