"""The decoder (embedding, blocks in the order of `block_uses`, final norm, head) and its cache.

Notable: state-dict names are Llama's without the `model.` prefix; `self_attn` is a block's mixer, attention or not. The
loss never holds full logits. A shared block is one module, used several times in a forward pass; each use has a memory.

Legend: B batch, T tokens, D hidden, V vocabulary.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slm.model.config import ModelConfig
from slm.model.counts import Counts, count, mixers_of_blocks
from slm.model.layers import FeedForward, linear, make_norm, scaled
from slm.model.loss import (
    ChunkLoss,
    SoftTargets,
    chunk_distillation,
    chunk_loss,
    compute_dtype,
    cross_entropy,
    distillation_loss,
    token_losses,
)
from slm.model.mixers.base import Memory, Mixer
from slm.model.mixers.softmax import FLEX_HEAD_DIMS, has_fused_kernels
from slm.model.positions import FLEX_BLOCK, Rotary, document_block_mask, document_starts, rotary_table

COMPILATIONS_PER_KIND = 8
"""Torch's default limit. It allows for blocks of one kind with and without gradients, and for several lengths."""

KERNEL_FILES_RELEASE = "2.13."
"""The release of torch whose private parts `kernel_files.py` replaces. Another release compiles as it always does."""


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)), unless `norm_position` or `parallel_block` says otherwise."""

    def __init__(self, config: ModelConfig, layer: int, mixer: type[Mixer]) -> None:
        super().__init__()
        self.config = config
        norms_inputs = config.norm_position != "post"
        norms_outputs = config.norm_position != "pre"
        norms_mlp_input = norms_inputs and not config.parallel_block
        self.input_layernorm = make_norm(config) if norms_inputs else nn.Identity()
        self.self_attn = mixer(config, layer)
        self.attention_output_norm = make_norm(config) if norms_outputs else nn.Identity()
        self.post_attention_layernorm = make_norm(config) if norms_mlp_input else nn.Identity()
        self.mlp = FeedForward(config)
        self.mlp_output_norm = make_norm(config) if norms_outputs else nn.Identity()

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary | None,
        memory: Memory | None = None,
        documents: Any = None,
        times: int = 1,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); see `Mixer.forward`. `documents` is `starts_BT` or, in its place, the block mask.

        The block is used `times` times in a row; without a memory if more than once. Compiled, these uses are one
        function, which converts the weights once and adds up their gradients as it writes them.
        """
        for _ in range(times):
            normed_BTD = self.input_layernorm(x_BTD)
            x_BTD = self.add_branches(x_BTD, normed_BTD, self.self_attn(normed_BTD, rotary, memory, documents))
        return x_BTD

    def step(self, x_B1D: Tensor, rotary: Rotary | None, *past: Tensor) -> tuple[Tensor, ...]:
        """Return `forward` of one token, then what `Memory.append` must keep. `past` comes from `Memory.past`."""
        normed_B1D = self.input_layernorm(x_B1D)
        mixed_B1D, *new = self.self_attn.step(normed_B1D, rotary, *past)
        return self.add_branches(x_B1D, normed_B1D, mixed_B1D), *new

    def add_branches(self, x_BTD: Tensor, normed_BTD: Tensor, mixed_BTD: Tensor) -> Tensor:
        """Return the block's output, given its input, the normed input, and what the mixer made of that."""
        scale = self.config.residual_multiplier
        x_BTD = x_BTD + scaled(self.attention_output_norm(mixed_BTD), scale)
        mlp_input_BTD = normed_BTD if self.config.parallel_block else self.post_attention_layernorm(x_BTD)
        return x_BTD + scaled(self.mlp_output_norm(self.mlp(mlp_input_BTD)), scale)


