"""Decoding token by token against one forward pass over the whole sequence, in float64."""

import pytest
import torch
from torch import Tensor

from slm.model import Decoder, KVCache, ModelConfig
from slm.model.decoding import compiled_logits
from tests.model.shapes import randomized, shared, small, tokens_of

SHAPES = [
    small(num_kv_heads=6),
    small(num_kv_heads=1, rope_style="interleaved"),
    small(qk_norm="learned", attention_bias=True, mlp_bias=True),
    small(qk_norm="weightless", head_dim=10, tie_embeddings=False),
    shared("immediate"),
    shared("reverse"),
]


def by_steps(decoder: Decoder, tokens_1T: Tensor, prompt: int) -> Tensor:
    cache = KVCache(decoder.config, batch_size=1, max_length=tokens_1T.shape[1], dtype=torch.float64)
    next_logits = compiled_logits(decoder)
    with torch.inference_mode():
        pieces = [tokens_1T[:, :prompt], *tokens_1T[:, prompt:].split(1, dim=1)]
        return torch.stack([next_logits(piece, cache) for piece in pieces])


def whole(decoder: Decoder, tokens_1T: Tensor, prompt: int) -> Tensor:
    with torch.inference_mode():
        return decoder(tokens_1T)[0, prompt - 1 :]


@pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.qk_norm}-{c.layer_sharing}-{c.rope_style}-{c.kv_heads}")
def test_a_step_computes_what_a_forward_pass_over_everything_does(config: ModelConfig) -> None:
    decoder, tokens = randomized(config, torch.float64), tokens_of(config, 12, batch=1)
    with torch.compiler.set_stance("force_eager"):
        stepped = by_steps(decoder, tokens, prompt=4)
    torch.testing.assert_close(stepped, whole(decoder, tokens, prompt=4), rtol=1e-10, atol=1e-10)


def test_the_compiled_step_is_the_same_function_and_is_compiled_once_for_all_lengths() -> None:
    config = shared("repeat_all_over", attention_bias=True)
    decoder, tokens = randomized(config, torch.float64), tokens_of(config, 20, batch=1)
    torch._dynamo.utils.counters.clear()
    stepped = by_steps(decoder, tokens, prompt=1)
    torch.testing.assert_close(stepped, whole(decoder, tokens, prompt=1), rtol=1e-10, atol=1e-10)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # a block's step and the head


def test_decoding_past_the_end_of_the_context_is_refused() -> None:
    decoder = randomized(small(max_position_embeddings=5), torch.float64)
    with pytest.raises(ValueError, match="6 tokens do not fit"), torch.compiler.set_stance("force_eager"):
        by_steps(decoder, tokens_of(decoder.config, 7, batch=1), prompt=4)
