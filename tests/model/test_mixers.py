"""Every mixer against its definition, written out over all pairs of tokens or token by token, in float64."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slm.model import Decoder
from slm.model.mixers import base, linear, softmax, ssd
from slm.model.mixers.blocked import blocked_attention, inference_attention
from slm.model.mixers.linear import EPSILON, feature
from slm.model.mixers.sliding import sliding_attention
from slm.model.mixers.softmax import causal_attention
from slm.model.mixers.sparse import sparse_attention
from slm.model.positions import alibi_slopes
from slm.runtime.machine import native_bfloat16
from tests.model.shapes import EXACT, dense, normal, randomized, small, tokens_of
from tests.seeds import seeded


def sees(T: int, S: int, rule) -> Tensor:
    return torch.tensor([[s <= t and rule(t, s) for s in range(S)] for t in range(S - T, S)])


heads = st.tuples(st.integers(1, 2), st.integers(1, 3))


@given(heads=heads, T=st.integers(1, 40), past=st.integers(0, 30), window=st.integers(2, 50), alibi=st.booleans())
@settings(max_examples=80, deadline=None)
def test_sliding_attention_is_softmax_over_the_window(heads, T: int, past: int, window: int, alibi: bool) -> None:
    K, G = heads
    q, k, v = normal(2, K * G, T, 6), normal(2, K, T + past, 6, seed=1), normal(2, K, T + past, 6, seed=2)
    slopes = alibi_slopes(K * G) if alibi else []
    expected = dense(q, k, v, sees(T, T + past, lambda t, s: t - s < window), 0.3, slopes)
    for form in (sliding_attention(q, k, v, window, 0.3, slopes), blocked_attention(q, k, v, 0.3, slopes, window)):
        torch.testing.assert_close(form, expected, **EXACT)


@given(
    heads=heads, T=st.integers(1, 30), past=st.integers(0, 20), window=st.sampled_from([None, 7]), alibi=st.booleans()
)
@settings(max_examples=40, deadline=None)
def test_gradients_of_blocked_attention_are_those_of_autograd(
    heads, T: int, past: int, window: int | None, alibi: bool
) -> None:
    K, G = heads
    inputs = [
        normal(2, n, length, 6, seed=i) for i, (n, length) in enumerate([(K * G, T), (K, T + past), (K, T + past)])
    ]
    q, k, v = (x.requires_grad_() for x in inputs)
    slopes = alibi_slopes(K * G) if alibi else []
    outer = normal(2, K * G, T, 6, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slm.model.mixers.blocked.MIN_QUERY_BLOCK", 8)
        mine = torch.autograd.grad(blocked_attention(q, k, v, 0.3, slopes, window), (q, k, v), outer)
    expected = dense(q, k, v, sees(T, T + past, lambda t, s: window is None or t - s < window), 0.3, slopes)
    torch.testing.assert_close(mine, torch.autograd.grad(expected, (q, k, v), outer), **EXACT)


@pytest.mark.parametrize("size", [1.0, 4.0])
def test_gradients_of_blocked_attention_in_bfloat16_lose_no_more_than_torchs_softmax(size: float) -> None:
    inputs = [size * normal(4, 4, 128, 32), size * normal(4, 2, 128, 32, seed=1), normal(4, 2, 128, 32, seed=2)]
    outer = normal(4, 4, 128, 32, seed=3)

    def gradients(attention, dtype: torch.dtype) -> list[Tensor]:
        q, k, v = (x.bfloat16().to(dtype).requires_grad_() for x in inputs)
        grads = torch.autograd.grad(attention(q, k, v), (q, k, v), outer.bfloat16().to(dtype))
        return [x.double() for x in grads]

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
        scores = (q * 32**-0.5 @ k.mT).masked_fill(torch.ones(128, 128, dtype=torch.bool).triu(1), -torch.inf)
        return scores.softmax(-1, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32).type_as(v) @ v

    exact = gradients(plain, torch.float64)
    errors = [
        [((x - y).norm() / y.norm()).item() for x, y in zip(gradients(attention, torch.bfloat16), exact, strict=True)]
        for attention in (lambda q, k, v: blocked_attention(q, k, v, 32**-0.5, []), plain)
    ]
    assert all(mine < 1.4 * torchs for mine, torchs in zip(*errors, strict=True)), errors


@pytest.mark.parametrize("block", [4, 128])
def test_sliding_attention_does_not_depend_on_the_size_of_its_blocks(block: int, monkeypatch) -> None:
    q, k, v = (normal(1, 2, 300, 4, seed=seed) for seed in range(3))
    expected = dense(q, k, v, sees(300, 300, lambda t, s: t - s < 130), 0.5, [])
    monkeypatch.setattr("slm.model.mixers.sliding.QUERY_BLOCK", block)
    torch.testing.assert_close(sliding_attention(q, k, v, 130, 0.5, []), expected, **EXACT)
    torch.testing.assert_close(blocked_attention(q, k, v, 0.5, [], 130), expected, **EXACT)


@given(heads, st.integers(1, 40), st.integers(0, 30), st.integers(1, 5), st.integers(1, 4), st.booleans())
@settings(max_examples=80, deadline=None)
def test_sparse_attention_is_softmax_over_the_block_and_the_columns(
    heads, T: int, past: int, stride: int, blocks: int, alibi: bool
) -> None:
    (K, G), block = heads, stride * blocks
    S, first = T + past, past // block * block
    q, k, v = normal(2, K * G, T, 6), normal(2, K, S, 6, seed=1), normal(2, K, S, 6, seed=2)
    slopes = alibi_slopes(K * G) if alibi else []
    rule = sees(T, S, lambda t, s: t // block == s // block or s % stride == stride - 1)
    kept = torch.tensor([*range(stride - 1, first, stride), *range(first, S)])
    found = sparse_attention(q, k[:, :, kept], v[:, :, kept], (block, stride), past, 0.3, slopes)
    torch.testing.assert_close(found, dense(q, k, v, rule, 0.3, slopes), **EXACT)


@pytest.mark.parametrize("T", [1, 7, 300, 2100])
def test_full_attention_with_alibi_is_softmax_of_scores_less_distances(T: int) -> None:
    q, k, v = normal(1, 6, min(T, 9), 4), normal(1, 2, T, 4, seed=1), normal(1, 2, T, 4, seed=2)
    slopes = alibi_slopes(6)
    expected = dense(q, k, v, sees(q.shape[2], T, lambda t, s: True), 0.5, slopes)
    torch.testing.assert_close(causal_attention(q, k, v, 0.5, slopes), expected, **EXACT)


@pytest.mark.parametrize(("T", "S"), [(2, 2), (64, 64), (150, 150), (1, 90), (130, 200)])
def test_attention_in_bfloat16_without_gradients_is_as_exact_as_torchs_kernel(T: int, S: int) -> None:
    q, k, v = (x.bfloat16() for x in (normal(2, 6, T, 16), normal(2, 2, S, 16, seed=1), normal(2, 2, S, 16, seed=2)))
    exact = dense(*(x.double() for x in (q, k, v)), sees(T, S, lambda t, s: True), 1.9, [])
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = inference_attention(q, k, v, 1.9)  # large scores, which 16 bits would round by much
        torchs = F.scaled_dot_product_attention(q, k, v, mask, scale=1.9, enable_gqa=True)
    assert found.dtype == torch.bfloat16
    ours, theirs = ((x.double() - exact).norm() / exact.norm() for x in (found, torchs))
    assert ours < 0.004  # a number in bfloat16 is rounded by up to 2^-9
    assert ours < 1.5 * theirs


@pytest.mark.skipif(not native_bfloat16("cpu"), reason="needs a CPU with products of bfloat16")
def test_which_passes_take_attention_without_gradients() -> None:
    q = normal(1, 4, 8, 16).bfloat16()
    with patch.object(softmax, "inference_attention", wraps=inference_attention) as ours:
        causal_attention(q, q, q, 0.25, [])  # with gradients
        with torch.no_grad():
            causal_attention(q.float(), q.float(), q.float(), 0.25, [])
            causal_attention(q[:, :, -1:], q, q, 0.25, [])  # one token
            causal_attention(q, q, q, 0.25, alibi_slopes(4))
            assert not ours.called
            causal_attention(q[:, :, -3:], q, q, 0.25, [])
            assert ours.called


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert alibi_slopes(1) == [2**-8]
    assert alibi_slopes(12) == [*alibi_slopes(8), *(2 ** (-(i + 0.5)) for i in range(4))]


@given(heads=heads, T=st.integers(1, 40), chunk=st.integers(1, 50), cut=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_linear_attention_in_chunks_is_the_quadratic_and_the_recurrent_form(heads, T, chunk, cut) -> None:
    (K, G), C, cut = heads, 5, min(cut, T)
    q, k = feature(normal(2, K * G, T, C)), feature(normal(2, K, T, C, seed=1))
    v = normal(2, K, T, C, seed=2)
    k_H, v_H = k.repeat_interleave(G, dim=1), v.repeat_interleave(G, dim=1)

    weights = (q @ k_H.transpose(-2, -1)).tril()
    quadratic = weights @ v_H / (weights.sum(-1, keepdim=True) + EPSILON)
    state, total, recurrent = torch.zeros(2, K * G, C, C).double(), torch.zeros(2, K * G, C).double(), []
    for t in range(T):
        state = state + k_H[:, :, t, :, None] * v_H[:, :, t, None]
        total = total + k_H[:, :, t]
        y = torch.einsum("bhn,bhnc->bhc", q[:, :, t], state)
        recurrent.append(y / ((q[:, :, t] * total).sum(-1, keepdim=True) + EPSILON))

    found, S, z = linear.chunkwise(q, k, v, chunk, None)
    torch.testing.assert_close(found, quadratic, **EXACT)
    torch.testing.assert_close(found, torch.stack(recurrent, dim=2), **EXACT)
    torch.testing.assert_close(S.repeat_interleave(G, dim=1), state, **EXACT)
    torch.testing.assert_close(z.repeat_interleave(G, dim=1), total, **EXACT)
    if 0 < cut < T:  # in two pieces, the second from the state of the first
        first, *held = linear.chunkwise(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], chunk, None)
        second, *_ = linear.chunkwise(q[:, :, cut:], k[:, :, cut:], v[:, :, cut:], chunk, tuple(held))
        torch.testing.assert_close(torch.cat([first, second], dim=2), quadratic, **EXACT)


def test_the_feature_map_is_elu_plus_one_and_stays_positive() -> None:
    x = torch.linspace(-60, 60, 999, dtype=torch.float64)
    torch.testing.assert_close(feature(x), torch.nn.functional.elu(x) + 1, **EXACT)
    assert (feature(x.float()) > 0).all()
    assert feature(torch.tensor(-30.0)).item() == pytest.approx(9.357622968840175e-14, rel=1e-6)


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e4])
def test_linear_attention_and_its_gradient_are_finite_for_queries_of_any_size(size: float) -> None:
    q, k, v = (torch.randn(1, 2, 50, 8) * s for s in (size, size, 1.0))
    q.requires_grad_()
    y, *_ = linear.chunkwise(feature(q), feature(k), v, 16, None)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert q.grad.isfinite().all()
    assert y.abs().max() <= v.abs().max() * (1 + 1e-4)


@given(heads, st.integers(1, 40), st.integers(1, 50), st.integers(0, 40), st.sampled_from([0.01, 1, 30]))
@settings(max_examples=60, deadline=None)
def test_ssd_in_chunks_is_the_quadratic_and_the_recurrent_form(heads, T, chunk, cut, rate) -> None:
    (K, R), N, C, cut = heads, 5, 3, min(cut, T)
    q, k, v = normal(2, T, K, N), normal(2, T, K, N, seed=1), normal(2, T, K, R, C, seed=2)
    log_decay = -rate * normal(2, T, K, R, seed=3).abs()

    since = log_decay.cumsum(1)
    segment = since[:, :, None] - since[:, None]  # (B, T, S, K, R)
    mask = torch.ones(T, T).tril().bool()[:, :, None, None]
    weights = torch.einsum("btkn,bskn->btsk", q, k)[..., None] * segment.masked_fill(~mask, -torch.inf).exp()
    quadratic = torch.einsum("btskr,bskrc->btkrc", weights, v)
    state, recurrent = torch.zeros(2, K, R, N, C).double(), []
    for t in range(T):
        state = state * log_decay[:, t, ..., None, None].exp() + torch.einsum("bkn,bkrc->bkrnc", k[:, t], v[:, t])
        recurrent.append(torch.einsum("bkn,bkrnc->bkrc", q[:, t], state))

    found, last = ssd.chunkwise(q, k, v, log_decay, chunk, None)
    torch.testing.assert_close(found, quadratic, **EXACT)
    torch.testing.assert_close(found, torch.stack(recurrent, dim=1), **EXACT)
    torch.testing.assert_close(last, state, **EXACT)
    if 0 < cut < T:
        first, held = ssd.chunkwise(q[:, :cut], k[:, :cut], v[:, :cut], log_decay[:, :cut], chunk, None)
        second, _ = ssd.chunkwise(q[:, cut:], k[:, cut:], v[:, cut:], log_decay[:, cut:], chunk, held)
        torch.testing.assert_close(torch.cat([first, second], dim=1), quadratic, **EXACT)


def test_an_ssd_mixer_is_mamba2_as_transformers_computes_it() -> None:
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = small(mixer_pattern="G", num_heads=6, num_kv_heads=2, head_dim=16, state_size=8, chunk_size=8)
    ours = randomized(config, torch.float32).layers[0].self_attn
    sizes = {"num_heads": 6, "head_dim": 16, "hidden_size": 48, "expand": 2, "state_size": 8, "n_groups": 2}
    sizes |= {"conv_kernel": 4, "chunk_size": 8}
    reference = Mamba2Config(**sizes, use_bias=False, layer_norm_epsilon=config.norm_eps)
    theirs, w = Mamba2Mixer(reference, layer_idx=0), ours.state_dict()
    state = {"in_proj.weight": torch.cat([w[f"{name}_proj.weight"] for name in ("g", "v", "k", "q", "dt")])}
    state |= {f"conv1d.{kind}": w[f"conv_{kind}"] for kind in ("weight", "bias")}
    state |= {name: w[name] for name in ("dt_bias", "A_log", "D")}
    theirs.load_state_dict(state | {"norm.weight": w["norm_weight"], "out_proj.weight": w["o_proj.weight"]})
    x = torch.randn(2, 21, 48)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, None), theirs(x), rtol=1e-4, atol=1e-4)


def test_initial_decays_are_in_the_range_of_the_paper() -> None:
    torch.manual_seed(seeded())
    mixer = Decoder(small(mixer_pattern="G", num_layers=1, num_heads=96, head_dim=2)).layers[0].self_attn
    dt = torch.nn.functional.softplus(mixer.dt_bias)
    assert 0.001 <= dt.min() < 0.002 < 0.05 < dt.max() <= 0.1
    assert 1 <= mixer.A_log.exp().min() < 2 < 14 < mixer.A_log.exp().max() <= 16
    assert (mixer.D == 1).all()


def test_the_chunk_size_does_not_change_the_function() -> None:
    config = small(mixer_pattern="LG", chunk_size=5)
    decoder = randomized(config, torch.float64)
    other = randomized(small(mixer_pattern="LG", chunk_size=64), torch.float64)
    tokens = tokens_of(config, 23)
    with torch.no_grad():
        torch.testing.assert_close(decoder(tokens), other(tokens), **EXACT)


@pytest.mark.parametrize("dim", [-1, 2])
def test_sums_in_order_are_those_of_cumsum_and_so_are_their_gradients(dim: int) -> None:
    found = []
    for refuses in (True, False):
        x = normal(2, 3, 5, 7).requires_grad_()
        with patch.object(base, "refuses_cumsum", lambda x, refuses=refuses: refuses):
            sums = base.running_sum(x, dim)
        found.append((sums, *torch.autograd.grad(sums, x, normal(2, 3, 5, 7, seed=1))))
    torch.testing.assert_close(*found, **EXACT)
