"""Perplexity against loops over transformers' Llama and sums of float64 logits by hand."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.evaluation.perplexity import Protocol, perplexity
from slm.model import Decoder
from tests.evaluation.toys import SHAPE, VOCAB, cut_windows, in_float64, random_decoder, random_stream, window_documents
from tests.seeds import seeded


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder()


@pytest.fixture(scope="module")
def llama(decoder: Decoder) -> Any:
    """transformers' Llama with the decoder's weights."""
    transformers = pytest.importorskip("transformers")
    hf = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads"}
    shape = {hf.get(key, key): value for key, value in SHAPE.items()}
    config = transformers.LlamaConfig(**shape, rms_norm_eps=1e-5, tie_word_embeddings=True)
    model = transformers.LlamaForCausalLM(config).eval()
    missing = model.load_state_dict({f"model.{name}": t for name, t in decoder.state_dict().items()}, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"])
    return model


def sliding(max_length: int, stride: int) -> Protocol:
    return Protocol(name="sliding", max_length=max_length, stride=stride)


def non_overlapping(max_length: int) -> Protocol:
    return Protocol(name="non_overlapping", max_length=max_length, stride=max_length)


def usual_loop(llama: Any, tokens: np.ndarray, max_length: int, stride: int) -> tuple[float, int]:
    """(mean loss, tokens) as scripts around transformers count them: labels of -100 for what is context."""
    ids = torch.from_numpy(tokens)[None]
    nats, count, before = 0.0, 0, 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + max_length, len(tokens))
        window = ids[:, begin:end]
        labels = window.clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            mean = llama(window, labels=labels).loss
        scored = int((labels[:, 1:] != -100).sum())  # transformers shifts the labels inside
        nats, count, before = nats + mean.double().item() * scored, count + scored, end
        if end == len(tokens):
            break
    return nats / count, count


@pytest.mark.parametrize(
    ("length", "max_length", "stride"),
    [(301, 32, 16), (300, 64, 1), (97, 64, 63), (128, 32, 24), (32, 32, 16), (9, 64, 32), (2, 2, 1)],
)
def test_sliding_is_the_usual_loop(decoder: Decoder, llama: Any, length: int, max_length: int, stride: int) -> None:
    stream = random_stream(length)
    result = perplexity(decoder, stream, sliding(max_length, stride), batch_tokens=200)
    loss, count = usual_loop(llama, stream.tokens, max_length, stride)
    assert count == result["tokens"] == length - 1
    assert result["loss"] == pytest.approx(loss, rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.parametrize(("length", "max_length"), [(129, 32), (130, 32), (100, 64), (20, 64)])
def test_non_overlapping_windows_share_one_token(decoder: Decoder, llama: Any, length: int, max_length: int) -> None:
    stream = random_stream(length)
    nats = 0.0
    for start in range(0, length - 1, max_length):
        window = torch.from_numpy(stream.tokens[start : start + max_length + 1])[None]
        with torch.no_grad():
            logits = llama(window[:, :-1]).logits[0].double()
        nats -= logits.log_softmax(-1).gather(1, window[0, 1:, None]).sum().item()
    result = perplexity(decoder, stream, non_overlapping(max_length), batch_tokens=100)
    assert result["loss"] * (length - 1) == pytest.approx(nats, rel=1e-6)


@st.composite
def protocols(draw: st.DrawFn, longest: int = 64) -> Protocol:
    max_length = draw(st.integers(2, longest))
    if draw(st.booleans()):
        return non_overlapping(max_length)
    return sliding(max_length, draw(st.integers(1, max_length - 1)))


@given(protocol=protocols(), length=st.one_of(st.integers(2, 400), st.integers(1, 9).map(lambda n: n * 32)))
def test_every_token_but_the_first_is_scored_once_with_the_protocols_context(protocol: Protocol, length: int) -> None:
    windows = protocol.windows(length)
    scored = [(token, token - start) for start, stop, first in windows for token in range(first, stop + 1)]
    assert [token for token, _ in scored] == list(range(1, length))
    most = protocol.max_length - (protocol.name == "sliding")
    least = 1 if protocol.name == "non_overlapping" else protocol.max_length - protocol.stride
    assert all(min(least, token) <= context <= most for token, context in scored)
    assert all(0 <= start < first <= stop < length and stop - start <= most for start, stop, first in windows)
    assert [window.start for window in windows] == [number * protocol.stride for number in range(len(windows))]


@settings(max_examples=25, deadline=None)
@given(protocol=protocols(), length=st.integers(2, 300), batch_tokens=st.integers(1, 700), seed=st.integers(0, 99))
def test_batches_change_nothing_and_what_a_stream_leaves_out_does_not_count(
    decoder: Decoder, protocol: Protocol, length: int, batch_tokens: int, seed: int
) -> None:
    """The reference scores each window alone, in float64, from whole logits."""
    scored = np.random.default_rng(seeded(seed)).random(length) < 0.8
    scored[:2] = False, True
    stream = random_stream(length, seed=seed, is_scored=scored)
    exact, nats = in_float64(decoder), 0.0
    tokens = torch.from_numpy(stream.tokens)
    for start, stop, first in protocol.windows(length):
        with torch.no_grad():
            chances = exact(tokens[None, start:stop])[0].log_softmax(-1)
        nats -= sum(chances[t - 1 - start, tokens[t]].item() for t in range(first, stop + 1) if scored[t])
    done: list[int] = []
    result = perplexity(decoder, stream, protocol, batch_tokens=batch_tokens, progress=done.append)
    assert result["tokens"] == sum(done) == scored.sum()
    assert result["loss"] == pytest.approx(nats / scored.sum(), rel=2e-6)


def test_figures_are_sums_by_hand_over_float64_logits(decoder: Decoder) -> None:
    stream = random_stream(40)
    exact, tokens = in_float64(decoder), torch.from_numpy(stream.tokens)
    with torch.no_grad():
        logits = exact(tokens[None, :-1])[0]
    nats = (logits.logsumexp(-1) - logits[torch.arange(39), tokens[1:]]).sum().item()
    num_bytes = int(stream.token_bytes[1:].sum())
    for at_hand in (exact, decoder):
        result = perplexity(at_hand, stream, non_overlapping(64), batch_tokens=64)
        assert result["loss"] == pytest.approx(nats / 39, rel=1e-6)
        assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-6)
        assert result["word_perplexity"] == pytest.approx(math.exp(nats / 7), rel=1e-4)
        assert (result["tokens"], result["bytes"], result["words"], result["windows"]) == (39, num_bytes, 7, 1)
        assert result["se_bits_per_byte"] > 0
    assert result["se_method"] == "block bootstrap over 39 blocks of 1 tokens"


def test_blocks_are_the_summed_losses_of_documents_and_the_error_is_theirs(decoder: Decoder) -> None:
    """Documents are scored one by one, each a window of its own; the error is by the delta method."""
    stream = random_stream(64 * 30 + 1, document=window_documents(30))
    result = perplexity(decoder, stream, non_overlapping(64), batch_tokens=640)
    windows, blocks = cut_windows(stream.tokens), result["blocks"]
    losses = decoder.token_losses(windows[:, :-1], windows[:, 1:]).double().detach()
    assert result["se_method"] == "block bootstrap over 30 documents"
    assert result["se_loss"] == pytest.approx(losses.mean(dim=1).std().item() / math.sqrt(30), rel=0.06)
    assert blocks["tokens"] == [64] * 30
    assert blocks["bytes"] == stream.token_bytes[1:].reshape(30, 64).sum(axis=1).tolist()
    assert blocks["nats"] == pytest.approx(losses.sum(dim=1).tolist(), rel=1e-6)
    assert sum(blocks["nats"]) / sum(blocks["tokens"]) == pytest.approx(result["loss"], rel=1e-6)


def test_many_documents_are_kept_as_at_most_two_hundred_blocks(decoder: Decoder) -> None:
    result = perplexity(decoder, random_stream(6000), non_overlapping(64), batch_tokens=640)  # documents of 9 tokens
    assert result["se_method"] == "block bootstrap over 667 documents"
    assert {name: len(v) for name, v in result["blocks"].items()} == {"nats": 166, "tokens": 166, "bytes": 166}
    assert (sum(result["blocks"]["tokens"]), sum(result["blocks"]["bytes"])) == (result["tokens"], result["bytes"])


def test_blocks_of_weighted_tokens_have_the_loss_and_the_bits_per_byte_of_the_whole(decoder: Decoder) -> None:
    stream = random_stream(301)
    weights = np.where(stream.document % 2, 0.1, 1.9)  # of two sources of a mix
    result = perplexity(decoder, random_stream(301, weights=weights), non_overlapping(64), batch_tokens=640)
    nats, tokens, num_bytes = (sum(result["blocks"][name]) for name in ("nats", "tokens", "bytes"))
    assert nats / tokens == pytest.approx(result["loss"] * result["tokens"] / weights[1:].sum(), rel=1e-5)
    assert num_bytes == pytest.approx((weights * stream.token_bytes)[1:].sum(), rel=1e-5)


def test_only_what_is_scored_goes_through_the_head(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    monkeypatch.setattr(decoder, "losses", lambda x, *_: (rows.append(len(x)), torch.zeros(len(x)))[1])
    perplexity(decoder, random_stream(301), sliding(32, 16), batch_tokens=128)
    assert sum(rows) == 300


def test_a_text_shorter_than_a_window_is_scored_and_said_to_be(decoder: Decoder) -> None:
    result = perplexity(decoder, random_stream(12), sliding(64, 32), batch_tokens=64)
    assert result["tokens"] == 11
    assert result["notes"][0] == "As given."
    assert result["notes"][1].startswith("The text has 12 tokens and fits into one window")


def test_a_loss_that_is_not_finite_leaves_the_figures_out(decoder: Decoder) -> None:
    broken = copy.deepcopy(decoder)
    with torch.no_grad():
        broken.norm.weight.fill_(torch.inf)
    result = perplexity(broken, random_stream(100), sliding(32, 16), batch_tokens=64)
    figures = ("loss", "perplexity", "bits_per_byte", "se_loss", "se_bits_per_byte", "word_perplexity")
    assert {name: result[name] for name in figures} == dict.fromkeys(figures)
    assert result["blocks"] is None
    assert result["notes"][-1] == "The loss of 99 of 99 tokens is not finite, so no results can be given."
    json.dumps(result, allow_nan=False)


def test_a_result_is_plain_json_with_the_keys_of_the_contract(decoder: Decoder) -> None:
    result = perplexity(decoder, random_stream(100), sliding(32, 16), batch_tokens=64)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    names = (
        "data data_fingerprint segmentation protocol max_length stride loss perplexity bits_per_byte se_loss "
        "se_bits_per_byte se_method tokens bytes words word_perplexity windows in_training notes blocks"
    )
    assert list(result) == names.split()


def test_bfloat16_autocast_is_near_and_is_not_float32(decoder: Decoder) -> None:
    stream = random_stream(200)
    whole = perplexity(decoder, stream, sliding(64, 32), batch_tokens=256)["loss"]
    half = perplexity(decoder, stream, sliding(64, 32), batch_tokens=256, autocast=torch.bfloat16)["loss"]
    assert half == pytest.approx(whole, rel=0.02)
    assert half != whole


def test_sliding_windows_that_do_not_overlap_are_refused() -> None:
    said = r"^stride=8 of protocol sliding must be smaller than max_length=8: .* non_overlapping$"
    with pytest.raises(ValueError, match=said):
        sliding(8, 8)


def test_windows_longer_than_the_positions_are_refused_before_any_work(decoder: Decoder) -> None:
    with pytest.raises(ValueError, match=r"^max_length=65 of protocol sliding is longer than the 64 positions"):
        perplexity(decoder, random_stream(12), sliding(65, 32), batch_tokens=64)


def test_a_tokenizer_of_another_model_is_refused_before_any_work(decoder: Decoder) -> None:
    tokens = np.array([1, VOCAB + 3, 2])
    with pytest.raises(ValueError, match=rf"^the tokenizer gave id {VOCAB + 3} for text, but .* vocab_size is {VOCAB}"):
        perplexity(decoder, random_stream(3, tokens=tokens), sliding(32, 16), batch_tokens=64)
