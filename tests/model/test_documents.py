"""Documents of a packed sequence against the same documents alone, in float64; P against a dense mask."""

from functools import cache
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slm.model import Decoder, KVCache, ModelConfig
from slm.model.mixers.sparse import sparse_attention
from slm.model.positions import alibi_slopes, document_starts
from tests.model.shapes import EXACT, MIXED, dense, normal, randomized, shape, small, tokens_of

ALONE = {
    **{name: config for name, config in MIXED.items() if "P" not in config.mixer_pattern},
    "F": shape("F"),
    "learned FSLG": shape("FSLG", position="learned", num_layers=4),
    "none F": shape("F", position="none"),
    "rope, alibi": shape("FS", position_pattern="RA"),
}
PATHS = {"blocks on a CPU": (2048, 8), "elsewhere": (0, 8)}
"""Tokens up to which a CPU has a path of its own, and the queries of its blocks."""


@cache
def exact(config: ModelConfig) -> Decoder:
    return randomized(config, torch.float64)


@pytest.fixture(params=PATHS.values(), ids=list(PATHS))
def path(request: pytest.FixtureRequest):
    limit, block = request.param
    mixers = "slm.model.mixers"
    with (
        patch(f"{mixers}.softmax.CPU_BLOCKED_ATTENTION_MAX_TOKENS", limit),
        patch(f"{mixers}.sliding.CPU_BLOCKED_ATTENTION_MAX_TOKENS", limit),
        patch(f"{mixers}.blocked.MIN_QUERY_BLOCK", block),
    ):
        yield


@st.composite
def packed(draw, most: int = 30, least: int = 1) -> Tensor:
    """Numbers of documents, (2, T); those of both rows differ, and skip some."""
    T = draw(st.integers(least, most))
    rows = [draw(st.lists(st.sampled_from([0, 0, 0, 1, 3]), min_size=T, max_size=T)) for _ in range(2)]
    return torch.tensor(rows).cumsum(1)


def alone(decoder: Decoder, tokens_BT: Tensor, documents_BT: Tensor) -> Tensor:
    """Logits (B, T, V) of each document in a forward pass of its own."""
    rows = []
    for tokens_T, documents_T in zip(tokens_BT, documents_BT, strict=True):
        lengths = documents_T.unique_consecutive(return_counts=True)[1].tolist()
        rows.append(torch.cat([decoder(piece[None])[0] for piece in tokens_T.split(lengths)]))
    return torch.stack(rows)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("config", ALONE.values(), ids=list(ALONE))
@given(documents_BT=packed())
@settings(max_examples=8, deadline=None)
def test_packed_documents_have_the_logits_that_they_have_alone(config: ModelConfig, documents_BT: Tensor) -> None:
    decoder, tokens_BT = exact(config), tokens_of(config, documents_BT.shape[1])
    with torch.no_grad():
        found = decoder(tokens_BT, documents_BT=documents_BT)
        torch.testing.assert_close(found, alone(decoder, tokens_BT, documents_BT), **EXACT)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("pattern", ["F", "S", "L", "G"])
def test_so_they_do_at_the_default_sizes_with_boundaries_at_and_around_every_edge(pattern: str) -> None:
    """Chunks of 64, blocks of 128, a window of 150 and one that reaches over all of a document."""
    config = small(mixer_pattern=pattern, num_layers=1, sliding_window=150)
    lengths = [[1, 63, 64, 65, 1, 190, 16], [64, 127, 1, 1, 200, 7]]
    documents_BT = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])
    tokens_BT = tokens_of(config, 400)
    with torch.no_grad():
        found = exact(config)(tokens_BT, documents_BT=documents_BT)
        torch.testing.assert_close(found, alone(exact(config), tokens_BT, documents_BT), **EXACT)


def same_document(documents_BT: Tensor) -> Tensor:
    return documents_BT[:, :, None] == documents_BT[:, None]


