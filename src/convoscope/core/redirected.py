"""Operator calls whose value stays and whose gradient is another."""

from typing import Any

import torch
from torch import Tensor


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return type(value)(_detached(v) for v in value) if type(value) in (tuple, list) else value


class Kept:
    """An input or value needed again in the backward pass; copied if the network is about to overwrite it."""

    def __init__(self, tensor: Tensor, pointwise: bool = False) -> None:
        self.tensor, self.pointwise, self.read = tensor.detach(), pointwise, False


class Redirect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Any, pull: Any, pointwise: bool) -> Tensor:
        value = call.value()
        ctx.call, ctx.pull = call, pull
        ctx.x, ctx.value = call._keep(x), call._keep(value, pointwise)
        call.kept, call._keep = ctx.value, Kept  # a node that held the rewriter would hold every graph it has seen
        call.x, call.args, call.signals = x.detach(), _detached(call.args), []  # a node that held the graph would stay
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.call.x = ctx.x.tensor
        return ctx.pull(ctx.call, ctx.value.tensor, gradients[0]), None, None, None


class Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Any, pull: Any) -> Tensor:
        ctx.pull = pull
        if call.inplace:
            ctx.mark_dirty(x)
        value = call.native()
        call.x, call.args, call.signals = x.detach(), _detached(call.args), []
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.pull(gradients[0]), None, None


class RedirectEach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Any, pull: Any, *signals: Tensor) -> Tensor:
        value = call.value()
        ctx.call, ctx.pull = call, pull
        ctx.signals, ctx.value = [call._keep(s) for s in signals], call._keep(value)
        call.kept, call._keep = ctx.value, Kept
        call.x, call.args, call.signals = signals[0].detach(), _detached(call.args), []
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.call.signals = [kept.tensor for kept in ctx.signals]
        ctx.call.x = ctx.call.signals[0]
        return None, None, *ctx.pull(ctx.call, ctx.value.tensor, gradients[0])
