"""The base's linear weights, which never change, in the shape in which they are multiplied."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

Scratch = dict[tuple[int, int], torch.Tensor]
"""One bf16 matrix per shape, shared by all layers: whoever uses it fills it first."""


class FrozenWeights:
    """Linear layers that read the same input, as one bf16 matrix [outputs + extra, inputs].

    Its last `extra` rows are left to the LoRA: base outputs and LoRA's inner products come out of one
    product. With "nf4" the weights are rounded to what bitsandbytes keeps of them. They then either stay
    unpacked ("resident") or stay packed and are unpacked into `scratch` before each use.
    """

    def __init__(
        self,
        linears: Sequence[nn.Linear],
        extra: int,
        quantization: Literal["nf4", "none"],
        scratch: Scratch | None,
        device: torch.device,
    ) -> None:
        self.inputs = linears[0].in_features
        self.outputs = sum(linear.out_features for linear in linears)
        self.bias = _bias(linears, extra, device)
        self._shape = (self.outputs + extra, self.inputs)
        self._scratch = scratch if quantization == "nf4" else None
        self._packed: list[_Packed] = []
        if self._scratch is None:
            self._resident = torch.empty(self._shape, dtype=torch.bfloat16, device=device)
        elif self._shape not in self._scratch:
            self._scratch[self._shape] = torch.empty(self._shape, dtype=torch.bfloat16, device=device)
        start = 0
        for linear in linears:
            weight = linear.weight.data.to(device, torch.bfloat16)
            rows = slice(start, start + len(weight))
            start = rows.stop
            if self._scratch is not None:
                self._packed.append(_Packed(weight, rows))
                self._leave_unpacking(linear, self._packed[-1])
                continue
            if quantization == "nf4":
                _Packed(weight, rows).unpack_into(self._resident)
            else:
                self._resident[rows] = weight
            # The module shares the weights, so that transformers can still generate with the model.
            linear.weight.data = self._resident[rows]

    def _leave_unpacking(self, linear: nn.Linear, packed: "_Packed") -> None:
        """Take the weights out of the module, and let it unpack them whenever transformers calls it."""

        def forward(x: torch.Tensor) -> torch.Tensor:
            scratch = self._filled_scratch([packed])
            return F.linear(x, scratch[packed.rows], linear.bias)

        linear.weight.data = linear.weight.data.new_empty(0)
        linear.forward = forward

    def _filled_scratch(self, parts: "Sequence[_Packed]") -> torch.Tensor:
        assert self._scratch is not None
        matrix = self._scratch[self._shape]
        for packed in parts:
            packed.unpack_into(matrix)
        return matrix

    def matrix(self, lora_rows: torch.Tensor) -> torch.Tensor:
        """The whole matrix, with `lora_rows` [extra, inputs] as its last rows.

        A scratch matrix holds these weights until another layer asks for its own.
        """
        if self._scratch is None:
            return self._resident
        matrix = self._filled_scratch(self._packed)
        matrix[self.outputs :] = lora_rows
        return matrix

    def refresh(self, lora_rows: torch.Tensor) -> None:
        """Take the LoRA's new values over, where the matrix stays."""
        if self._scratch is None:
            self._resident[self.outputs :] = lora_rows


class _Packed:
    """One layer's weight in NF4, for some rows of the matrix."""

    def __init__(self, weight: torch.Tensor, rows: slice) -> None:
        from bitsandbytes.functional import quantize_4bit  # noqa: PLC0415 - slow to import, not always needed

        self.codes, self.state = quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
        self.rows = rows

    def unpack_into(self, matrix: torch.Tensor) -> None:
        from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415

        if matrix.is_cuda:
            dequantize_4bit(self.codes, self.state, out=matrix[self.rows])
        else:
            # bitsandbytes cannot write into a given tensor there.
            matrix[self.rows] = dequantize_4bit(self.codes, self.state)


def _bias(linears: Sequence[nn.Linear], extra: int, device: torch.device) -> torch.Tensor | None:
    """[outputs + extra], 0 where a layer has none and for the LoRA; None when no layer has one."""
    if all(linear.bias is None for linear in linears):
        return None
    parts = [
        torch.zeros(linear.out_features) if linear.bias is None else linear.bias.data.float()
        for linear in linears
    ]
    return torch.cat([*parts, torch.zeros(extra)]).to(device, torch.bfloat16)