class KVCache:
    """Preallocated memory for `max_length` tokens of `batch_size` sequences, separate for each *use* of a block."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        mixers = mixers_of_blocks(config)
        self.memories = [
            mixers[block].make_memory(config, block, batch_size, max_length, device=device, dtype=dtype)
            for block in config.block_uses
        ]
        """One for each use of a block, in the order of the forward pass."""
        self.max_length = max_length  # number of tokens that fit into the cache
        self.length = 0  # number of tokens in the cache; increased once all memories have stored the new tokens

    @property
    def nbytes(self) -> int:
        """Bytes of all memories."""
        return sum(tensor.nbytes for memory in self.memories for tensor in memory.tensors)

    def select(self, source: "KVCache", rows: Tensor) -> None:
        """Copy row `rows[r]` of `source` to row r. The `max_length` of `source` must not exceed that of this cache."""
        for memory, source_memory in zip(self.memories, source.memories, strict=True):
            memory.select(source_memory, rows)
        self.length = source.length


class Decoder(nn.Module):
    """A causal language model of the given shape, initialised from torch's global random state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk_loss: ChunkLoss = chunk_loss
        self.chunk_distillation: ChunkLoss = chunk_distillation
        self.is_compiled = False
        self.activation_checkpointing = False
        """Whether training keeps only the inputs of blocks, and computes each block again in the backward pass."""
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i, mixer) for i, mixer in enumerate(mixers_of_blocks(config)))
        self.norm = make_norm(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise every parameter, in the order of `parameters()`.

        | tensors                           | value            | source                                              |
        |-----------------------------------|------------------|-----------------------------------------------------|
        | embeddings, head, projections     | N(0, init_std)   | MobileLLM's and Llama's `initializer_range` of 0.02 |
        | norm gains, SSD's D               | 1                | arXiv:1910.07467, arXiv:2405.21060                  |
        | biases                            | 0                | GPT-2                                               |
        | other parameters of a mixer       | `init_special`   | SSD: arXiv:2405.21060, the authors' module          |
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=self.config.init_std)
            else:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        for module in self.modules():
            if isinstance(module, Mixer):
                module.init_special()

    @property
    def head_weight(self) -> Tensor:
        """(V, D) weight of the head, tied or not."""
        return self.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.norm.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, and of what quantised weights become in a product."""
        return next(self.norm.parameters()).dtype

    def make_cache(self, batch_size: int, max_length: int, dtype: torch.dtype | None = None) -> KVCache:
        """Return an empty cache for `max_length` tokens of each sequence."""
        size = {"batch_size": batch_size, "max_length": max_length}
        return KVCache(self.config, **size, device=self.device, dtype=dtype or self.dtype)

    def counts(self) -> Counts:
        """Count parameters and bytes."""
        model_bytes = sum(parameter.nbytes for parameter in self.parameters())  # fewer if it is quantised
        return count(self.config, self.dtype.itemsize)._replace(model_bytes=model_bytes)

    def hidden(self, tokens_BT: Tensor, cache: KVCache | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """Return the input of the head, (B, T, D). With a cache, the T tokens come after the cached tokens.

        `documents_BT` has the number of each token's document, which must not decrease along T. A token sees only its
        own document, and learned positions count from the document's start. With None, each row is one document. Raises
        `ValueError` for documents with a cache, and if the tokens exceed `max_position_embeddings` or the cache.
        """
        if cache is not None and documents_BT is not None:
            raise ValueError("documents_BT cannot be used with a cache: a cache holds one document per row")
        start = cache.length if cache else 0
        length = tokens_BT.shape[1]
        self.require_room(length, cache)
        starts_BT = None if documents_BT is None else document_starts(documents_BT)
        x_BTD, rotary = self.embed(tokens_BT, start, starts_BT)
        block_mask = None
        if starts_BT is not None and self._takes_flex_attention(x_BTD):
            block_mask = document_block_mask(starts_BT)  # shared by all blocks
        # With a cache, each use of a block has a memory of its own; without one, uses in a row are one call.
        calls = self.config.block_rows if cache is None else [(block, 1) for block in self.config.block_uses]
        for use, (block, times) in enumerate(calls):
            layer: Any = self.layers[block]
            takes_mask = block_mask is not None and layer.self_attn.takes_block_mask
            documents = block_mask if takes_mask else starts_BT
            memory = cache.memories[use] if cache else None
            inputs = x_BTD, rotary, memory, documents, times
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BTD = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x_BTD = layer(*inputs)
        if cache is not None:
            cache.length += length
        return self.finish(x_BTD)

    def _takes_flex_attention(self, x_BTD: Tensor) -> bool:
        """Whether full attention uses FlexAttention to mask documents. Its kernel is fused only in compiled blocks.

        Passes without gradients do not use it, because validation runs blocks uncompiled.
        """
        has_kernels = has_fused_kernels(x_BTD.device, compute_dtype(x_BTD))
        is_fused = self.is_compiled and torch.is_grad_enabled() and has_kernels
        return is_fused and x_BTD.shape[1] % FLEX_BLOCK == 0 and self.config.head_width in FLEX_HEAD_DIMS

    def embed(
        self, tokens_BT: Tensor, start: int | Tensor, starts_BT: Tensor | None = None
    ) -> tuple[Tensor, Rotary | None]:
        """Return the first block's input (B, T, D), and rotations if any. The first token is at `start`."""
        x_BTD = self.embed_tokens(tokens_BT)
        if self.config.position == "learned":
            if starts_BT is None and isinstance(start, int):
                x_BTD = x_BTD + self.embed_positions.weight[start : start + tokens_BT.shape[1]]
            else:
                indices = torch.arange(tokens_BT.shape[1], device=x_BTD.device)
                positions = indices + start if starts_BT is None else indices - starts_BT
                x_BTD = x_BTD + self.embed_positions(positions)
        rotary = None
        if "rope" in self.config.layer_positions:
            rotary = rotary_table(self.config, start, tokens_BT.shape[1], x_BTD)
        return scaled(x_BTD, self.config.embedding_multiplier), rotary

    def finish(self, x_BTD: Tensor) -> Tensor:
        """Return the input of the head, given the output of the last block."""
        return scaled(self.norm(x_BTD), self.config.logits_multiplier)

    def require_room(self, length: int, cache: KVCache | None = None) -> None:
        """Raise `ValueError` if `length` more tokens do not fit."""
        max_length = self.config.max_position_embeddings
        if cache is not None:
            max_length = min(max_length, cache.max_length)
            length += cache.length
        if length > max_length:
            raise ValueError(f"{length} tokens do not fit: the context or the cache ends at {max_length}")

    def head(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits (..., V)."""
        return linear(hidden, self.head_weight)

    def losses(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Return the cross-entropy in nats of each target, (N,), without gradient; 0 where the target is -100."""
        return token_losses(hidden_ND, self.head_weight, targets_N)

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """Return the logits (B, T, V)."""
        return self.head(self.hidden(tokens_BT, cache, documents_BT))

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        documents_BT: Tensor | None = None,
        grad_scale: Tensor | None = None,
        soft: SoftTargets | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy in nats per token; -100 is not scored. `grad_scale` multiplies gradients.

        With a teacher's `soft` targets, return the three losses of `distillation_loss`.
        """
        hidden_ND = self.hidden(tokens_BT, documents_BT=documents_BT).flatten(0, 1)
        if soft is not None:
            targets_N, function = targets_BT.flatten(), self.chunk_distillation
            return distillation_loss(hidden_ND, self.head_weight, targets_N, soft, function, grad_scale)
        return cross_entropy(hidden_ND, self.head_weight, targets_BT.flatten(), self.chunk_loss, grad_scale)

    def token_losses(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Return the cross-entropy in nats of each token, (B, T), without gradient; 0 where the target is -100."""
        hidden_BTD = self.hidden(tokens_BT, documents_BT=documents_BT)
        return self.losses(hidden_BTD.flatten(0, 1), targets_BT.flatten()).view_as(targets_BT)

    def compile_blocks(self, device: str | None = None) -> None:
        """Compile each block and the loss in place; names of parameters stay. Blocks of one kind are compiled once.

        `device` is the type of the device on which the decoder will run; None stands for the device where it is now.
        """
        configure_compiler(self.config)
        # Called here because a decorator of `has_fused_kernels` would import the compiler (1.4 s) in every program.
        torch.compiler.assume_constant_result(has_fused_kernels)
        on_cpu = (device or self.head_weight.device.type) == "cpu"
        block: Any
        for block in self.layers:
            if block.self_attn.compiles_on_cpu or not on_cpu:
                block.compile(dynamic=False)
        self.chunk_loss = torch.compile(chunk_loss, dynamic=False)
        self.chunk_distillation = torch.compile(chunk_distillation, dynamic=False)
        self.is_compiled = True


def block_kinds(config: ModelConfig) -> list[tuple[str, str, int | None]]:
    """Return the kind of each block: its mixer, positions and window. Blocks of one kind run the same code."""
    return list(zip(config.mixer_letters, config.layer_positions, config.windows, strict=True))


def configure_compiler(config: ModelConfig) -> None:
    """Let torch compile all kinds of blocks. Beyond its limit, torch runs blocks uncompiled or raises an error.

    The other settings save seconds until the first step, and leave the compiled code as it is.
    """
    compiler: Any = torch._dynamo.config
    num_kinds = len(set(block_kinds(config)))
    compiler.recompile_limit = max(compiler.recompile_limit, COMPILATIONS_PER_KIND * num_kinds)
    # Torch does not store the traced gradients of blocks with custom autograd functions (`blocked.py`) by default.
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    if sys.platform == "linux" and torch.__version__.startswith(KERNEL_FILES_RELEASE):
        from slm.model.kernel_files import share_files  # imported here, because it imports the compiler (1.4 s)

        share_files()
        # Gradients are traced with their function, so that g++ compiles its kernels meanwhile.
        torch._functorch.config.force_non_lazy_backward_lowering = True
