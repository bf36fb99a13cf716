"""Matrix products on CPUs without bf16 units.

torch's products of bf16 matrices are up to sixty times slower there than those of fp32 ones (ran: 2 GF/s
against 140 on two cores of an EPYC with AVX2), and a run that takes a minute elsewhere would take hours.
"""

from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_WIDE = {
    _aten.mm.default: _aten.mm.default,
    _aten.mm.out: _aten.mm.default,
    _aten.addmm.default: _aten.addmm.default,
    _aten.addmm_.default: _aten.addmm.default,
    _aten.bmm.default: _aten.bmm.default,
    _aten.baddbmm.default: _aten.baddbmm.default,
    _aten.baddbmm_.default: _aten.baddbmm.default,
}
"""What torch is asked for: what makes a new fp32 matrix of it."""
_IN_PLACE = (_aten.addmm_.default, _aten.baddbmm_.default)


class WideProducts(TorchDispatchMode):
    """Makes products of bf16 matrices in fp32 and rounds them once, as bf16 units do."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        wide = _WIDE.get(func)
        if wide is None or args[0].dtype != torch.bfloat16 or args[0].device.type != "cpu":
            return func(*args, **kwargs)
        out = args[0] if func in _IN_PLACE else kwargs.pop("out", None)
        made = wide(*(each.float() if isinstance(each, torch.Tensor) else each for each in args), **kwargs)
        return made.to(torch.bfloat16) if out is None else out.copy_(made)


@cache
def widen_products() -> None:
    """From now on in this thread, where this machine needs it."""
    if not torch.cuda.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        WideProducts().__enter__()