@given(documents_BT=packed(), stride=st.integers(1, 5), per_block=st.integers(1, 4), alibi=st.booleans())
@settings(max_examples=60, deadline=None)
def test_sparse_attention_is_softmax_over_its_pattern_within_the_document(
    documents_BT: Tensor, stride: int, per_block: int, alibi: bool
) -> None:
    (B, T), block = documents_BT.shape, stride * per_block
    q, k, v = normal(B, 4, T, 6), normal(B, 2, T, 6, seed=1), normal(B, 2, T, 6, seed=2)
    slopes = alibi_slopes(4) if alibi else []
    t, s = torch.arange(T)[:, None], torch.arange(T)
    pattern = (s <= t) & ((t // block == s // block) | (s % stride == stride - 1))
    visible_BTT = pattern & same_document(documents_BT)
    found = sparse_attention(q, k, v, (block, stride), 0, 0.3, slopes, document_starts(documents_BT))
    expected = [dense(q[b : b + 1], k[b : b + 1], v[b : b + 1], visible_BTT[b], 0.3, slopes) for b in range(B)]
    torch.testing.assert_close(found, torch.cat(expected), **EXACT)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("pattern", ["F", "S", "P", "L", "G"])
def test_the_loss_of_a_document_has_its_own_gradients_and_none_in_other_documents(pattern: str) -> None:
    decoder, tokens_1T = exact(shape(pattern)), tokens_of(shape(pattern), 24, batch=1)
    begin, end = (6, 18) if pattern == "P" else (7, 17)  # blocks of P stay where they are in the sequence
    documents_1T = torch.tensor([[0] * begin + [1] * (end - begin) + [2] * (24 - end)])
    entered = []
    hook = decoder.embed_tokens.register_forward_hook(lambda *call: call[2].retain_grad() or entered.append(call[2]))
    decoder(tokens_1T, documents_BT=documents_1T)[0, begin:end].square().sum().backward()
    decoder(tokens_1T[:, begin:end]).square().sum().backward()
    hook.remove()
    packed_TD, alone_TD = (x_1TD.grad[0] for x_1TD in entered)
    torch.testing.assert_close(packed_TD[begin:end], alone_TD, rtol=1e-9, atol=1e-9)
    assert not packed_TD[:begin].any()
    assert not packed_TD[end:].any()


def test_traced_blocks_keep_gradients_and_other_documents_want_no_other_compilation() -> None:
    """Without inductor, which takes a minute for these; tests/training/test_document_masking.py has it."""
    decoder = randomized(shape("FSPLG", num_layers=5))
    tokens_BT, first_BT = tokens_of(decoder.config, 24), torch.arange(23).expand(2, 23) // 9

    def gradients(documents_BT: Tensor) -> list[Tensor]:
        loss = decoder.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], documents_BT)
        return [loss.detach(), *torch.autograd.grad(loss, list(decoder.parameters()))]

    second_BT = torch.stack([first_BT[0] // 2, first_BT[0] * 0])
    expected = [gradients(documents_BT) for documents_BT in (first_BT, second_BT)]
    for block in decoder.layers:
        block.compile(dynamic=False, backend="aot_eager")
    found = [gradients(first_BT)]
    with torch.compiler.set_stance("fail_on_recompile"):
        found.append(gradients(second_BT))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", ["loss", "token_losses"])
def test_losses_are_those_of_the_masked_logits(method: str) -> None:
    decoder, tokens_BT = exact(shape("FG")), tokens_of(shape("FG"), 24)
    documents_BT, targets_BT = (torch.arange(23) // 5).expand(2, 23), tokens_BT[:, 1:]
    logits_BTV = alone(decoder, tokens_BT[:, :-1], documents_BT)
    expected_BT = torch.nn.functional.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none")
    found = getattr(decoder, method)(tokens_BT[:, :-1], targets_BT, documents_BT)
    torch.testing.assert_close(found, expected_BT.mean() if method == "loss" else expected_BT, rtol=1e-6, atol=1e-6)


def test_documents_with_a_cache_are_refused() -> None:
    decoder = exact(shape("F"))
    cache = KVCache(decoder.config, batch_size=1, max_length=9, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^documents_BT cannot be used with a cache: a cache holds one document per "):
        decoder(torch.tensor([[1, 2]]), cache, torch.tensor([[0, 1]]))
