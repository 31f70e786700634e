"""The decoder of fixed shapes computes what the decoder does, in float64, whatever the calls in which a text comes."""

import pytest
import torch

from slm.model import Decoder, ModelConfig
from slm.model.mixers.softmax import SoftmaxAttention
from slm.model.static import StaticDecoder
from tests.seeds import seeded

SHAPE = {"vocab_size": 97, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "init_std": 0.3}
SHAPE |= {"intermediate_size": 48, "max_position_embeddings": 64}
SHAPES = {
    "grouped": {},
    "alibi": {"position": "alibi"},
    "learned": {"position": "learned", "mlp": "gelu", "norm": "layernorm"},
    "sliding": {"mixer_pattern": "SF", "sliding_window": 7},
    "sparse": {"mixer_pattern": "P", "sparse_block": 8, "sparse_stride": 4, "position": "alibi"},
    "linear": {"mixer_pattern": "L", "chunk_size": 8},
    "ssd": {"mixer_pattern": "GF", "state_size": 8, "chunk_size": 8, "rope_style": "interleaved"},
    "shared": {"layer_sharing": "immediate", "num_repeats": 2, "mixer_pattern": "FG", "state_size": 8},
    "odd": {"layer_sharing": "reverse", "num_repeats": 2, "parallel_block": True, "qk_norm": "learned"},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_static_decoder_computes_what_the_decoder_does(changes: dict) -> None:
    torch.manual_seed(seeded())
    decoder = Decoder(ModelConfig(**SHAPE | changes)).double().requires_grad_(False)
    static = StaticDecoder(decoder, 48).double()
    tokens_1T = torch.randint(97, (1, 45))
    expected = decoder(tokens_1T)
    for lengths in ((13, 1, 1, 20, 1, 9), (45,)):  # the second begins a new text in the memory of the first
        parts, start = [], 0
        for length in lengths:
            parts.append(static(tokens_1T[:, start : start + length], torch.tensor([start])))
            start += length
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-11)


def test_a_mixer_without_the_method_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SoftmaxAttention, "forward_static")
    with pytest.raises(ValueError, match=r"mixer F \(SoftmaxAttention\) has no forward_static"):
        StaticDecoder(Decoder(ModelConfig(**SHAPE)), 8)
