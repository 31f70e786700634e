"""Small shapes of every kind, decoders and tokens for them, attention written out, and FLOPs counted one by one."""

from contextlib import AbstractContextManager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slm.model import Decoder, KVCache, ModelConfig
from slm.model.decoding import compiled_logits
from tests.seeds import seeded

SHARINGS = ["none", "immediate", "repeat_all_over", "reverse"]


def small(**changes) -> ModelConfig:
    values = {"vocab_size": 101, "hidden_size": 48, "num_layers": 3, "num_heads": 6, "num_kv_heads": 2}
    return ModelConfig(**(values | {"intermediate_size": 96, "init_std": 0.2} | changes))


def shared(sharing: str, **changes) -> ModelConfig:
    return small(layer_sharing=sharing, num_repeats=1 if sharing == "none" else 2, **changes)


def randomized(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder whose gains and biases are random too, so that a reference can notice where they go."""
    torch.manual_seed(seeded())
    decoder = Decoder(config).to(dtype)
    for parameter in decoder.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    return decoder


def shape_in_transformers(config: ModelConfig) -> dict[str, int]:
    """The words of its config classes; shared blocks count once for each use."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": len(config.block_uses),
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.intermediate_size,
    }


def tokens_of(config: ModelConfig, length: int, batch: int = 2) -> Tensor:
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seeded(1)))


SIZES = {"sliding_window": 5, "sparse_block": 6, "sparse_stride": 3, "chunk_size": 4, "state_size": 6}


def shape(pattern: str = "F", **changes) -> ModelConfig:
    return small(mixer_pattern=pattern, **(SIZES | changes))


MIXED = {
    **{pattern: shape(pattern) for pattern in ("S", "P", "L", "G", "SSF", "LLG", "GPF", "PSL")},
    "alibi F": shape("F", position="alibi"),
    "alibi S": shape("S", position="alibi", num_kv_heads=6),
    "alibi P": shape("P", position="alibi", num_kv_heads=1),
    "learned SPF": shape("SPF", position="learned"),
    "none FPS": shape("FPS", position="none"),
    "rope, rope, none": shape("SFP", position_pattern="RRN"),
    "alibi, none": shape("PSF", position_pattern="AN"),
    "S immediate": shape("S", layer_sharing="immediate", num_repeats=2),
    "SPF reverse": shape("SPF", layer_sharing="reverse", num_repeats=2),
    "LGF repeat": shape("LGF", layer_sharing="repeat_all_over", num_repeats=2),
    "P immediate": shape("P", layer_sharing="immediate", num_repeats=3),
    "wide window": shape("SL", sliding_window=40, chunk_size=64, qk_norm="learned"),
    "window of two": shape("S", sliding_window=2),
    "two windows": shape("S", sliding_window=[3, 9]),
    "three windows": shape("S", sliding_window=[3, 2, 40]),
    "windows and others": shape("SLSF", num_layers=5, sliding_window=[7, 40, 3]),
    "windows alibi": shape("SSF", position="alibi", sliding_window=[4, 12]),
    "windows reverse": shape("S", sliding_window=[6, 11], layer_sharing="reverse", num_repeats=2),
    "stride of a block": shape("P", sparse_block=4, sparse_stride=4),
    "every column": shape("P", sparse_block=4, sparse_stride=1),
    "no convolution": shape("G", conv_kernel=1, num_kv_heads=6, attention_bias=True),
    "parallel": shape("LSG", parallel_block=True, mlp="gelu", norm="layernorm", norm_bias=True),
    "post": shape("GF", norm_position="post", mlp="relu2"),
    "both": shape("FP", norm_position="both", mlp="geglu", norm="layernorm"),
    "parallel both": shape("FG", norm_position="both", parallel_block=True),
}

EXACT = {"rtol": 0, "atol": 1e-9}


def assert_causal(config: ModelConfig, length: int, at: int) -> None:
    """The token at `at` changes its own logits and none before."""
    decoder, tokens = randomized(config, torch.float64), tokens_of(config, length)
    changed = tokens.clone()
    changed[:, at] = (changed[:, at] + 1) % config.vocab_size
    with torch.no_grad():
        before, after = decoder(tokens), decoder(changed)
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.equal(before[:, at], after[:, at])


