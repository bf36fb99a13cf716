"""The decoder of Llama, Qwen2 and Qwen3 over packs. The weights are those of transformers' modules."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from workers.contract import TrainSpec
from workers.contract.estimate import MemoryPlan
from workers.training.attention import attend
from workers.training.errors import TrainingError
from workers.training.frozen import FrozenWeights, Scratch
from workers.training.lora import FusedLinears, FusedMlp, LinearGroup, Masters, Run, Target
from workers.training.packs import Pack

T = TypeVar("T")
Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of every position of a pack, [T, 1, head_dim / 2] each."""
GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Linear layers of a block that read the same input."""


@dataclass(frozen=True)
class Block:
    """One layer of the decoder."""

    input_norm: nn.Module
    qkv: LinearGroup
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    o: LinearGroup
    middle_norm: nn.Module
    gate_up: LinearGroup
    down: LinearGroup
    widths: tuple[int, int, int]
    """Of queries, keys and values."""
    head_dim: int
    scale: float

    def queries_keys_values(
        self, hidden: torch.Tensor, rotation: Rotation, run: Run
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """hidden [T, hidden] -> queries [T, heads, d], keys and values [T, kv_heads, d], rotated.

        Values are bf16; queries and keys are too on a GPU, and fp32 on a CPU.
        """
        x = normed(self.input_norm, hidden).to(torch.bfloat16)
        found = FusedLinears.apply(x, self.qkv, self.widths, run)
        q, k, v = (each.unflatten(1, (-1, self.head_dim)) for each in found)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = normed(self.q_norm, q), normed(self.k_norm, k)
        # A copy of the values: as a view they would keep the queries and keys before their rotation.
        values = v.to(torch.bfloat16, memory_format=torch.contiguous_format, copy=True)
        return Rotate.apply(q, *rotation), Rotate.apply(k, *rotation), values

    def rest(self, hidden: torch.Tensor, attended: torch.Tensor, run: Run) -> torch.Tensor:
        """The block's input and what attention made of it [T, heads, d] -> the block's output [T, hidden]."""
        (width,) = hidden.shape[1:]
        hidden = hidden + FusedLinears.apply(attended.flatten(1), self.o, (width,), run)
        inner = normed(self.middle_norm, hidden).to(torch.bfloat16)
        return hidden + FusedMlp.apply(inner, self.gate_up, self.down, run)


class Decoder:
    """A PEFT model made ready for packs.

    Its LoRA parameters are views of `masters` from then on, and its linear layers share their weights with
    the fused ones, so transformers and PEFT still see one whole model: to generate with and to save.
    """

    def __init__(self, model: Any, spec: TrainSpec, plan: MemoryPlan, device: torch.device) -> None:
        causal_lm = model.get_base_model()
        _check_config(causal_lm.config, spec)
        self.model, self.spec, self.plan, self.device = model, spec, plan, device
        self.stepped_down = False
        self.masters = Masters(list(_lora_parameters(causal_lm)), device)
        scratch: Scratch | None = {} if plan.weights == "scratch" else None
        self.blocks = [self._block(layer, scratch) for layer in causal_lm.model.layers]
        for module in (causal_lm.model.embed_tokens, causal_lm.model.norm, causal_lm.lm_head):
            module.to(device)
        self.embedding: torch.Tensor = causal_lm.model.embed_tokens.weight
        self.head: torch.Tensor = causal_lm.lm_head.weight
        self._final_norm = causal_lm.model.norm
        self._rotary = causal_lm.model.rotary_emb.to(device)

    def hidden(self, pack: Pack, *, adapter: bool = True) -> torch.Tensor:
        """The last hidden states [P, hidden] at the pack's trained positions, ready for the head."""
        learning = torch.is_grad_enabled()
        run = Run(adapter=adapter, dropout=self.spec.dropout if learning else 0.0)
        hidden = F.embedding(pack.ids, self.embedding)
        rotation = self._rotation(hidden, pack)
        if self.device.type == "cpu":
            # Every block adds to it, and bf16 would round every sum. On a GPU it stays bf16: fp32 would
            # double what checkpointing keeps there.
            hidden = hidden.float()
        if learning:
            # The first thing to learn comes after it; without this the backward pass would not get there.
            hidden.requires_grad_()
        for block in self.blocks:
            hidden = self._through(block, hidden, rotation, pack, run)
        return normed(self._final_norm, hidden.index_select(0, pack.where)).to(torch.bfloat16)

    def refresh(self) -> None:
        """To be called after every change of the masters."""
        self.masters.refresh()
        for block in self.blocks:
            for group in (block.qkv, block.o, block.gate_up, block.down):
                group.refresh()

    def step_down(self, plan: MemoryPlan) -> None:
        """Go on with a smaller plan after a step that ran out of memory, as if it had not been tried."""
        self.plan, self.stepped_down = plan, True
        self.masters.gradient.zero_()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _through(
        self, block: Block, hidden: torch.Tensor, rotation: Rotation, pack: Pack, run: Run
    ) -> torch.Tensor:
        """Run a block. What the memory plan does not keep for the backward pass is made again there."""

        def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return attend(q, k, v, pack, block.scale)

        def whole(hidden: torch.Tensor) -> torch.Tensor:
            attended = attention(*block.queries_keys_values(hidden, rotation, run))
            return block.rest(hidden, attended, run)

        if self.plan.checkpointing == "none" or not torch.is_grad_enabled():
            return whole(hidden)
        if self.plan.checkpointing == "selective":
            attended = attention(*self._again(block.queries_keys_values, hidden, rotation, run))
            return self._again(block.rest, hidden, attended, run)
        offload = self.plan.checkpointing == "offload" and self.device.type == "cuda"
        with torch.autograd.graph.save_on_cpu(pin_memory=True) if offload else nullcontext():
            return self._again(whole, hidden)

    def _again(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call it, keep its arguments alone, and call it again in the backward pass."""
        # Imported here: it loads parts of torch's compiler.
        from torch.utils.checkpoint import checkpoint  # noqa: PLC0415

        found: T = checkpoint(
            function, *arguments, use_reentrant=False, preserve_rng_state=self.spec.dropout > 0
        )
        return found

    def _rotation(self, hidden: torch.Tensor, pack: Pack) -> Rotation:
        cosines, sines = self._rotary(hidden.float(), pack.positions.unsqueeze(0))
        half = cosines.shape[-1] // 2
        return cosines[0, :, None, :half].contiguous(), sines[0, :, None, :half].contiguous()

    def _block(self, layer: Any, scratch: Scratch | None) -> Block:
        attention = layer.self_attn
        qkv, o, gate_up, down = (
            self._group(names, [layer.get_submodule(name) for name in names], scratch) for names in GROUPS
        )
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.to(self.device)
        head_norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        for norm in head_norms:
            if norm is not None:
                norm.to(self.device)
        return Block(
            input_norm=layer.input_layernorm,
            qkv=qkv,
            q_norm=head_norms[0],
            k_norm=head_norms[1],
            o=o,
            middle_norm=layer.post_attention_layernorm,
            gate_up=gate_up,
            down=down,
            widths=tuple(
                _linear(getattr(attention, name)).out_features for name in ("q_proj", "k_proj", "v_proj")
            ),
            head_dim=attention.head_dim,
            scale=attention.scaling,
        )

    def _group(self, names: Sequence[str], modules: list[Any], scratch: Scratch | None) -> LinearGroup:
        adapted = [module for module in modules if _is_adapted(module)]
        inner = self.spec.rank * len(adapted)
        linears = [_linear(module) for module in modules]
        weights = FrozenWeights(linears, inner, self.spec.quantization, scratch, self.device)
        a, a_gradient = self.masters.views([_a(module) for module in adapted], linears[0].in_features)
        targets: list[Target] = []
        column = 0
        for module, linear in zip(modules, linears, strict=True):
            outputs = slice(column, column + linear.out_features)
            column = outputs.stop
            if _is_adapted(module):
                first = self.spec.rank * len(targets)
                targets.append(
                    Target(
                        outputs,
                        slice(first, first + self.spec.rank),
                        *self.masters.views([_b(module)], self.spec.rank),
                    )
                )
        return LinearGroup(
            weights,
            a,
            a_gradient,
            targets,
            self.spec.alpha / self.spec.rank,
            # Of all that bf16 rounds, queries and keys move the loss and the gradients of keys most: softmax
            # magnifies their errors.
            fp32_outputs="self_attn.k_proj" in names and self.device.type == "cpu",
        )


def normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """RMS norm over the last dimension, in fp32 inside, of x in bf16 or fp32, which it stays."""
    weight = norm.weight.to(x.dtype)
    return F.rms_norm(x, weight.shape, weight, norm.variance_epsilon)


class Rotate(torch.autograd.Function):
    """Rotary position embedding: x [T, heads, d] turned by the angles of its positions."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosines, sines)
        return _turned(x, cosines, sines, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cosines, sines = ctx.saved_tensors
        return _turned(gradients[0], cosines, sines, -1), None, None


def _turned(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, direction: int) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat(
        [
            (first * cosines).addcmul_(second, sines, value=-direction),
            (second * cosines).addcmul_(first, sines, value=direction),
        ],
        dim=-1,
    )
    return turned.to(x.dtype)


def _check_config(config: Any, spec: TrainSpec) -> None:
    """Refuse variants of the known architectures that this decoder would compute wrongly."""
    if config.hidden_act != "silu":
        raise TrainingError(
            "unsupported_base",
            f"The base's activation is {config.hidden_act}; only silu is supported. Use another base.",
        )
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    if sliding and config.sliding_window and config.sliding_window < spec.max_length:
        raise TrainingError(
            "unsupported_base",
            f"This base attends to the last {config.sliding_window} tokens only in some layers. "
            f"Set max_length to {config.sliding_window} or less.",
        )


def _lora_parameters(causal_lm: Any) -> Iterator[nn.Parameter]:
    """Group by group: all A matrices, which are multiplied as one, then all B matrices."""
    for layer in causal_lm.model.layers:
        for names in GROUPS:
            adapted = [module for module in map(layer.get_submodule, names) if _is_adapted(module)]
            yield from (_a(module) for module in adapted)
            yield from (_b(module) for module in adapted)


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "lora_A")


def _linear(module: Any) -> nn.Linear:
    found: nn.Linear = module.base_layer if _is_adapted(module) else module
    return found


def _a(module: Any) -> nn.Parameter:
    found: nn.Parameter = module.lora_A["default"].weight
    return found


def _b(module: Any) -> nn.Parameter:
    found: nn.Parameter = module.lora_B["default"].weight
    return found
