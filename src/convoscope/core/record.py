"""Naming, capturing and editing every tensor a network makes.

An address is the path of a module (`layer4`, `layer1.0.conv1`) or of an operator called in one (`layer1.0.add`); a second
call of either is `layer1.0.relu_1`, and an operator whose name a module has is `layer1.0.relu()`. The parts of a tuple or
mapping are `chunk.0`, `backbone.out`. `input` and `output` are the network's own. What is handed back to the network is a
clone, so that nothing it does in place reaches what was captured.
"""

import contextlib
import copy
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import _unsafe_preserve_version_counter  # type: ignore[attr-defined]
from torch.overrides import TorchFunctionMode

from convoscope.core.errors import AddressError, UnsupportedError, did_you_mean
from convoscope.core.layout import arranged
from convoscope.core.operators import Rewriter, operator_name, tensors_in

Edit = Callable[[Tensor], Tensor]
SCRIPTED = "ScriptModule"


class Activations(dict[str, Tensor]):
    """Named tensors of one forward pass; `rows[i]` is the image that row i belongs to.

    Where pictures are made together, `pictures` says which rows are views of the same one.
    """

    rows: Tensor
    pictures: Tensor | None = None

    @classmethod
    def of(cls, values: Mapping[str, Tensor], rows: Tensor) -> "Activations":
        """Tensors by name, with the images their rows belong to."""
        found = cls(values)
        found.rows = rows
        return found


class _Stop(BaseException):
    """Everything asked for has been seen."""


class Observer:
    """What watches a run: `operator` sees each call with its result, `value` each addressed tensor."""

    def before(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each operator call, which may overwrite what it is given."""

    def operator(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After each operator call."""

    def value(self, address: str, operator: str, module: nn.Module | None, output: Tensor) -> None:
        """After each addressed tensor; `operator` is the class of the module or the name of the operator."""


class Collector(Observer):
    """An observer of a pass with gradients: its hooks put tensors, one row per image, into `found` as gradients arrive.

    `found` is read and emptied after each backward pass.
    """

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}


