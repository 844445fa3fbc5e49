"""The order of numbers in memory in which a network runs fastest."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from convoscope.core.operators import tensors_in

SMALLEST = 32 * 32  # pixels; smaller pictures gain nothing
_suits: WeakKeyDictionary[nn.Module, dict[Any, bool]] = WeakKeyDictionary()


def arranged(module: nn.Module, x: Tensor) -> Tensor:
    """A copy of `x` `(B, C, H, W)`, on a CPU with channels last where the network takes that: its convolutions run faster.

    Whether it does is tried once for each shape with one row: networks that `view` a feature map as rows need the usual
    order, and get it. The values of a network are the same in any order, up to rounding.
    """
    usual = x.device.type != "cpu" or x.dim() != 4 or x.dtype not in (torch.float32, torch.bfloat16)
    if usual or not len(x) or x.shape[1] < 2 or x.shape[2] * x.shape[3] < SMALLEST:
        return x.clone()
    known = _suits.setdefault(module, {})
    key = (tuple(x.shape[1:]), x.dtype)
    if key not in known:
        known[key] = _same(module, x[:1].detach())
    return x.clone(memory_format=torch.channels_last if known[key] else torch.preserve_format)


@torch.no_grad()
def _same(module: nn.Module, x: Tensor) -> bool:
    """Whether one row gives the same output in both orders."""
    expected = list(tensors_in(module(x.clone())))
    try:
        found = list(tensors_in(module(x.clone(memory_format=torch.channels_last))))
    except RuntimeError:
        return False
    return len(expected) == len(found) > 0 and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max() if a.numel() else 0))
        for a, b in zip(expected, found, strict=True)
    )
