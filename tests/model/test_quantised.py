"""Rounded weights against the definition in float64, integer arithmetic and torchao; bytes against a count by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slm.model import Decoder
from slm.model.config import QUANTISATIONS
from slm.model.decoding import compiled_logits, eager_logits
from slm.model.layers import Linear
from slm.model.quantised import (
    QuantisedEmbedding,
    QuantisedLinear,
    RoundedLinear,
    quantise,
    round_activations,
    round_in_training,
)
from tests.model.shapes import MIXED, randomized, shape, tokens_of
from tests.seeds import seeded

WIDE = {"hidden_size": 64, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 96}


def weight(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(40, 96, generator=torch.Generator().manual_seed(seeded()), dtype=dtype) * 0.1


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(5, 7, 96, generator=torch.Generator().manual_seed(seeded(1))).to(dtype)


def linear(dtype: torch.dtype = torch.float32) -> Linear:
    made = Linear(96, 40).to(dtype)
    made.weight.data = weight(torch.float32).to(dtype)
    return made


def defined(values: Tensor, bits: int) -> np.ndarray:
    """The rounding as its definition says it, group by group, in float64. The largest number lies between two."""
    rows = values.double().numpy()
    size = 32 if bits == 4 else rows.shape[1]
    rounded = np.empty_like(rows)
    for i in range(rows.shape[0]):
        for start in range(0, rows.shape[1], size):
            group = rows[i, start : start + size]
            step = np.abs(group).max() / ((2**bits - 1) / 2)
            per_step = 1 / step
            if bits == 4:
                step = float(torch.tensor(step).bfloat16())
                per_step = float(torch.tensor(1 / step).bfloat16())
            rounded[i, start : start + size] = step * np.clip(
                np.rint(group * per_step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            )
    return rounded


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_becomes_the_nearest_of_its_groups_numbers_to_half_a_step(bits: int) -> None:
    values = weight(torch.float64)
    original = linear(torch.float64)
    original.weight.data = values
    found_for = QuantisedLinear(original, bits, is_dynamic=False).weight.numpy()
    np.testing.assert_allclose(found_for, defined(values, bits), rtol=1e-12)
    groups = np.abs(values.numpy().reshape(40, -1, 32 if bits == 4 else 96))
    half_steps = groups.max(-1, keepdims=True) / (2**bits - 1)
    error = np.abs(found_for - values.numpy()).reshape(groups.shape)
    assert (error <= half_steps * (1 + (0.1 if bits == 4 else 1e-9))).all()  # 0.1: bfloat16 has 3 decimals
    assert error.max() > 0.9 * half_steps.min()


def test_zeros_and_one_large_weight_stay_finite() -> None:
    values = torch.zeros(2, 64)
    values[1, 40] = 3.0
    for bits in (4, 8):
        rounded = QuantisedEmbedding(values, bits).weight
        assert rounded.isfinite().all()
        np.testing.assert_allclose(rounded[1, 40], 3 * (1 - 1 / (2**bits - 1)), rtol=4e-3)  # the last number
        assert rounded.count_nonzero() == 1


def test_a_dynamic_product_is_that_of_integers() -> None:
    x, original = inputs(torch.float64), linear(torch.float64)
    found = QuantisedLinear(original, 8, is_dynamic=True)(x)
    rows = x.reshape(-1, 96).numpy()
    low, high = np.minimum(rows.min(1, keepdims=True), 0), np.maximum(rows.max(1, keepdims=True), 0)
    x_step = (high - low) / 255
    zero = np.clip(-128 - np.rint(low / x_step), -128, 127)
    x_codes = np.clip(np.rint(rows * (1 / x_step)) + zero, -128, 127).astype(np.int64)
    w = original.weight.detach().numpy()
    w_step = np.abs(w).max(1, keepdims=True) / 127.5
    w_codes = np.clip(np.rint(w * (1 / w_step)), -128, 127).astype(np.int64)
    sums = (x_codes - zero.astype(np.int64)) @ w_codes.T
    expected = sums * x_step * w_step.T + original.bias.detach().numpy()
    np.testing.assert_allclose(found.detach().reshape(-1, 40), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_weights_and_products_are_torchaos_to_the_bit_also_in_training(kind: str, dtype: torch.dtype) -> None:
    ao = pytest.importorskip("torchao.quantization", reason="needs slm[device]")
    bits, is_dynamic = QUANTISATIONS[kind]
    of_weights = torch.int4 if bits == 4 else torch.int8, ao.PerGroup(32) if bits == 4 else ao.PerAxis(0)
    of_scales = {"weight_scale_dtype" if is_dynamic else "scale_dtype": torch.bfloat16 if bits == 4 else None}
    make = ao.Int8DynamicActivationIntxWeightConfig if is_dynamic else ao.IntxWeightOnlyConfig
    original, x = linear(dtype), inputs(dtype)
    theirs = nn.Sequential(nn.Linear(96, 40, dtype=dtype))
    theirs[0].load_state_dict(original.state_dict())
    ao.quantize_(theirs, make(*of_weights, **of_scales))
    ours = QuantisedLinear(original, bits, is_dynamic=is_dynamic)
    assert torch.equal(ours.weight, theirs[0].weight.dequantize())  # type: ignore[union-attr, operator]
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(RoundedLinear(original, bits, is_dynamic=is_dynamic)(x), theirs(x))


@pytest.mark.parametrize("name", [*MIXED])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_decoder_computes_with_the_rounded_weights_of_its_blocks_embedding_and_head(name: str, kind: str) -> None:
    config = copy.copy(MIXED[name])
    for key, value in WIDE.items():
        object.__setattr__(config, key, value)
    decoder = randomized(config, torch.float64)
    expected, bits = copy.deepcopy(decoder), QUANTISATIONS[kind][0]
    tables = {"embed_tokens.weight", "lm_head.weight"}
    linears = {
        f"{path}.weight"
        for path, module in decoder.layers.named_modules(prefix="layers")
        if isinstance(module, nn.Linear)
    }
    for parameter_name, parameter in expected.named_parameters():
        if parameter_name in tables | linears:
            parameter.data = torch.from_numpy(defined(parameter.data, 8 if parameter_name in tables else bits))
    quantise(decoder, kind)
    tokens = tokens_of(config, 9)
    torch.testing.assert_close(decoder(tokens), expected(tokens), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tied", [True, False])
def test_dynamic_kinds_also_round_what_the_head_reads(tied: bool) -> None:
    decoder = randomized(shape(**WIDE, tie_embeddings=tied))
    tokens = tokens_of(decoder.config, 9)
    quantise(decoder, "int8_dynamic")
    hidden = decoder.hidden(tokens)
    assert torch.equal(hidden, round_activations(decoder.norm.norm(_before_norm(decoder, tokens))))  # type: ignore[union-attr, operator]
    assert max(len(row.unique()) for row in hidden.flatten(0, 1)) <= 64


def _before_norm(decoder: Decoder, tokens: Tensor) -> Tensor:
    kept: list[Tensor] = []
    with_hook = decoder.norm.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    decoder.hidden(tokens)
    with_hook.remove()
    return kept[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_bytes_are_those_of_packed_numbers_and_their_scales(dtype: torch.dtype, tied: bool) -> None:
    decoder = randomized(shape(**WIDE, tie_embeddings=tied), dtype)
    blocks = 3 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96)
    rows = 3 * (64 + 32 + 32 + 64 + 96 + 96 + 64)
    tables = (1 if tied else 2) * (101 * 64 + 101 * dtype.itemsize)
    norms = (3 * 2 + 1) * 64 * dtype.itemsize
    assert decoder.counts().model_bytes == decoder.counts().params_total * dtype.itemsize
    int8, int4 = copy.deepcopy(decoder), copy.deepcopy(decoder)
    share = (blocks + (1 if tied else 2) * 101 * 64) / decoder.counts().params_total
    assert quantise(int8, "int8") == f"quantize=int8 rounded {share:.1%} of the parameters"
    quantise(int4, "int4_dynamic")
    assert int8.counts().model_bytes == blocks + rows * dtype.itemsize + tables + norms
    assert int4.counts().model_bytes == blocks // 2 + blocks // 32 * 2 + tables + norms
    assert int4.counts().params_total == decoder.counts().params_total


@pytest.mark.parametrize(
    "kind", ["int8", "int4_dynamic", *(pytest.param(k, marks=pytest.mark.slow) for k in ("int4", "int8_dynamic"))]
)
def test_the_compiled_step_computes_the_same(kind: str) -> None:
    decoder = randomized(shape(**WIDE)).eval().requires_grad_(False)
    quantise(decoder, kind)
    tokens = tokens_of(decoder.config, 12, batch=1)
    found = []
    with torch.inference_mode():
        for make in (eager_logits, compiled_logits):
            next_logits, cache = make(decoder), decoder.make_cache(1, 16)
            next_logits(tokens[:, :8], cache)
            found.append(torch.stack([next_logits(tokens[:, i : i + 1], cache) for i in range(8, 12)]))
    # A difference in the last bit may round an input to the next number.
    error = 0.02 if QUANTISATIONS[kind][1] else 1e-5
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=error * float(found[0].abs().max()))


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_gradients_of_training_pass_straight_through_the_rounding(kind: str) -> None:
    bits, is_dynamic = QUANTISATIONS[kind]
    original = linear()
    x = inputs().requires_grad_()
    module = RoundedLinear(original, bits, is_dynamic=is_dynamic)
    y = module(x)
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(seeded(2)))
    y.backward(slope)
    read = round_activations(x.detach()) if is_dynamic else x.detach()
    rounded = QuantisedLinear(original, bits, is_dynamic=is_dynamic).weight
    torch.testing.assert_close(original.weight.grad, slope.flatten(0, 1).T @ read.flatten(0, 1))
    torch.testing.assert_close(x.grad, slope @ rounded)


def test_a_decoder_in_training_keeps_its_names_and_computes_with_rounded_blocks() -> None:
    decoder = randomized(shape(**WIDE, tie_embeddings=False), torch.float64)
    names, tokens = list(decoder.state_dict()), tokens_of(decoder.config, 9)
    expected = copy.deepcopy(decoder)
    for module in expected.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = torch.from_numpy(defined(module.weight.data, 4))
    round_in_training(decoder, "int4")
    assert list(decoder.state_dict()) == names
    torch.testing.assert_close(decoder(tokens), expected(tokens), rtol=1e-9, atol=1e-9)


def test_what_cannot_be_rounded_is_named() -> None:
    decoder = randomized(shape())
    with pytest.raises(ValueError, match=r"but layers\.0\.self_attn\.q_proj has 48 inputs.*give quantize=int8"):
        quantise(decoder, "int4")
    with pytest.raises(ValueError, match="quantize=int3 must be one of int8, int8_dynamic, int4, int4_dynamic"):
        quantise(decoder, "int3")
    with pytest.raises(ValueError, match="is for models with linear maps"):
        quantise(nn.Sequential(nn.Embedding(3, 4)), "int8")