class Observers(Observer):
    """Several at once."""

    def __init__(self, observers: Collection[Observer]) -> None:
        self.observers = observers

    def before(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for observer in self.observers:
            observer.before(name, args, kwargs)

    def operator(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for observer in self.observers:
            observer.operator(name, args, kwargs, output)

    def value(self, address: str, operator: str, module: nn.Module | None, output: Tensor) -> None:
        for observer in self.observers:
            observer.value(address, operator, module, output)


def canonical(module: nn.Module, address: str) -> str:
    """The address under which a shared module is recorded, for any of its names."""
    try:
        found = module.get_submodule(address)
    except (AttributeError, RuntimeError):  # RuntimeError: TorchScript has no get_submodule
        return address
    return next((name for name, m in module.named_modules() if m is found), address)


def record(
    module: nn.Module,
    x: Tensor,
    capture: Collection[str] = (),
    edits: Mapping[str, Edit] | None = None,
    *,
    graph: Collection[str] = (),
    rewriter: Rewriter | None = None,
    observer: Observer | None = None,
    head: Callable[[Any], Tensor] | None = None,
) -> Activations:
    """One forward pass: the captured tensors by address, on the autograd graph. Stops when all have been seen.

    `edits` replace tensors on their way, `graph` lists addresses whose tensors must carry a gradient (the graph starts at
    the first of them), `head` reads the output tensor from what the module returns. Raises AddressError for an address
    that the pass did not reach.
    """
    run = _Recording(module, capture, edits or {}, graph, rewriter, observer)
    x = run.start(x)
    if run.done:
        return run.activations
    with run.watching():
        try:
            output = run.parts(module(x))
        except _Stop:
            return run.activations
    run.finish(output, head)
    return run.activations


class _Recording(TorchFunctionMode):
    def __init__(
        self, module: nn.Module, capture: Collection[str], edits: Mapping[str, Edit], graph: Collection[str],
        rewriter: Rewriter | None, observer: Observer | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.root, self.names = module, {m: n for n, m in module.named_modules()}
        self.wanted: dict[str, list[str]] = {}  # where it is recorded -> the names it was asked by
        for asked in dict.fromkeys((*capture, *graph)):
            self.wanted.setdefault(canonical(module, asked), []).append(asked)
        self.edits = {canonical(module, a): e for a, e in edits.items()}
        self.graph = {canonical(module, a) for a in graph}
        self.open = {*self.wanted, *self.edits}
        self.rewriter, self.observer = rewriter, observer
        self.activations = Activations()
        self.calls: list[tuple[str, str, list[tuple[Tensor, int]]]] = []  # path, address, inputs of modules being called
        self.leaf, self.paused, self.thread = 0, False, threading.get_ident()
        self.counts: dict[str, int] = {}
        self.seen: list[str] = []
        self.modules = set(self.names.values()) - {""}
        named = {*self.modules, "input", "output", *(a for a in self.open if a.startswith("output."))}
        self.operators = rewriter is not None or observer is not None or not self.open <= named

    @property
    def done(self) -> bool:
        return bool(self.wanted) and self.observer is None and not self.open

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        hooked = [m for m, n in self.names.items() if n and (self.operators or n in self.open)]
        for module in [self.root, *hooked] if self.operators else hooked:
            if SCRIPTED in {c.__name__ for c in type(module).__mro__}:
                raise UnsupportedError(
                    f"{self.names[module] or 'the network'} is TorchScript, which hides its operators; pass the nn.Module it "
                    "was made from"
                )
            if ".quantized." in type(module).__module__ and (self.graph or self.rewriter is not None):
                what = f"{self.names[module]!r} is quantized ({type(module).__name__}), and hands no gradient back"
                raise UnsupportedError(f"{what}; methods such as occlusion need none")
        with contextlib.ExitStack() as stack:
            for module in hooked:
                stack.callback(module.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(self._leave, with_kwargs=True).remove)
            if self.operators:
                stack.enter_context(self)
            yield

    def start(self, x: Tensor) -> Tensor:
        if "input" in self.edits:
            x = self.edits["input"](x)
        if "input" in self.graph and not x.requires_grad:
            x = x.detach().requires_grad_()
        if "input" in self.wanted:
            self._store("input", x)
        self.open.discard("input")
        if self.observer is None or self.graph:
            # A copy: the network may overwrite its input. Rules and observers work on values in their usual order.
            plain = self.observer is None and (self.rewriter is None or not self.rewriter.table.strict)
            x = arranged(self.root, x) if plain else x.clone()
        if self.rewriter is not None:
            self.rewriter.saw(x)
        return x

    def parts(self, output: Any) -> Any:
        """The network's output, its parts (`output.boxes`) recorded where asked for."""
        if isinstance(output, Tensor) or not any(a.startswith("output.") for a in self.open):
            return output
        self.paused = True
        try:
            return self._named("output", type(self.root).__name__, None, _stacked(output), [])
        finally:
            self.paused = False

    def finish(self, output: Any, head: Callable[[Any], Tensor] | None) -> None:
        if "output" in self.open and head is not None:
            output = head(output)
        if "output" in self.edits:
            output = self.edits["output"](output)
        if "output" in self.wanted:
            self._store("output", output)
        self.open.discard("output")
        if self.open:
            missing = next(a for found in sorted(self.open) for a in self.wanted.get(found, [found]))
            state = "was not called in this pass" if canonical(self.root, missing) in self.modules else "does not exist"
            hint = did_you_mean(missing, [*self.seen, *self.modules])
            raise AddressError(f"layer {missing!r} {state}{hint} (net.layers() lists them all)")

    def _store(self, address: str, tensor: Tensor) -> None:
        self.activations.update(dict.fromkeys(self.wanted[address], tensor))

    # ---- modules
    def _enter(self, module: nn.Module, args: Any, *rest: Any) -> None:
        if threading.get_ident() != self.thread:
            return
        (kwargs,) = rest
        path = self.names[module]
        address = self._address(path, self._next("module", path))
        self.calls.append((path, address, _versions(args, kwargs) if address in self.open else []))
        self.leaf += _is_leaf(module)

    def _leave(self, module: nn.Module, args: Any, *rest: Any) -> Any:
        if threading.get_ident() != self.thread:  # may lack the keywords where that thread is removing its hooks
            return None
        output = rest[-1]
        self.leaf -= _is_leaf(module)
        _, address, before = self.calls.pop()
        self.paused = True  # what is done here is not the network's doing
        try:
            return self._named(address, type(module).__name__, module, output, before)
        finally:
            self.paused = False

    # ---- operators
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = operator_name(func)
        path, address, _ = self.calls[-1] if self.calls else ("", "", [])
        base = f"{path}.{name}" if path else name
        if base in self.modules:
            base += "()"
        if not self.leaf:
            address = self._address(base, self.counts.get(base, 0))
        before = _versions(args, kwargs) if address in self.open else []
        if self.observer is not None:
            self.observer.before(name, args, kwargs)
        if self.rewriter is not None and torch.is_grad_enabled() and next(tensors_in(args, kwargs), None) is not None:
            output = self.rewriter.apply(name, address, func, args, kwargs)
        else:
            output = func(*args, **kwargs)
        silent = next(tensors_in(output), None) is None
        if self.observer is not None and (not silent or name == "setitem"):
            self.observer.operator(name, args, kwargs, output)
        if self.leaf or silent:
            return output
        self._next("operator", base)
        return self._named(address, name, None, output, before)

    # ---- both
    def _next(self, kind: str, base: str) -> int:
        key = base if kind == "operator" else f"{base} {kind}"
        self.counts[key] = self.counts.get(key, 0) + 1
        return self.counts[key] - 1

    def _address(self, base: str, earlier: int) -> str:
        """The name of a call after that many earlier ones, without the names of modules."""
        name, taken = (f"{base}_{earlier}" if earlier else base), earlier
        while taken and name in self.modules:
            taken += 1
            name = f"{base}_{taken}"
        return name

    def _named(self, address: str, operator: str, module: nn.Module | None, output: Any, before: Any) -> Any:
        if isinstance(output, Tensor):
            return self._keep(address, operator, module, output, before)
        parts = output.items() if isinstance(output, Mapping) else enumerate(output) if isinstance(output, tuple | list) else ()
        old = dict(parts)
        names = {k: f"{address}[{k}]" if f"{address}.{k}" in self.modules else f"{address}.{k}" for k in old}
        new = {k: self._named(names[k], operator, module, v, before) for k, v in old.items()}
        return output if all(new[k] is v for k, v in old.items()) else _rebuilt(output, new)

    def _keep(self, address: str, operator: str, module: nn.Module | None, output: Tensor, before: Any) -> Tensor:
        self.seen.append(address)
        if self.observer is not None:
            self.observer.value(address, operator, module, output)
        if address not in self.open:
            return output
        overwritten = any(t is output and t._version > version for t, version in before)
        kept = handed = self.edits[address](output) if address in self.edits else output
        self.open.discard(address)
        if address in self.wanted:
            kept = self._captured(address, kept, shared=output._is_view() or any(t is output for t, _ in before))
            self._store(address, kept)
            if self.done:
                raise _Stop
            handed = kept.clone() if address in self.graph else handed
        if overwritten and handed is not output:
            # Unedited, it is the same value: what an operator kept of its output to differentiate it still holds.
            same = contextlib.nullcontext() if address in self.edits else _unsafe_preserve_version_counter(output)
            with same:
                handed = output.copy_(handed)
        if self.rewriter is not None:
            self.rewriter.saw(handed, like=output)
        return handed

    def _captured(self, address: str, tensor: Tensor, shared: bool) -> Tensor:
        """What is kept of a tensor: itself where a gradient is to pass through it, else a copy beside the network's own."""
        if address not in self.graph:
            return (tensor.dequantize() if tensor.is_quantized else tensor).clone(memory_format=torch.contiguous_format)
        if not tensor.requires_grad:
            return (tensor.detach().clone() if shared else tensor.detach()).requires_grad_()
        return tensor.clone() if shared else tensor


def _versions(*values: Any) -> list[tuple[Tensor, int]]:
    return [(t, t._version) for t in tensors_in(*values) if not t.is_inference()]


def _stacked(output: Any) -> Any:
    """A list with one mapping per image, as detectors return, as one mapping; shorter rows end in zeros."""
    if not (isinstance(output, tuple | list) and output and all(isinstance(o, Mapping) for o in output)):
        return output
    keys = [k for k, v in output[0].items() if isinstance(v, Tensor) and v.dim() and all(k in o for o in output)]
    return {k: torch.nn.utils.rnn.pad_sequence([o[k] for o in output], batch_first=True) for k in keys}


def _rebuilt(output: Any, parts: dict[Any, Any]) -> Any:
    if isinstance(output, Mapping):
        new: Any = copy.copy(output)
        for key, value in parts.items():
            new[key] = value
        return new
    return type(output)(*parts.values()) if hasattr(output, "_fields") else type(output)(list(parts.values()))


def _is_leaf(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn") and next(module.children(), None) is None
