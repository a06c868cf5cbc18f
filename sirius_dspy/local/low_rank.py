"""The operations of a decoder with low-rank adapters, each with a backward pass that does no work for frozen weights.

PyTorch's automatic differentiation would save more, cast more, and start two to three times as many small operations,
which is what a step with short rows spends its time on.
"""

from __future__ import annotations

from typing import Any

import torch


class AdaptedLinear(torch.autograd.Function):
    """Applies `x @ weight.T + bias`, and to each agent's tokens its own low-rank update as well.

    All tokens share one product with the frozen weight, which gets no gradient. The updates of all agents are two
    products as well: the inner values of other agents are multiplied with 0, forward and backward.

    Args of `apply`:
        x: `(tokens, inputs)`.
        weight: `(outputs, inputs)`, frozen.
        bias: `(outputs,)`, frozen, or `None`.
        scales: `(tokens, ranks)`, with the ranks of one agent after the other: `alpha / rank` of an agent for its own
            tokens and ranks, 0 elsewhere.
        kept: `(tokens, inputs)` that the inputs of the updates are multiplied with, for dropout, or `None`.
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
        scales: torch.Tensor,
        kept: torch.Tensor | None,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        narrow, wide = _join(factors[::2], 0), _join(factors[1::2], 1)
        inner = ((x if kept is None else x * kept) @ narrow.T).mul_(scales)
        ctx.ranks = [len(part) for part in factors[::2]]
        ctx.save_for_backward(x, weight, scales, kept, narrow, wide, inner)
        return torch.nn.functional.linear(x, weight, bias).addmm_(inner, wide.T)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:  # noqa: D102
        x, weight, scales, kept, narrow, wide, inner = ctx.saved_tensors
        grad_inner = (grad @ wide).mul_(scales)
        grad_narrow = grad_inner.T @ (x if kept is None else x * kept)
        grad_wide = grad.T @ inner
        grads = zip(grad_narrow.split(ctx.ranks), grad_wide.split(ctx.ranks, 1), strict=True)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if kept is None:
                grad_x.addmm_(grad_inner, narrow)
            else:
                grad_x.addcmul_(grad_inner @ narrow, kept)
        return grad_x, None, None, None, None, *(part for pair in grads for part in pair)


def _join(parts: tuple[torch.Tensor, ...], dim: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class RMSNorm(torch.autograd.Function):
    """Divides `(..., width)` by the root of its mean square, and scales it by a frozen weight; at least in float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:  # noqa: D102
        precise = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
        factor = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return (x * factor).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: D102
        x, weight, factor = ctx.saved_tensors
        scaled = (grad * weight) * factor
        along = (scaled * x).sum(-1, keepdim=True).mul_(factor.square()).div_(-x.shape[-1])
        return scaled.addcmul_(along, x.to(scaled.dtype)).to(x.dtype), None, None


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
