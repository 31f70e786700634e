"""What attention gives torch's fused kernels of a GPU: groups of queries, and documents as one block mask a pass."""

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest.mock import Mock, patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from slm.model import Decoder, positions
from slm.model.mixers import softmax
from slm.model.positions import alibi_slopes, document_block_mask, document_starts
from tests.model.shapes import EXACT, dense, normal, randomized, shape, small, tokens_of
from tests.model.test_documents import packed, same_document


@pytest.fixture
def flex() -> Iterator[None]:
    """FlexAttention where a GPU would have it, unfused; torch itself refuses its gradients on a CPU."""
    with (
        patch.object(Decoder, "_takes_flex_attention", lambda self, x_BTD: True),
        patch("torch.nn.attention.flex_attention._validate_device"),
    ):
        yield


@given(documents_BT=packed(least=64, most=64))
@settings(max_examples=30, deadline=None)
def test_the_block_mask_is_the_one_that_torch_makes_of_all_pairs(documents_BT: Tensor) -> None:
    with patch.object(positions, "FLEX_BLOCK", 8):
        found = document_block_mask(document_starts(documents_BT))
    visible = same_document(documents_BT) & torch.ones(64, 64, dtype=torch.bool).tril()
    expected = create_block_mask(lambda b, h, t, s: visible[b, t, s], 2, None, 64, 64, device="cpu", BLOCK_SIZE=8)
    for name, blocks in vars(expected).items():
        if isinstance(blocks, Tensor):
            assert torch.equal(getattr(found, name), blocks), name
    b, t, s = torch.meshgrid(torch.arange(2), torch.arange(64), torch.arange(64), indexing="ij")
    assert torch.equal(found.mask_mod(b, b, t, s), visible)


def gradients(decoder: Decoder, tokens_BT: Tensor, documents_BT: Tensor) -> list[Tensor]:
    loss = decoder.loss(tokens_BT, tokens_BT, documents_BT)
    return [loss.detach(), *torch.autograd.grad(loss, list(decoder.parameters()))]


def documents_of(tokens_BT: Tensor) -> Tensor:
    return (tokens_BT % 30 == 7).cumsum(1)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("pattern", ["F", "SFPG"])
def test_flex_attention_has_the_loss_and_gradients_of_the_other_masks(pattern: str, request: pytest.FixtureRequest):
    decoder = randomized(shape(pattern, num_layers=len(pattern), qk_norm="learned"), torch.float64)
    tokens_BT = tokens_of(decoder.config, 256)
    expected = gradients(decoder, tokens_BT, documents_of(tokens_BT))
    request.getfixturevalue("flex")
    with patch("torch.nn.attention.flex_attention.flex_attention", wraps=flex_attention) as calls:
        found = gradients(decoder, tokens_BT, documents_of(tokens_BT))
    assert calls.call_count == pattern.count("F")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("flex")
def test_all_blocks_share_one_block_mask_a_pass_which_other_patterns_and_linear_biases_never_see() -> None:
    decoder, seen = Decoder(shape("FFSPLGF", num_layers=7, position_pattern="RRRRRRA")), []
    for block in decoder.layers:
        block.self_attn.register_forward_pre_hook(lambda module, args: seen.append(args[3]))
    tokens_BT = tokens_of(decoder.config, 128)
    with patch("torch.nn.attention.flex_attention.flex_attention", side_effect=lambda q, *args, **kwargs: q):
        decoder.loss(tokens_BT, tokens_BT, documents_of(tokens_BT))
    assert [isinstance(one, BlockMask) for one in seen] == [True, True, *[False] * 5]
    assert seen[0] is seen[1]


