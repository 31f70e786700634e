"""Our adapter against the harness's own `hf` model, on a tiny random Llama that transformers saved."""

from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'slm[eval]'")
pytest.importorskip("accelerate", reason="the harness's hf model needs accelerate")
pytest.importorskip("transformers")

import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from slm.checkpoints import load
from slm.evaluation.tasks.adapter import DecoderLM
from tests.seeds import seeded

CONTEXT = 48
CORPUS = [
    "Question: which of the two is warm? Answer: the sun is warmer than the moon, they say.",
    "naïve 日本 \n\n x  y",
]
words = st.sampled_from(["Question:", " warm", " the sun", "?", "\nAnswer:", " ", "  ", "\n", "日", "ï", " x", "zq"])
texts = st.lists(words, max_size=30).map("".join)


class Pair(NamedTuple):
    ours: DecoderLM
    hf: HFLM


@pytest.fixture(scope="module", params=["plain", "begins"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Both models; `begins` has a tokenizer that puts a begin token before a text, as Llama's does."""
    folder = tmp_path_factory.mktemp(request.param)
    save(folder, begins=request.param == "begins")
    checkpoint = load(folder)
    assert checkpoint.tokenizer.adds_bos == (request.param == "begins")
    hf = HFLM(str(folder), device="cpu", dtype="float32", batch_size=4)
    assert hf.max_length == CONTEXT
    return Pair(DecoderLM(checkpoint.decoder, checkpoint.tokenizer, batch_tokens=300), hf)


def save(folder: Path, *, begins: bool) -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = {"special_tokens": ["<s>", "</s>"], "initial_alphabet": alphabet}
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False, **special)
    inner.train_from_iterator(CORPUS * 3, trainer)
    if begins:
        inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(seeded(1))
    config = LlamaConfig(
        vocab_size=inner.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.4,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def asked(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=own, idx=0) for own in arguments]


def same_likelihoods(pair: Pair, arguments: list[tuple[str, str]]) -> None:
    requests = asked("loglikelihood", arguments)
    expected = pair.hf.loglikelihood(requests, disable_tqdm=True)
    found = pair.ours.loglikelihood(requests)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=2e-4, rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@given(st.lists(st.tuples(texts, st.lists(texts.map(" a{}".format), min_size=1, max_size=4)), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_log_likelihoods_are_those_of_the_hf_model(pair: Pair, found: list[tuple[str, list[str]]]) -> None:
    # A context of spaces alone stops the hf model.
    usable = [(context, choices) for context, choices in found if context.strip() or not context]
    arguments = [(context, choice) for context, choices in usable for choice in choices]
    fits = [pair.ours.tok_encode(choice, add_special_tokens=False) for _, choice in arguments]
    # Spaces at the end of a context go to the continuation, so it may grow; the hf model stops at its context.
    same_likelihoods(pair, [own for own, ids in zip(arguments, fits, strict=True) if len(ids) < CONTEXT - 30])


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("Question: warm?\nAnswer:", " the sun"),
        ("Question: warm? ", "the sun"),
        ("Question: warm?\n", " the sun"),
        ("", " the sun"),
        ("the s", "un"),
        ("the sun " * 60, "is warm"),
        ("x", " the sun" * 11),
    ],
)
def test_tokens_are_cut_where_the_hf_model_cuts_them(pair: Pair, context: str, continuation: str) -> None:
    if context:
        assert pair.ours._encode_pair(context, continuation) == pair.hf._encode_pair(context, continuation)
    same_likelihoods(pair, [(context, continuation), (context, continuation + " zq")])


def test_a_context_of_spaces_alone_is_an_empty_one(pair: Pair) -> None:
    blank, empty = pair.ours.loglikelihood(asked("loglikelihood", [("   ", "the sun"), ("", "   the sun")]))
    assert blank == empty


def test_greedy_continuations_are_told_from_others(pair: Pair) -> None:
    (answer,) = pair.ours.generate_until(asked("generate_until", [("the sun", {"until": [], "max_gen_toks": 1})]))
    scores = pair.ours.loglikelihood(asked("loglikelihood", [("the sun", answer), ("the sun", "zq")]))
    assert [greedy for _, greedy in scores] == [True, False]
    same_likelihoods(pair, [("the sun", answer), ("the sun", "zq")])


def test_rolling_log_likelihoods_are_those_of_the_hf_model(pair: Pair) -> None:
    texts = ["the sun", "the sun is warmer than naïve 日本 " * 12, "", "x"]
    requests = asked("loglikelihood_rolling", [(text,) for text in texts])
    expected = pair.hf.loglikelihood_rolling(requests, disable_tqdm=True)
    assert pair.ours.loglikelihood_rolling(requests) == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("until", [[], ["\n"], ["e", "日"], [" "], "a"])
def test_greedy_answers_are_those_of_the_hf_model(pair: Pair, until: list[str] | str) -> None:
    wishes = {"until": until, "max_gen_toks": 16, "do_sample": False}
    requests = [("Question: warm?\nAnswer:", wishes), ("the sun " * 40, wishes), ("x", wishes | {"max_gen_toks": 3})]
    for own in requests:
        instances = asked("generate_until", [own])
        assert pair.ours.generate_until(instances) == pair.hf.generate_until(instances, disable_tqdm=True)


def test_sampled_answers_follow_the_seed_and_the_settings(pair: Pair) -> None:
    def sample(**wishes) -> list[str]:
        return pair.ours.generate_until(asked("generate_until", [("the sun", {"max_gen_toks": 12} | wishes)] * 2))

    drawn = sample(do_sample=True, temperature=3.0)
    assert drawn == sample(do_sample=True, temperature=3.0)
    assert drawn[0] != drawn[1]
    greedy = sample(do_sample=False)
    assert sample(do_sample=True, temperature=3.0, top_k=1) == greedy
    assert sample(do_sample=True, temperature=3.0, top_p=1e-6) == greedy


def test_answers_longer_than_the_context_are_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="answers of 256 tokens: the model's context of 48 tokens leaves no room"):
        pair.ours.generate_until(asked("generate_until", [("the sun", {"until": []})]))


def test_text_never_becomes_a_special_token(pair: Pair) -> None:
    assert pair.ours.eot_token_id not in pair.ours.tok_encode("a</s>b")
