"""The four multipliers of a parametrisation, against the decoder written out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model import Decoder
from tests.model.shapes import logits_by_steps, randomized, shared, small, tokens_of, uncompiled

MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.05}
MULTIPLIERS |= {"logits_multiplier": 0.25}


def by_hand(decoder: Decoder, tokens_BT: Tensor) -> Tensor:
    """Logits in float64, with every head and every pair of tokens computed plainly."""
    config, w = decoder.config, decoder.state_dict()
    T, C = tokens_BT.shape[1], config.head_width
    angles = torch.arange(T).double()[:, None] * config.rope_theta ** (-torch.arange(0, C, 2).double() / C)
    turn = torch.polar(torch.ones(()).double(), angles)

    def normed(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * w[f"{name}.weight"]

    def heads(x: Tensor, name: str, rotated: bool) -> Tensor:
        y = (x @ w[name].T).unflatten(-1, (-1, C)).transpose(1, 2)
        if rotated:
            z = torch.complex(*y.chunk(2, -1)) * turn
            y = torch.cat([z.real, z.imag], -1)
        return y.repeat_interleave(config.num_heads // y.shape[1], dim=1)

    x = w["embed_tokens.weight"][tokens_BT] * config.embedding_multiplier
    for block in config.block_uses:
        at = f"layers.{block}."
        y = normed(x, at + "input_layernorm")
        q, k, v = (heads(y, f"{at}self_attn.{n}_proj.weight", n != "v") for n in "qkv")
        scale = C**-0.5 if config.attention_multiplier is None else config.attention_multiplier
        scores = (q @ k.transpose(-2, -1) * scale).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ w[f"{at}self_attn.o_proj.weight"].T
        x = x + config.residual_multiplier * mixed
        y = normed(x, at + "post_attention_layernorm")
        gate, up, down = (w[f"{at}mlp.{n}_proj.weight"].T for n in ("gate", "up", "down"))
        x = x + config.residual_multiplier * ((F.silu(y @ gate) * (y @ up)) @ down)
    return normed(x, "norm") @ decoder.head_weight.detach().T * config.logits_multiplier


@pytest.mark.parametrize("only", [*MULTIPLIERS, "all", "none"])
def test_logits_and_losses_are_those_computed_by_hand(only: str) -> None:
    chosen = {name: value for name, value in MULTIPLIERS.items() if only in (name, "all")}
    decoder, tokens = randomized(shared("immediate", **chosen), torch.float64), tokens_of(small(), 21)
    expected, targets = by_hand(decoder, tokens[:, :-1]), tokens[:, 1:]
    losses = F.cross_entropy(expected.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    with torch.no_grad():
        torch.testing.assert_close(decoder(tokens[:, :-1]), expected, rtol=0, atol=1e-11)
        torch.testing.assert_close(decoder.token_losses(tokens[:, :-1], targets), losses, rtol=0, atol=1e-11)
        torch.testing.assert_close(decoder.loss(tokens[:, :-1], targets), losses.mean(), rtol=0, atol=1e-11)


def test_the_gradient_of_the_loss_scales_with_the_logits_multiplier() -> None:
    decoder, tokens = randomized(small(**MULTIPLIERS), torch.float64), tokens_of(small(), 12)
    decoder.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    found = decoder.embed_tokens.weight.grad.clone()
    decoder.zero_grad()
    F.cross_entropy(decoder(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    torch.testing.assert_close(found, decoder.embed_tokens.weight.grad, rtol=0, atol=1e-12)


def test_decoding_by_steps_applies_them_too() -> None:
    decoder, tokens = randomized(small(**MULTIPLIERS), torch.float64), tokens_of(small(), 9, batch=1)
    with torch.inference_mode(), uncompiled():
        found = logits_by_steps(decoder, tokens, prompt=3)
        torch.testing.assert_close(found, decoder(tokens)[0, 2:], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_a_multiplier_that_is_no_positive_number_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"model.{name}=0"):
        small(**{name: 0})