def assert_decodes_in_pieces(config: ModelConfig) -> None:
    decoder, tokens = randomized(config, torch.float64), tokens_of(config, 29)
    cache = KVCache(config, batch_size=2, max_length=29, dtype=torch.float64)
    with torch.no_grad():
        pieces = [decoder(piece, cache) for piece in tokens.split([7, 1, 1, 9, 1, 4, 2, 4], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), decoder(tokens), **EXACT)


def uncompiled() -> AbstractContextManager[object]:
    """Here `compiled_logits` compiles nothing. The stance force_eager does not bind versions made ahead."""
    return patch("torch.compile", lambda function, **_: function)


def logits_by_steps(decoder: Decoder, tokens_1T: Tensor, prompt: int = 1) -> Tensor:
    """Logits (T - prompt + 1, V) of the last token of the prompt and of each after it, one token at a time."""
    dtype = decoder.embed_tokens.weight.dtype
    cache = KVCache(decoder.config, batch_size=1, max_length=tokens_1T.shape[1], dtype=dtype)
    next_logits = compiled_logits(decoder)
    with torch.inference_mode():
        pieces = [tokens_1T[:, :prompt], *tokens_1T[:, prompt:].split(1, dim=1)]
        return torch.stack([next_logits(piece, cache) for piece in pieces])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seeded(seed)))


def dense(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float, slopes: list[float]) -> Tensor:
    """softmax over the visible keys, query heads beside copies of their keys."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    T, S = visible.shape
    distance = torch.arange(S - T, S).double()[:, None] - torch.arange(S).double()
    bias = torch.tensor(slopes or [0.0] * q.shape[1]).double()[:, None, None] * distance
    return (q @ k.transpose(-2, -1) * scale - bias).masked_fill(~visible, -torch.inf).softmax(-1) @ v


def window_of(config: ModelConfig, block: int) -> int:
    given = config.to_dict()["sliding_window"]
    return given[block % len(given)] if isinstance(given, list) else given


def visible_pairs(config: ModelConfig, block: int, T: int) -> int:
    """Counted one by one; in L and G, pairs that meet within a chunk."""
    b, stride, window = config.sparse_block, config.sparse_stride, window_of(config, block)
    rules = {
        "F": lambda t, s: True,
        "S": lambda t, s: t - s < window,
        "P": lambda t, s: t // b == s // b or s % stride == stride - 1,
        "L": lambda t, s: t // config.chunk_size == s // config.chunk_size,
        "G": lambda t, s: t // config.chunk_size == s // config.chunk_size,
    }
    return sum(rules[config.mixer_letters[block]](t, s) for t in range(T) for s in range(t + 1))


def computed_pairs(config: ModelConfig, letter: str, T: int) -> tuple[int, int]:
    """Pairs of whole tiles, masked ones among them, and tokens with those that fill the last tile."""
    if letter in "FS":
        return T * T, T  # on a CPU, up to 128 tokens are one tile
    c = config.sparse_block if letter == "P" else min(config.chunk_size, T)
    n = -(-T // c)
    columns = (n - 1) * (c // config.sparse_stride) if letter == "P" else 0
    return n * c * (c + columns), n * c


def counted_flops(config: ModelConfig, length: int) -> int:
    """What torch's counter sees of a forward pass, less masked pairs and what fills the last tile."""
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):  # flash is not counted
        Decoder(config)(torch.zeros(1, length, dtype=torch.long))
    uncounted, C, N = 0, config.head_width, config.state_size
    for block in config.block_uses:
        letter = config.mixer_letters[block]
        computed, tokens = computed_pairs(config, letter, length)
        a_pair, a_token = 4 * config.num_heads * C, 0
        if letter == "L":
            a_token = 2 * (config.num_heads + config.kv_heads) * C * C
        if letter == "G":
            a_pair = 2 * config.kv_heads * N + 2 * config.num_heads * C
            a_token = 4 * config.num_heads * C * N
        uncounted += a_pair * (computed - visible_pairs(config, block, length)) + a_token * (tokens - length)
    return counter.get_total_flops() - uncounted
