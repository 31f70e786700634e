import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation import logits_process

from slm.model import Decoder, KVCache, ModelConfig, generate
from slm.model.decoding import likely_logits, penalised_logits
from tests.model.shapes import shape_in_transformers
from tests.seeds import seeded

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64, init_std=0.3
)


def decoder() -> Decoder:
    torch.manual_seed(seeded(3))
    return Decoder(CONFIG)


@pytest.mark.parametrize("penalty", [1.0, 1.5, 0.7])
def test_greedy_generation_equals_transformers(penalty: float) -> None:
    ours, prompt = decoder(), [1, 7, 3]
    options = {"rms_norm_eps": CONFIG.norm_eps, "tie_word_embeddings": True}
    theirs = LlamaForCausalLM(LlamaConfig(**shape_in_transformers(CONFIG), **options))
    theirs.load_state_dict({f"model.{k}": v for k, v in ours.state_dict().items()}, strict=False)
    greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "repetition_penalty": penalty}
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=30, **greedy)
    found = generate(ours, prompt, max_new_tokens=30, temperature=0, repetition_penalty=penalty)
    assert list(found) == expected[0, 3:].tolist()


def test_sampling_is_a_function_of_its_seed_and_leaves_the_global_random_state_alone() -> None:
    model = decoder()
    before = torch.get_rng_state()
    first = list(generate(model, [1], max_new_tokens=20, seed=5))
    assert torch.equal(before, torch.get_rng_state())
    assert first == list(generate(model, [1], max_new_tokens=20, seed=5))
    assert first != list(generate(model, [1], max_new_tokens=20, seed=6))


def test_generation_stops_at_the_stop_id_and_at_the_end_of_the_context_and_never_gives_padding_ids() -> None:
    model, options = decoder(), {"max_new_tokens": 40, "temperature": 2.0, "top_k": None}
    free = list(generate(model, [1], **options))
    assert list(generate(model, [1], **options, stop_id=free[10])) == free[: free.index(free[10])]
    assert max(generate(model, [1], max_new_tokens=200, temperature=5.0, top_k=None, num_ids=10)) < 10
    short = Decoder(ModelConfig(**(CONFIG.to_dict() | {"max_position_embeddings": 8})))
    assert len(list(generate(short, [1, 2, 3], max_new_tokens=100))) == 5


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
def test_nucleus_sampling_draws_from_the_ids_that_transformers_keeps(top_p: float) -> None:
    model = decoder()
    with torch.inference_mode():
        logits = model(torch.tensor([[1, 2]]))[:, -1]
    warped = logits_process.TopPLogitsWarper(top_p)(None, logits)[0].softmax(-1)
    options = {"max_new_tokens": 1, "temperature": 1, "top_k": None, "top_p": top_p}
    drawn = torch.tensor([next(generate(model, [1, 2], **options, seed=seed)) for seed in range(400)])
    share = torch.bincount(drawn, minlength=50) / 400
    assert (share[warped == 0] == 0).all()
    assert (share - warped).abs().max() < 4 * 0.5 / 20  # four standard errors of a share of 400


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7])
@pytest.mark.parametrize("top_p", [None, 0.2, 0.8])
@pytest.mark.parametrize("min_p", [None, 0.02, 0.4, 1.0])
def test_processed_logits_are_those_of_transformers(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    generator = torch.Generator().manual_seed(seeded(7))
    for _ in range(5):
        logits = 3 * torch.randn(1, 50, generator=generator)
        ids = torch.randint(0, 50, (1, 20), generator=generator)
        expected = logits_process.RepetitionPenaltyLogitsProcessor(1.3)(ids, logits)
        penalised = penalised_logits(logits[0], ids[0], 1.3)
        torch.testing.assert_close(penalised, expected[0])
        expected = logits_process.TemperatureLogitsWarper(temperature)(ids, expected)
        for value, warper in (
            (top_k, logits_process.TopKLogitsWarper),
            (top_p, logits_process.TopPLogitsWarper),
            (min_p, logits_process.MinPLogitsWarper),
        ):
            expected = expected if value is None else warper(value)(ids, expected)
        found = likely_logits(penalised, temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        assert torch.equal(found == -torch.inf, expected[0] == -torch.inf)
        torch.testing.assert_close(found.softmax(-1), expected[0].softmax(-1))


def test_a_cache_of_the_prompts_beginning_changes_nothing_and_holds_what_was_generated() -> None:
    model, options = decoder(), {"max_new_tokens": 10, "temperature": 0}
    prompt = [1, 7, 3, 9, 2]
    expected = list(generate(model, prompt, **options))
    cache = KVCache(CONFIG, batch_size=1, max_length=64)
    with torch.inference_mode():
        model.hidden(torch.tensor([prompt[:3]]), cache)
    assert list(generate(model, prompt, **options, cache=cache)) == expected
    assert cache.length == len(prompt) + len(expected) - 1
    longer = [*prompt, *expected, 4]
    assert list(generate(model, longer, **options, cache=cache)) == list(generate(model, longer, **options))
