import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import TopPLogitsWarper

from slm.model import Decoder, ModelConfig, generate
from tests.model.shapes import shape_in_transformers
from tests.seeds import seeded

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64, init_std=0.3
)


def decoder() -> Decoder:
    torch.manual_seed(seeded(3))
    return Decoder(CONFIG)


def test_greedy_generation_equals_transformers() -> None:
    ours, prompt = decoder(), [1, 7, 3]
    options = {"rms_norm_eps": CONFIG.norm_eps, "tie_word_embeddings": True}
    theirs = LlamaForCausalLM(LlamaConfig(**shape_in_transformers(CONFIG), **options))
    theirs.load_state_dict({f"model.{k}": v for k, v in ours.state_dict().items()}, strict=False)
    greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=30, **greedy)
    assert list(generate(ours, prompt, max_new_tokens=30, temperature=0)) == expected[0, 3:].tolist()


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
    warped = TopPLogitsWarper(top_p)(None, logits)[0].softmax(-1)
    options = {"max_new_tokens": 1, "temperature": 1, "top_k": None, "top_p": top_p}
    drawn = torch.tensor([next(generate(model, [1, 2], **options, seed=seed)) for seed in range(400)])
    share = torch.bincount(drawn, minlength=50) / 400
    assert (share[warped == 0] == 0).all()
    assert (share - warped).abs().max() < 4 * 0.5 / 20  # four standard errors of a share of 400
