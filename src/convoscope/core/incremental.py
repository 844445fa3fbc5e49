"""Replaying a forward pass for many local changes of one image, recomputing only what each of them reaches.

One clean pass notes what every operator gave. Then the network's own forward runs again, for many rows at once, on tensors
without data that stand for patches of the clean ones (`replay.Patch`); operators that have no rule for patches, and all that
follows a change that has spread over the map, run on real tensors, as ever. The sequence of calls must be the same in both,
nothing may look at a number on the way, and no operator may be hidden: else `Unreplayable`, never another result.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from convoscope.core.operators import Call, operator_name, tensors_in
from convoscope.core.replay import Local, Patch, filled, names, replayed

DEVICE = names("device is_cuda is_cpu is_meta is_mps is_xpu get_device type")
METADATA = DEVICE | names(
    "size shape dim ndim ndimension dtype layout numel nelement element_size itemsize nbytes stride storage_offset len "
    "is_contiguous is_floating_point is_complex is_inference is_leaf is_sparse is_quantized is_mkldnn is_nested is_view "
    "is_signed is_same_size is_tensor is_conj is_neg names has_names requires_grad grad grad_fn output_nr version hash"
)


class Unreplayable(Exception):
    """The network does something on its way that cannot be replayed."""


@dataclass
class Value:
    """A tensor as it was when it was made, whatever is done to it later."""

    tensor: Tensor


@dataclass
class Step:
    """One call of the clean pass: its results, and where its tensors came from (True: an image; False: made on the way).

    `same`: which of its tensors it gave back; `overwrote`: it changed the first of them; `shares`: a result is in their memory.
    """

    name: str
    values: list[Value]
    sources: list[Any]
    same: int | None
    overwrote: bool
    shares: bool
    many: bool


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if not t.is_meta)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _apart(patch: Patch, others: list[Patch]) -> Patch:
    """A patch in memory of its own."""
    values = patch.values
    if values is None or not any(p.values is not None and _memory(p.values) == _memory(values) for p in others):
        return patch
    return replace(patch, values=values.clone())


class Clean(TorchFunctionMode):
    """Notes every call of one pass of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.largest = 0  # bytes that a call reads and writes at most
        self._values = WeakTensorKeyDictionary()  # tensors that depend on the image
        self._made = WeakTensorKeyDictionary()  # other tensors made by the pass
        self._memory: dict[int, list[Value]] = {}

    def known(self, tensor: Tensor) -> Tensor:
        """A tensor that is to be replayed."""
        self._note(tensor)
        return tensor

    def value(self, tensor: Tensor) -> Tensor:
        """What is kept of it."""
        return self._values[tensor].tensor

    def _note(self, tensor: Tensor) -> Value:
        value = Value(tensor.detach())
        self._values[tensor] = value
        self._memory.setdefault(_memory(tensor), []).append(value)
        return value

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, operator_name(func)
        tensors = list(tensors_in(args, kwargs))
        if name in METADATA:
            return func(*args, **kwargs)
        derived = [t in self._values for t in tensors]
        overwrites = any(derived) and Call(name, "", func, args, kwargs).inplace
        if overwrites:
            self._preserve(tensors[0])
        versions = [t._version for t in tensors]
        output = func(*args, **kwargs)
        changed = [i for i, (t, v) in enumerate(zip(tensors, versions, strict=True)) if t._version != v]
        if changed and any(derived) and not (overwrites and changed == [0] and (output is None or output is tensors[0])):
            raise Unreplayable(f"{name} overwrites what it is given")
        sources = [d or (False if t in self._made else t) for t, d in zip(tensors, derived, strict=True)]
        results = list(tensors_in(output))
        if changed and any(derived):
            self._alone(tensors[0])
            results = [tensors[0]]
        if any(derived) and not results:
            raise Unreplayable(f"{name} looks at the numbers")
        same = next((i for i, t in enumerate(tensors) if t is output), None)
        values: list[Value] = []
        for t in results:
            if any(derived):
                values.append(self._note(t))
            else:
                self._made[t] = True
        if any(derived):
            self.largest = max(self.largest, _bytes([*(t for t, d in zip(tensors, derived, strict=True) if d), *results]))
        shares = bool({_memory(t) for t in tensors} & {_memory(t) for t in results})
        self.steps.append(Step(name, values, sources, same, bool(changed), shares, not isinstance(output, Tensor)))
        return output

    def _preserve(self, tensor: Tensor) -> None:
        """Keeps what is known of a tensor's memory, which is about to be overwritten."""
        for value in self._memory.pop(_memory(tensor), ()):
            value.tensor = value.tensor.clone()

    def _alone(self, tensor: Tensor) -> None:
        memory = _memory(tensor)
        if any(t is not tensor and _memory(t) == memory for t in list(self._values.keys())):
            raise Unreplayable("a tensor is overwritten that others share their memory with")


