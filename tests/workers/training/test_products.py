"""Products of bf16 matrices on a CPU without bf16 units."""

import pytest
import torch

from workers.training.products import WideProducts


def matrices(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., 33, 65] and [..., 65, 17] in bf16."""
    made = torch.Generator().manual_seed(0)
    return (
        torch.randn(*shape, 33, 65, generator=made).bfloat16(),
        torch.randn(*shape, 65, 17, generator=made).bfloat16(),
    )


@pytest.mark.parametrize("shape", [(), (4,)])
def test_a_product_is_made_in_fp32_and_rounded_once(shape: tuple[int, ...]) -> None:
    a, b = matrices(*shape)
    exact = a.float() @ b.float()
    with WideProducts():
        assert torch.equal(a @ b, exact.bfloat16())
        out = torch.empty_like(exact, dtype=torch.bfloat16)
        if not shape:
            assert torch.mm(a, b, out=out) is out and torch.equal(out, exact.bfloat16())
            bias = torch.ones(17).bfloat16()
            assert torch.equal(torch.nn.functional.linear(a, b.T), exact.bfloat16())
            assert torch.equal(torch.nn.functional.linear(a, b.T, bias), (exact + 1).bfloat16())


@pytest.mark.parametrize(("shape", "name"), [((), "addmm"), ((4,), "baddbmm")])
def test_what_is_added_to_is_rounded_with_the_sum(shape: tuple[int, ...], name: str) -> None:
    a, b = matrices(*shape)
    before = torch.ones(*shape, 33, 17).bfloat16()
    wanted = (before.float() + 0.5 * (a.float() @ b.float())).bfloat16()
    with WideProducts():
        torch.testing.assert_close(getattr(torch, name)(before, a, b, alpha=0.5), wanted)
        kept = before.clone()
        getattr(kept, f"{name}_")(a, b, alpha=0.5)
        torch.testing.assert_close(kept, wanted)


def test_gradients_are_made_in_the_same_way() -> None:
    a, b = matrices()
    a.requires_grad_()
    with WideProducts():
        (a @ b).sum().backward()
    assert a.grad is not None
    assert torch.equal(a.grad, (torch.ones(33, 17) @ b.float().T).bfloat16())


def test_fp32_stays_what_it_is() -> None:
    a, b = (each.float() for each in matrices())
    with WideProducts():
        assert (a @ b).dtype == torch.float32
