"""Speed against a decoder that takes a known time, sizes against closed forms."""

from typing import Any

import pytest
import torch
from torch import Tensor

from slm.evaluation import speed
from slm.evaluation.speed import check_speed, measure_speed, without_sharing
from slm.model import Decoder, KVCache
from tests.evaluation.toys import VOCAB, random_decoder

SETTINGS = {"prompt_tokens": 30, "new_tokens": 10, "repetitions": 3, "cache": True, "compile": False}


def test_rates_are_tokens_over_the_seconds_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def slow(of: Decoder) -> Any:
        def next_logits(tokens: Tensor, cache: KVCache) -> Tensor:
            clock[0] += 0.02 * tokens.shape[1] ** 0.5 * len(of.config.block_uses) / 2
            return torch.zeros(VOCAB)

        return next_logits

    monkeypatch.setattr(speed, "eager_logits", slow)
    monkeypatch.setattr(speed, "_now", lambda device: clock[0])
    found = measure_speed(random_decoder(), SETTINGS)
    assert found["decode_tokens_per_second"] == pytest.approx(50)
    assert found["prefill_tokens_per_second"] == pytest.approx(50 * 30**0.5)
    shared = measure_speed(random_decoder(layer_sharing="immediate", num_repeats=2), SETTINGS)
    assert shared["decode_tokens_per_second"] == pytest.approx(25)
    assert shared["without_sharing"]["decode_tokens_per_second"] == pytest.approx(50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_unique_tensors_and_of_one_cache_slot_a_use(dtype: torch.dtype) -> None:
    model = random_decoder(layer_sharing="reverse", num_repeats=2).to(dtype)
    found = measure_speed(model, SETTINGS)
    block = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32
    assert found["model_bytes"] == (VOCAB * 32 + 2 * block + 32) * dtype.itemsize
    assert found["kv_bytes_per_token"] == 4 * 2 * 2 * 8 * dtype.itemsize
    assert found["kv_cache_bytes"] == 64 * found["kv_bytes_per_token"]
    assert found["state_bytes"] == 0
    assert found["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_bytes_remembered_are_those_of_a_cache_for_the_longest_context(dtype: torch.dtype) -> None:
    sizes = {"num_layers": 5, "mixer_pattern": "FSPLG", "sliding_window": [16, 9], "max_position_embeddings": 70}
    model = random_decoder(**sizes).to(dtype)
    found = measure_speed(model, SETTINGS | {"repetitions": 1})
    cache = KVCache(model.config, batch_size=1, max_length=70, dtype=dtype)
    kept = {m: sum(t.nbytes for t in memory.tensors) for m, memory in zip("FSPLG", cache.memories, strict=True)}
    assert found["state_bytes"] == kept["L"] + kept["G"] > 0
    assert found["kv_cache_bytes"] == sum(kept.values()) - found["state_bytes"]
    assert found["kv_bytes_per_token"] == 3 * 2 * 2 * 8 * dtype.itemsize  # F, S and P keep a first token alike


def test_the_model_without_sharing_has_the_same_tensors_and_uses_each_block_once() -> None:
    model = random_decoder(layer_sharing="immediate", num_repeats=2)
    plain = without_sharing(model)
    reference = random_decoder()
    reference.load_state_dict(model.state_dict())
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(tokens), reference(tokens))
        assert not torch.allclose(model(tokens), reference(tokens))
    assert plain.embed_tokens.weight.data_ptr() == model.embed_tokens.weight.data_ptr()


def test_decoding_without_a_cache_goes_through_the_whole_sequence_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    real = Decoder.hidden

    def seen(self: Decoder, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        lengths.append(tokens.shape[1])
        return real(self, tokens, cache)

    monkeypatch.setattr(Decoder, "hidden", seen)
    measure_speed(random_decoder(), SETTINGS | {"cache": False, "repetitions": 1})
    assert lengths[len(lengths) // 2 :] == [30, *range(31, 41)]


def test_more_tokens_than_the_context_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prompt_tokens=30 and speed\.new_tokens=10 do not fit into the 39 pos"):
        check_speed(SETTINGS, 39)
