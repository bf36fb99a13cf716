"""LoRA without its overhead: fp32 masters in one vector, and products that do base and LoRA at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from workers.training.frozen import FrozenWeights


class Masters:
    """All LoRA matrices as one fp32 vector that learns, its gradient, and its bf16 copy that is multiplied.

    One vector is clipped, stepped and copied by one kernel each. PEFT's parameters become views of it, so
    that whatever PEFT reads or writes is what the engine trains.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        self.vector = nn.Parameter(
            torch.cat([parameter.data.float().flatten() for parameter in parameters]).to(device)
        )
        self.gradient = torch.zeros_like(self.vector)
        self.vector.grad = self.gradient
        self.copies = self.vector.detach().to(torch.bfloat16)
        self._begins: dict[int, int] = {}
        begin = 0
        for parameter in parameters:
            self._begins[id(parameter)] = begin
            parameter.data = self.vector.detach()[begin : begin + parameter.numel()].view(parameter.shape)
            begin += parameter.numel()

    def refresh(self) -> None:
        """Carry the masters over into the bf16 copy."""
        self.copies.copy_(self.vector.detach())

    def views(self, parameters: Sequence[nn.Parameter], width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(bf16 copy, gradient) of matrices of `width` columns that follow each other, as one matrix each."""
        begin = self._begins[id(parameters[0])] if parameters else 0
        end = begin + sum(parameter.numel() for parameter in parameters)
        return self.copies[begin:end].view(-1, width), self.gradient[begin:end].view(-1, width)

    def gradient_of(self, parameter: nn.Parameter) -> torch.Tensor:
        """The gradient of one of PEFT's parameters, in its shape."""
        return self.views([parameter], parameter.shape[1])[1]


@dataclass(frozen=True)
class Target:
    """One linear layer of a group that carries a LoRA."""

    outputs: slice
    """Its columns of the group's output."""
    inner: slice
    """Its columns of the group's inner products."""
    b: torch.Tensor
    """[outputs, rank] bf16."""
    b_gradient: torch.Tensor
    """The same in fp32."""


class LinearGroup:
    """Linear layers that read the same input, with the LoRAs of those that carry one.

    Every product with the base's weights does the LoRA's inner product as well: `x @ [W; A].T` forward and
    `[dy, dh] @ [W; A]` backward, where h = x A.T and dh = scale * dy B.
    """

    def __init__(
        self,
        weights: FrozenWeights,
        a: torch.Tensor,
        a_gradient: torch.Tensor,
        targets: Sequence[Target],
        scale: float,
        *,
        fp32_outputs: bool = False,
    ) -> None:
        self.weights = weights
        self.a = a
        """[inner, inputs] bf16: the A matrices of all targets, one after the other."""
        self.a_gradient = a_gradient
        """The same in fp32."""
        self.targets = targets
        self.scale = scale
        self.fp32_outputs = fp32_outputs
        self.refresh()

    def refresh(self) -> None:
        self.weights.refresh(self.a)

    def forward(self, x: torch.Tensor, run: "Run") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """x [T, inputs] -> outputs [T, outputs], inner products h [T, inner], and dropout's factors of x.

        Outputs and h are views of one tensor; whoever keeps only one of them keeps both.
        """
        matrix, bias = self.weights.matrix(self.a), self.weights.bias
        outputs = self.weights.outputs
        dropped = None
        if run.adapter and run.dropout:
            dropped = F.dropout(torch.ones_like(x), run.dropout)
        linear = _linear_in_fp32 if self.fp32_outputs else F.linear
        if run.adapter and dropped is None:
            both = linear(x, matrix, bias)
            y, h = both[:, :outputs], both[:, outputs:]
        else:
            y = linear(x, matrix[:outputs], None if bias is None else bias[:outputs])
            h = x.new_empty(len(x), 0) if dropped is None else linear(x * dropped, matrix[outputs:], None)
        if run.adapter:
            for target in self.targets:
                y[:, target.outputs].addmm_(h[:, target.inner], target.b.T.to(y.dtype), alpha=self.scale)
        return y, h, dropped

    def upstream(self, tokens: int) -> torch.Tensor:
        """An empty [tokens, outputs + inner] for the gradient of the outputs, which `backward` completes."""
        return self.a.new_empty(tokens, self.weights.outputs + len(self.a))

    def backward(
        self, x: torch.Tensor, h: torch.Tensor, dropped: torch.Tensor | None, upstream: torch.Tensor
    ) -> torch.Tensor:
        """Add to the gradients of A and B; return the gradient of x. `upstream` is filled for the outputs."""
        outputs = self.weights.outputs
        matrix = self.weights.matrix(self.a)
        dh = upstream[:, outputs:]
        for target in self.targets:
            dy = upstream[:, target.outputs]
            torch.mm(dy, target.b, out=dh[:, target.inner])
            target.b_gradient.add_((h[:, target.inner].T @ dy).T, alpha=self.scale)
        dh.mul_(self.scale)
        if dropped is None:
            self.a_gradient.add_(dh.T @ x)
            return upstream @ matrix
        self.a_gradient.add_(dh.T @ (x * dropped))
        return (upstream[:, :outputs] @ matrix[:outputs]).addcmul_(dh @ matrix[outputs:], dropped)


def _linear_in_fp32(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [T, inputs] and matrix [outputs, inputs] in bf16 -> [T, outputs] in fp32, on a CPU.

    torch has no product there of bf16 matrices with an fp32 result. oneDNN's is one of fp32 matrices that it
    may round to bf16, which loses nothing where they come from bf16.
    """
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        return F.linear(x.float(), matrix.float(), None if bias is None else bias.float())
    finally:
        matmul.fp32_precision = before


@dataclass(frozen=True)
class Run:
    """How a forward pass is made."""

    adapter: bool = True
    dropout: float = 0.0


class FusedLinears(torch.autograd.Function):
    """x [T, inputs] -> one output [T, width] per width. Backward adds to the gradients of the masters."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, group: LinearGroup, widths: Sequence[int], run: Run
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        y, h, dropped = group.forward(x, run)
        # A copy, since h would keep all of the outputs alive.
        ctx.save_for_backward(x, h.to(x.dtype, copy=True), dropped)
        ctx.group = group
        return y if len(widths) == 1 else y.split(list(widths), dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, h, dropped = ctx.saved_tensors
        upstream = ctx.group.upstream(len(x))
        torch.cat(gradients, dim=1, out=upstream[:, : ctx.group.weights.outputs])
        return ctx.group.backward(x, h, dropped, upstream), None, None, None


class FusedMlp(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) for x [T, hidden]; backward makes the product inside again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate_up: LinearGroup, down: LinearGroup, run: Run) -> torch.Tensor:
        inner, h, dropped = gate_up.forward(x, run)
        gate, up = inner.chunk(2, dim=1)
        y, h_down, dropped_down = down.forward(F.silu(gate).mul_(up), run)
        ctx.save_for_backward(x, inner, h, dropped, h_down.clone(), dropped_down)
        ctx.groups = gate_up, down
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner, h, dropped, h_down, dropped_down = ctx.saved_tensors
        gate_up, down = ctx.groups
        gate, up = inner.chunk(2, dim=1)
        activated = F.silu(gate)
        upstream = down.upstream(len(x))
        upstream[:, : down.weights.outputs] = gradients[0]
        product = down.backward(activated * up, h_down, dropped_down, upstream)
        upstream = gate_up.upstream(len(x))
        width = gate.shape[1]
        torch.mul(product, activated, out=upstream[:, width : 2 * width])
        torch.ops.aten.silu_backward.grad_input(product.mul_(up), gate, grad_input=upstream[:, :width])
        return gate_up.backward(x, h, dropped, upstream), None, None, None
