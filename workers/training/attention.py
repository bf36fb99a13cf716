"""Causal attention inside each document of a pack. Keys of one document never meet queries of another."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from workers.training.packs import Bucket, Pack

QUERY_BLOCK = 128
"""Queries of a document whose scores exist at a time: a block sees no key after its last query."""


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pack: Pack, scale: float) -> torch.Tensor:
    """q [T, heads, d], k and v [T, kv_heads, d] -> [T, heads, d] of v's dtype; q, k may be fp32 on a CPU."""
    if q.device.type == "cuda":
        # Imported here: it loads a good part of torch's compiler.
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415

        found: torch.Tensor = varlen_attn(
            q,
            k,
            v,
            pack.boundaries,
            pack.boundaries,
            pack.longest,
            pack.longest,
            scale=scale,
            window_size=(-1, 0),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return found
    return BlockAttention.apply(q, k, v, pack, scale)


class BlockAttention(torch.autograd.Function):
    """Attention as matrix products, block by block, scores made again for the backward pass.

    torch's own CPU kernel makes little use of the bf16 units, least of all backward (ran: 6 documents of 83
    tokens in one layer, 1.2 ms forward and 7.1 ms backward; a product like those below takes 0.2 ms). Query
    heads that share a key head are rows of one product.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pack: Pack, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.pack, ctx.scale = pack, scale
        rectangles: list[torch.Tensor] = []
        for bucket in pack.buckets:
            queries, keys, values = (_rectangle(each, bucket, k.shape[1]) for each in (q, k, v))
            found = torch.empty_like(queries, dtype=v.dtype)
            for block, seen in _blocks(bucket.length):
                weights = _weights(queries[:, :, block], keys[:, 0, :seen], scale).to(v.dtype)
                found[:, :, block] = torch.bmm(weights, values[:, 0, :seen]).unflatten(
                    1, (queries.shape[1], -1)
                )
            rectangles.append(found)
        return _put_back(rectangles, pack, torch.empty_like(q, dtype=v.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        parts: list[tuple[torch.Tensor, ...]] = []
        for bucket in ctx.pack.buckets:
            queries, keys, values = (_rectangle(each, bucket, k.shape[1]) for each in (q, k, v))
            gradient = _rectangle(gradients[0], bucket, k.shape[1], cleared=True)
            parts.append(_bucket_gradients(queries, keys, values, gradient, ctx.scale))
        grads = (
            _put_back(rectangles, ctx.pack, torch.empty_like(each))
            for rectangles, each in zip(zip(*parts, strict=True), (q, k, v), strict=True)
        )
        return *grads, None, None


def _bucket_gradients(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, gradient: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    low = values.dtype
    dq, dk, dv = (
        torch.empty_like(queries, dtype=low),
        torch.zeros_like(keys, dtype=low),
        torch.zeros_like(values),
    )
    for block, seen in _blocks(queries.shape[2]):
        k, v = keys[:, 0, :seen].to(low), values[:, 0, :seen]
        q, upstream = queries[:, :, block].flatten(1, 2).to(low), gradient[:, :, block].flatten(1, 2)
        weights = _weights(queries[:, :, block], keys[:, 0, :seen], scale).to(low)
        inner = torch.bmm(upstream, v.transpose(1, 2))
        inner = torch._softmax_backward_data(inner, weights, -1, weights.dtype).mul_(scale)
        dq[:, :, block] = torch.bmm(inner, k).unflatten(1, (queries.shape[1], -1))
        dk[:, 0, :seen].baddbmm_(inner.transpose(1, 2), q)
        dv[:, 0, :seen].baddbmm_(weights.transpose(1, 2), upstream)
    return dq, dk, dv


def _weights(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax of the scores [N, group * n, seen] of the last n of the `seen` places; later keys weigh 0.

    The scores are fp32: rounded to bf16 a score of 10 is off by up to 0.03, and its weight by as much.
    """
    shared, group, count, _ = queries.shape
    seen = keys.shape[1]
    scores = torch.bmm(queries.flatten(1, 2).float() * scale, keys.float().transpose(1, 2))
    scores.view(shared, group, count, seen)[..., seen - count :].add_(_later(count, scores.dtype))
    return torch.softmax(scores, -1)


@functools.cache
def _later(count: int, dtype: torch.dtype) -> torch.Tensor:
    """[count, count] minus infinity where the key comes after the query."""
    return torch.full((count, count), -torch.inf, dtype=dtype).triu_(1)


def _blocks(length: int) -> Iterator[tuple[slice, int]]:
    """Blocks of queries, and how many keys each of them sees."""
    for start in range(0, length, QUERY_BLOCK):
        seen = min(start + QUERY_BLOCK, length)
        yield slice(start, seen), seen


def _rectangle(x: torch.Tensor, bucket: Bucket, kv_heads: int, *, cleared: bool = False) -> torch.Tensor:
    """[T, heads, d] -> [documents * kv_heads, heads that share a key head, length, d].

    No token sees an empty place, which is behind its document: it may hold anything unless `cleared`, as a
    gradient has to be.
    """
    heads, d = x.shape[1:]
    laid = x.flatten(1).index_select(0, bucket.positions)
    if cleared:
        laid.index_fill_(0, bucket.empty, 0)
    split = laid.view(bucket.documents, bucket.length, kv_heads, heads // kv_heads, d)
    return split.permute(0, 2, 3, 1, 4).reshape(-1, heads // kv_heads, bucket.length, d)


def _put_back(rectangles: Sequence[torch.Tensor], pack: Pack, out: torch.Tensor) -> torch.Tensor:
    """The other way round, into `out` [T, heads, d]; 0 at places of no document."""
    tokens = len(pack.places)
    sizes = [len(bucket.positions) for bucket in pack.buckets]
    laid = rectangles[0].new_empty(sum(sizes), *out.shape[1:])
    for bucket, rectangle, part in zip(pack.buckets, rectangles, laid.split(sizes), strict=True):
        _, group, length, d = rectangle.shape
        split = rectangle.view(bucket.documents, -1, group, length, d).permute(0, 3, 1, 2, 4)
        part.view(split.shape).copy_(split)
    out[tokens:] = 0
    out[:tokens] = laid.flatten(1).index_select(0, pack.places).view(tokens, *out.shape[1:])
    return out
