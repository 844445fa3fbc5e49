"""Naming, capturing and editing every tensor a network makes.

An address is the path of a module (`layer4`, `layer1.0.conv1`) or of an operator called in one (`layer1.0.add`); a second
call of either is `layer1.0.relu_1`. `input` and `output` are the network's own. What is handed back to the network is a
clone, so that nothing it does in place reaches what was captured.
"""

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convoscope.core.errors import AddressError, UnsupportedError, did_you_mean
from convoscope.core.operators import Rewriter, operator_name, tensors_in

Edit = Callable[[Tensor], Tensor]
SCRIPTED = "ScriptModule"


class Activations(dict[str, Tensor]):
    """Named tensors of one forward pass; `rows[i]` is the image that row i belongs to."""

    rows: Tensor


class _Stop(BaseException):
    """Everything asked for has been seen."""


class Observer:
    """What watches a run: `operator` sees each call with its result, `value` each addressed tensor."""

    def operator(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After each operator call."""

    def value(self, address: str, operator: str, module: nn.Module | None, output: Tensor) -> None:
        """After each addressed tensor; `operator` is the class of the module or the name of the operator."""


def canonical(module: nn.Module, address: str) -> str:
    """The address under which a shared module is recorded, for any of its names."""
    try:
        found = module.get_submodule(address)
    except AttributeError:
        return address
    return next(name for name, m in module.named_modules() if m is found)


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
    output: Any = None
    x = run.start(x)
    if run.done:
        return run.activations
    with run.watching():
        try:
            output = module(x)
        except _Stop:
            pass
        else:
            run.finish(head(output) if head else output)
    return run.activations


class _Recording(TorchFunctionMode):
    def __init__(
        self, module: nn.Module, capture: Collection[str], edits: Mapping[str, Edit], graph: Collection[str],
        rewriter: Rewriter | None, observer: Observer | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.root = module
        self.names = {m: n for n, m in module.named_modules()}
        self.wanted = {canonical(module, a): a for a in (*capture, *graph)}
        self.edits = {canonical(module, a): e for a, e in edits.items()}
        self.graph = {canonical(module, a) for a in graph}
        self.rewriter, self.observer = rewriter, observer
        self.activations = Activations()
        self.paths: list[tuple[str, str]] = []  # (module path, address) of the modules being called
        self.leaf = 0
        self.calls: dict[str, int] = {}
        self.seen: list[str] = []
        self.thread = threading.get_ident()
        self.modules = set(self.names.values())
        self.operators = (
            rewriter is not None
            or observer is not None
            or not {*self.wanted, *self.edits} <= {*self.modules, "input", "output"}
        )

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        hooked = {m: n for m, n in self.names.items() if n and (self.operators or n in self.wanted or n in self.edits)}
        with contextlib.ExitStack() as stack:
            for module in hooked:
                if SCRIPTED in {c.__name__ for c in type(module).__mro__}:
                    raise UnsupportedError(
                        f"{self.names[module]!r} is TorchScript, which hides its operators; pass the nn.Module it was made from"
                    )
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
            if self.operators:
                stack.enter_context(self)
            yield

    def start(self, x: Tensor) -> Tensor:
        if "input" in self.edits:
            x = self.edits["input"](x)
        if "input" in self.graph and not x.requires_grad:
            x = x.detach().requires_grad_()
        if "input" in self.wanted:
            self.activations["input"] = x
        return x if self.observer is not None else x.clone()  # the network may overwrite its input

    def finish(self, output: Any) -> None:
        if "output" in self.wanted:
            self.activations["output"] = output
        missing = [asked for found, asked in self.wanted.items() if asked not in self.activations]
        if missing:
            known = [*self.seen, *self.modules]
            state = "was not called in this pass" if canonical(self.root, missing[0]) in self.modules else "does not exist"
            raise AddressError(f"layer {missing[0]!r} {state}{did_you_mean(missing[0], known)} (net.layers() lists them all)")

    @property
    def done(self) -> bool:
        return bool(self.wanted) and self.observer is None and len(self.activations) == len(self.wanted)

    # ---- modules
    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self.thread:
            return
        path = self.names[module]
        self.paths.append((path, self._address(path, operator=False)))
        self.leaf += _is_leaf(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        if threading.get_ident() != self.thread:
            return None
        self.leaf -= _is_leaf(module)
        _, address = self.paths.pop()
        inplace = any(output is t for t in tensors_in(args)) and _is_leaf(module)
        return self._named(address, type(module).__name__, module, output, inplace)

    # ---- operators
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operator_name(func)
        path, address = self.paths[-1] if self.paths else ("", "")
        if not self.leaf:
            address = self._address(f"{path}.{name}" if path else name, operator=True, count=False)
        if self.rewriter is not None and torch.is_grad_enabled() and next(tensors_in(args, kwargs), None) is not None:
            output = self.rewriter.apply(name, address, func, args, kwargs)
        else:
            output = func(*args, **kwargs)
        if not isinstance(output, Tensor) and not (
            isinstance(output, tuple | list) and any(isinstance(t, Tensor) for t in output)
        ):
            return output
        if self.observer is not None:
            self.observer.operator(name, args, kwargs, output)
        if self.leaf:
            return output
        self._address(f"{path}.{name}" if path else name, operator=True)
        return self._named(address, name, None, output, any(output is t for t in tensors_in(args)))

    # ---- both
    def _address(self, base: str, *, operator: bool, count: bool = True) -> str:
        calls = self.calls.get(base, 0)
        if operator and base in self.modules:
            calls = max(calls, 1)
        if count:
            self.calls[base] = calls + 1
        return f"{base}_{calls}" if calls else base

    def _named(self, address: str, operator: str, module: nn.Module | None, output: Any, inplace: bool) -> Any:
        if isinstance(output, Tensor):
            return self._keep(address, operator, module, output, inplace)
        if type(output) in (tuple, list):
            return type(output)(self._named(f"{address}.{i}", operator, module, v, False) for i, v in enumerate(output))
        if type(output) is dict:
            return {k: self._named(f"{address}.{k}", operator, module, v, False) for k, v in output.items()}
        return output

    def _keep(self, address: str, operator: str, module: nn.Module | None, output: Tensor, inplace: bool) -> Tensor:
        self.seen.append(address)
        if self.observer is not None:
            self.observer.value(address, operator, module, output)
        if address not in self.wanted and address not in self.edits:
            return output
        kept = self.edits[address](output) if address in self.edits else output
        if address in self.wanted:
            shared = kept is output and (inplace or output._is_view())
            if address in self.graph and not kept.requires_grad:
                kept = (kept.detach().clone() if shared else kept.detach()).requires_grad_()
            elif shared:
                kept = kept.clone()
            self.activations[self.wanted[address]] = kept
            if self.done:
                raise _Stop
            handed = kept.clone()
        else:
            handed = kept
        if inplace:
            output.copy_(handed)
            return output
        return handed


def _is_leaf(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn") and next(module.children(), None) is None
