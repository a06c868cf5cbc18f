"""The operations of a decoder with low-rank adapters, each with a backward pass that does no work for frozen weights.

PyTorch's automatic differentiation would save more, cast more, and start two to three times as many small operations,
which is what a step with short rows spends its time on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class AdaptedLinear(torch.autograd.Function):
    """Applies `x @ weight.T + bias`, and to each agent's tokens its own low-rank update as well.

    All tokens share one product with the frozen weight, which gets no gradient. Agents only differ in
    `scale * (x @ narrow.T) @ wide.T`.

    Args of `apply`:
        x: `(tokens, inputs)`.
        weight: `(outputs, inputs)`, frozen.
        bias: `(outputs,)`, frozen, or `None`.
        spans: One slice of the tokens per agent; together they cover all tokens.
        scales: One number per agent, `alpha / rank`.
        masks: One mask per agent that is multiplied with the input of its update, for dropout, or `None`.
        *factors: `narrow`, `(rank, inputs)`, and `wide`, `(outputs, rank)`, of each agent in turn.

    References:
        LoRA (arXiv:2106.09685).
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        spans: Sequence[slice],
        scales: Sequence[float],
        masks: Sequence[torch.Tensor | None],
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        y = torch.nn.functional.linear(x, weight, bias)
        inner = []
        for span, scale, mask, narrow, wide in zip(spans, scales, masks, factors[::2], factors[1::2], strict=True):
            inner.append(_masked(x[span], mask) @ narrow.T)
            y[span].addmm_(inner[-1], wide.T, alpha=scale)
        ctx.spans, ctx.scales, ctx.masks = spans, scales, masks
        ctx.save_for_backward(x, weight, *factors, *inner)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:  # noqa: D102
        x, weight, *rest = ctx.saved_tensors
        count = len(ctx.spans)
        factors, inner = rest[: 2 * count], rest[2 * count :]
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grads: list[torch.Tensor] = []
        for number, (span, scale, mask) in enumerate(zip(ctx.spans, ctx.scales, ctx.masks, strict=True)):
            narrow, wide = factors[2 * number : 2 * number + 2]
            grad_inner = (grad[span] @ wide).mul_(scale)
            grads += [grad_inner.T @ _masked(x[span], mask), (grad[span].T @ inner[number]).mul_(scale)]
            if grad_x is None:
                continue
            if mask is None:
                grad_x[span].addmm_(grad_inner, narrow)
            else:
                grad_x[span].addcmul_(grad_inner @ narrow, mask)
        return grad_x, None, None, None, None, None, *grads


def _masked(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return x if mask is None else x * mask


class RMSNorm(torch.autograd.Function):
    """Divides `(..., width)` by the root of its mean square, computed in float32, and scales it by a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:  # noqa: D102
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        factor = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return (x * factor).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: D102
        x, weight, factor = ctx.saved_tensors
        scaled = (grad * weight) * factor
        along = (scaled * x).sum(-1, keepdim=True).mul_(factor.square()).div_(-x.shape[-1])
        return scaled.addcmul_(along, x.float()).to(x.dtype), None, None


class SwiGLU(torch.autograd.Function):
    """Multiplies `silu(gate)` with `up`, the two halves of `(tokens, 2 * width)`."""

    @staticmethod
    def forward(ctx: Any, both: torch.Tensor) -> torch.Tensor:  # noqa: D102
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, -1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # noqa: D102
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        # d silu / d gate = sigmoid + silu * (1 - sigmoid)
        slope = torch.addcmul(sigmoid, silu, sigmoid, value=-1).add_(silu)
        return torch.cat([slope.mul_(up).mul_(grad), silu.mul_(grad)], -1)


class Rotation(torch.autograd.Function):
    """Rotates the halves of each head, `(tokens, heads, width)`, by angles of shape `(tokens, 1, width)`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:  # noqa: D102
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: D102
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned
