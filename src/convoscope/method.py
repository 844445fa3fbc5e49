"""Methods, and `explain`: one method, one target, some images."""

import time
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.core.probe import Probe, Session
from convoscope.core.record import record
from convoscope.core.run import undisturbed
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
    network: Network | nn.Module, x: Any, method: Method | str, target: Target | int | str | None = None, *,
    at: str | None = None, batch_size: int = 32, seed: int = 0, progress: Any = None,
) -> Attribution:  # fmt: skip
    """The attribution of each image by a method, for a target.

    `x` is an input tensor `(B, C, H, W)` or anything `network.read` takes; `target` a Target, a class number, a category
    name, or None for the top class of each image; `at` an address whose tensor is explained instead of the input;
    `progress` is called with (evaluations done, at most how many). The network is untouched afterwards. The same seed gives
    the same numbers, for any batch size up to rounding.
    """
    network = network if isinstance(network, Network) else Network(network)
    method, started = method_of(method), time.perf_counter()
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; expected at least 1")
    device = x.device if isinstance(x, Tensor) else network.device
    with undisturbed(network.plain):
        x = network.check(x if isinstance(x, Tensor) else network.read(x)).clone()  # ours, and usable outside inference mode
        if at is not None and "layer" in [f.name for f in fields_of(type(method))]:
            method, at = method.make({**vars_of(method), "layer": at}), None
        session = Session(network.plain, x, network.target(target), at or "input", batch_size, seed, network.head)
        session.last_spatial, session.tail = lambda: _last_spatial(network, x), lambda a: network.trace(x).tail(a)
        session.baseline = lambda which, z, probe: _baseline(network, session, which, z, probe)
        if progress is not None:
            total = len(x) * method.evaluations(x)
            session.progress = lambda _: progress(session.evaluations, max(total, session.evaluations))
        _resolve(session)
        maps = [_chunk(method, session, rows) for rows in torch.arange(len(x)).split(batch_size)]
    values = torch.cat(maps).to(device)
    session.notes["evaluations"] = session.evaluations
    session.notes["seconds"] = time.perf_counter() - started
    return Attribution(values, method, session.target, session.at, seed, network, x, session.notes)


def vars_of(spec: Spec) -> dict[str, Any]:
    """The settings of a spec by name."""
    return {f.name: getattr(spec, f.name) for f in fields_of(type(spec))}


def _chunk(method: Method, session: Session, rows: Tensor) -> Tensor:
    probe = Probe(session, rows, tuple((int(i),) for i in rows))
    x = session.images[int(rows[0]) : int(rows[-1]) + 1]
    if session.at != "input":
        with torch.no_grad():
            x = record(session.module, x, (session.at,), head=session.head)[session.at]
        session.evaluations += len(x)
    return method.attribute(probe, x)


def _resolve(session: Session) -> None:
    target = session.target
    if not target.open:
        return
    with torch.no_grad():
        parts = [
            record(session.module, b, target.addresses(), head=session.head) for b in session.images.split(session.batch_size)
        ]
    session.evaluations += len(session.images)
    whole = type(parts[0])({k: torch.cat([p[k] for p in parts]) for k in parts[0]})
    whole.rows = torch.arange(len(session.images))
    session.target = target.resolve(whole)


def _last_spatial(network: Network, x: Tensor) -> str:
    found = network.trace(x).last_spatial()
    if found is None:
        raise UsageError(f"{network.name} makes no tensor with rows and columns; name a layer")
    return found


def _baseline(network: Network, session: Session, which: Any, z: Tensor, probe: Probe) -> Tensor:
    if session.at != "input" and not isinstance(which, str):
        return which.to(z).expand_as(z) if isinstance(which, Tensor) else torch.full_like(z, float(which))
    images = z if session.at == "input" else session.images[probe.rows.to(z.device)]
    found = network.normalize(probe.uniform(images)) if which == "uniform" else network.baseline(which, images)
    if session.at == "input":
        return found
    with torch.no_grad():
        session.evaluations += len(found)
        return record(session.module, found.contiguous(), (session.at,), head=session.head)[session.at]