class Replay(TorchFunctionMode):
    """The same pass for many rows."""

    def __init__(self, clean: Clean, rows: int) -> None:
        super().__init__()
        self.clean, self.rows, self.at = clean, rows, 0
        self.largest = 0
        self._states = WeakTensorKeyDictionary()  # tensor without data -> the patch, or the real tensor, that it stands for

    def stand_in(self, state: Patch | Tensor) -> Tensor:
        """A tensor without data that stands for a patch."""
        shape = state.shape if isinstance(state, Tensor) else (self.rows, *state.clean.shape[1:])
        dtype = state.dtype if isinstance(state, Tensor) else state.clean.dtype
        empty = torch.empty(shape, dtype=dtype, device="meta")
        self._states[empty] = state
        return empty

    def real(self, tensor: Tensor) -> Tensor:
        """What a tensor of the replayed pass holds."""
        state: Any = self._states.get(tensor, tensor)
        if isinstance(state, Patch):
            whole = state.whole(self.rows)
            return whole.clone() if self.rows == 1 and state.values is None else whole
        if state.is_meta:
            raise Unreplayable("a hidden operator made a tensor")
        return state

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, operator_name(func)
        tensors = list(tensors_in(args, kwargs))
        held = [t in self._states for t in tensors]
        if name in METADATA:
            if name in DEVICE and any(held):
                state = self._states[tensors[held.index(True)]]
                args = (state.clean if isinstance(state, Patch) else state, *args[1:])
            return func(*args, **kwargs)
        step = self._next(name, tensors, held)
        if not any(held):
            return func(*args, **kwargs)
        if step.same is not None and not step.overwrote:
            return tensors[step.same]
        return self._run(step, func, args, kwargs, tensors)

    def _next(self, name: str, tensors: list[Tensor], held: list[bool]) -> Step:
        if self.at >= len(self.clean.steps):
            raise Unreplayable("the pass is longer than the clean one")
        step = self.clean.steps[self.at]
        self.at += 1
        if step.name != name or len(step.sources) != len(tensors):
            raise Unreplayable(f"{name} where the clean pass called {step.name}")
        for tensor, source, stands in zip(tensors, step.sources, held, strict=True):
            if stands != (source is True) and (stands or tensor.is_meta):
                raise Unreplayable(f"{name} is given a tensor that a hidden operator made")
            if isinstance(source, Tensor) and source is not tensor:
                raise Unreplayable(f"{name} is given another tensor than in the clean pass")
        return step

    def _run(self, step: Step, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        states = [self._states.get(t, t) for t in tensors]
        self._count(states)
        moving = any(isinstance(s, Tensor) and source is True for s, source in zip(states, step.sources, strict=True))
        found = None
        if not moving and not (step.overwrote and tensors[0] not in self._states):
            patches, others = [s for s in states if isinstance(s, Patch)], [s for s in states if isinstance(s, Tensor)]
            values = [v.tensor for v in step.values]
            args_, kwargs_ = (filled(v, lambda t: self._states.get(t, t)) for v in (args, kwargs))
            found = replayed(Local(step.name, func, args_, kwargs_, values, self.rows, patches, others))
            if isinstance(found, list) and not (step.shares or step.overwrote):
                found = [_apart(p, patches) for p in found]
        if found is None:
            return self._whole(step, func, args, kwargs, tensors)
        found = [found] if isinstance(found, Tensor) else found
        self._count(found)
        if step.overwrote:
            return self._overwritten(step, tensors[0], found[0])
        out = tuple(p if isinstance(p, Tensor) else self.stand_in(p) for p in found)
        return out if step.many else out[0]

    def _whole(self, step: Step, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        """The call on real tensors of all rows."""
        reals = {id(t): self.real(t) for t in tensors}
        first = tensors[0]
        if step.overwrote and isinstance(state := self._states.get(first), Patch) and state.values is None:
            reals[id(first)] = reals[id(first)].clone()
        output = func(*filled(args, lambda t: reals[id(t)]), **filled(kwargs, lambda t: reals[id(t)]))
        self._count([*reals.values(), *tensors_in(output)])
        if step.overwrote and first in self._states:
            return self._overwritten(step, first, reals[id(first)])
        return output

    def _overwritten(self, step: Step, tensor: Tensor, state: Patch | Tensor) -> Tensor | None:
        tensor.zero_()  # counts as a change for whoever watches versions
        self._states[tensor] = state
        return None if step.same is None else tensor

    def _count(self, states: Any) -> None:
        held = [s.values if isinstance(s, Patch) else s for s in states]
        self.largest = max(self.largest, _bytes(t for t in held if isinstance(t, Tensor)))
