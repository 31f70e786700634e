"""FlexAttention's path against the plain one: its values on a CPU, uncompiled, and the real thing on a GPU."""

import pytest
import torch

from slm.model.mixers import flex
from slm.model.mixers.softmax import matmul_attention
from slm.model.positions import alibi_slopes
from tests.model.test_decoder import randomized, small, tokens_of


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("alibi", [False, True])
def test_patterns_and_biases_are_those_of_the_plain_path(alibi: bool) -> None:
    q, k, v = torch.randn(2, 4, 70, 16), torch.randn(2, 2, 70, 16), torch.randn(2, 2, 70, 16)
    slopes = alibi_slopes(4) if alibi else []
    found = flex.pattern_attention(q, k, v, lambda t, s: t - s < 9, 0.3, slopes)
    torch.testing.assert_close(found, matmul_attention(q, k, v, 0.3, slopes, 9), rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_training_by_it_on_a_gpu_gives_the_gradients_of_the_plain_path(position: str, monkeypatch) -> None:
    config = small(mixer_pattern="SP", head_dim=16, sliding_window=50, position=position, init_std=0.05)
    tokens, found = tokens_of(config, 301).cuda(), []
    for enabled in (False, True):
        torch._dynamo.reset()
        monkeypatch.setattr(flex, "ENABLED", enabled)
        decoder = randomized(config).cuda()
        decoder.compile_blocks()
        decoder.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        found.append([p.grad for p in decoder.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-4)