@pytest.mark.parametrize("has_flex", [True, False])
def test_compiled_blocks_have_no_tensor_of_all_pairs_and_other_documents_want_no_other_compilation(
    has_flex: bool, flex: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the masks of a GPU without FlexAttention there are such tensors, so this would notice them."""
    monkeypatch.setattr(softmax, "CPU_BLOCKED_ATTENTION_MAX_TOKENS", 0)
    monkeypatch.setattr(Decoder, "_takes_flex_attention", lambda self, x_BTD: has_flex)
    decoder, sizes = randomized(shape("F", num_layers=1)), []
    tokens_BT = tokens_of(decoder.config, 128)

    def record(graph: GraphModule, inputs: list[Tensor]) -> Callable:
        values = [node.meta.get("val") for node in graph.graph.nodes]
        sizes.extend(value.shape for value in values if isinstance(value, Tensor))
        return make_boxed_func(graph)

    for block in decoder.layers:
        block.compile(dynamic=False, backend=aot_autograd(fw_compiler=record, bw_compiler=record))
    gradients(decoder, tokens_BT, documents_of(tokens_BT))
    with torch.compiler.set_stance("fail_on_recompile"):
        gradients(decoder, tokens_BT, documents_of(tokens_BT + 1))
    assert any(tuple(size[-2:]) == (128, 128) for size in sizes) == (not has_flex)


MASK, CAUSAL = {"attn_mask": torch.ones(300, 300, dtype=torch.bool).tril()}, {"is_causal": True}
CASES = {
    "flash attention takes groups": (torch.bfloat16, 64, 8, CAUSAL, True),
    "fp16 too": (torch.float16, 64, 8, CAUSAL, True),
    "no fused kernel takes groups with a mask": (torch.bfloat16, 64, 8, MASK, False),
    "nor in float32": (torch.float32, 64, 8, CAUSAL, False),
    "nor with so many channels": (torch.bfloat16, 320, 8, CAUSAL, False),
    "nor on a T4": (torch.float16, 64, 7, CAUSAL, False),
}


@pytest.mark.parametrize(("dtype", "C", "capability", "options", "in_groups"), CASES.values(), ids=list(CASES))
def test_on_a_gpu_grouped_queries_get_copies_of_their_keys_where_no_fused_kernel_takes_groups(
    dtype: torch.dtype, C: int, capability: int, options: dict, in_groups: bool
) -> None:
    """On a tensor without values whose device is a GPU."""
    device = SimpleNamespace(major=capability)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        patch("torch.cuda.get_device_properties", lambda device_: device),
        patch.object(F, "scaled_dot_product_attention", side_effect=lambda q, *args, **kwargs: q) as sdpa,
    ):
        q, k = (torch.empty(2, heads, 300, C, dtype=dtype, device="cuda") for heads in (9, 3))
        softmax._sdpa(q, k, k, scale=0.1, **options)
    assert sdpa.call_args.args[1].shape[1] == (3 if in_groups else 9)
    assert sdpa.call_args.kwargs["enable_gqa"] == in_groups


@pytest.mark.parametrize("slopes", [[], alibi_slopes(6)], ids=["rope", "alibi"])
def test_copies_of_keys_change_no_value(slopes: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "_takes_groups", lambda q, mask: False)
    monkeypatch.setattr(softmax, "CPU_BLOCKED_ATTENTION_MAX_TOKENS", 0)
    q, k, v = normal(2, 6, 20, 8), normal(2, 2, 20, 8, seed=1), normal(2, 2, 20, 8, seed=2)
    documents_BT = torch.stack([torch.arange(20) // 7, torch.arange(20) // 3])
    visible_BTT = same_document(documents_BT) & torch.ones(20, 20, dtype=torch.bool).tril()
    found = softmax.causal_attention(q, k, v, 0.3, slopes, document_starts(documents_BT))
    expected = [dense(q[b : b + 1], k[b : b + 1], v[b : b + 1], visible_BTT[b], 0.3, slopes) for b in range(2)]
    torch.testing.assert_close(found, torch.cat(expected), **EXACT)


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", ["F", "SFPLG"])
def test_masked_documents_on_a_gpu_have_the_gradients_of_a_cpu(pattern: str) -> None:
    host = randomized(small(mixer_pattern=pattern, num_layers=len(pattern), head_dim=64, init_std=0.05))
    tokens_BT = tokens_of(host.config, 512)
    expected = gradients(host, tokens_BT, documents_of(tokens_BT))
    host.cuda().compile_blocks()
    with (
        torch.autocast("cuda", torch.bfloat16),
        patch("slm.model.decoder.document_block_mask", wraps=document_block_mask) as block_masks,
    ):
        found = gradients(host, tokens_BT.cuda(), documents_of(tokens_BT).cuda())
    assert block_masks.call_count == 1
    for one, other in zip(found, expected, strict=True):
        assert (one.cpu() - other).norm() < 0.05 * other.norm()


@pytest.mark.gpu
def test_masked_documents_cost_less_than_a_third_more_time_and_memory() -> None:
    config = small(vocab_size=1000, hidden_size=576, num_layers=4, num_heads=9, num_kv_heads=3, intermediate_size=1536)
    decoder = Decoder(config).cuda()
    decoder.compile_blocks()
    tokens_BT = torch.randint(1000, (16, 2048), device="cuda")

    def cost(documents_BT: Tensor | None) -> tuple[float, int]:
        seconds = []
        for _ in range(6):
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            with torch.autocast("cuda", torch.bfloat16):
                decoder.loss(tokens_BT, tokens_BT, documents_BT).backward()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        return min(seconds), torch.cuda.max_memory_allocated()

    plain, masked = cost(None), cost((tokens_BT < 3).cumsum(1))
    assert masked[0] < 1.3 * plain[0]
    assert masked[1] < 1.3 * plain[1]


@pytest.mark.parametrize("is_compiling", [False, True])
@pytest.mark.parametrize("has_gradients", [False, True])
def test_only_compiled_training_on_a_cpu_attends_in_blocks(
    monkeypatch: pytest.MonkeyPatch, is_compiling: bool, has_gradients: bool
) -> None:
    """Elsewhere SDPA is several times faster."""
    blocked = Mock(return_value="blocks")
    monkeypatch.setattr(softmax, "blocked_attention", blocked)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    q, k, v = (torch.randn(1, heads, 8, 4, requires_grad=has_gradients) for heads in (2, 1, 1))
    softmax.causal_attention(q, k, v, 0.5, [])
    assert blocked.called == (is_compiling and has_gradients)
