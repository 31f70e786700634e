"""Log-likelihoods with shared prefixes, against one forward pass a request in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data.questions import Request, make_request
from slm.evaluation.tasks.scoring import Group, Scorer, make_batches, plan, share_prefixes
from slm.model import Decoder
from tests.evaluation.toys import random_decoder

CONTEXT = 24
ids = st.integers(0, 3)  # few ids, so that prefixes are shared and tokens are sometimes the likeliest
tokens = st.lists(ids, min_size=1, max_size=18).map(tuple)
questions = st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=6)


def decoder(**changes) -> Decoder:
    return random_decoder(**{"vocab_size": 7, "max_position_embeddings": CONTEXT} | changes).double()


MODELS = [
    decoder(),
    decoder(layer_sharing="immediate", num_repeats=2, qk_norm="learned"),
    decoder(layer_sharing="repeat_all_over", num_repeats=2, qk_norm="weightless", rope_style="interleaved"),
    decoder(layer_sharing="reverse", num_repeats=2, tie_embeddings=False),
]


@torch.no_grad()
def alone(model: Decoder, item: Request) -> tuple[float, bool]:
    logits = model(torch.tensor([item.inputs]))[0, -len(item.targets) :]
    targets = torch.tensor(item.targets)
    chosen = logits.log_softmax(-1).gather(1, targets[:, None])
    return chosen.sum().item(), bool((logits.argmax(-1) == targets).all())


def asked(found: list[tuple[tuple, list[tuple]]]) -> list[Request]:
    return [make_request(context, choice, CONTEXT) for context, choices in found for choice in choices]


@given(questions, st.sampled_from([1, 30, 200, 4000]), st.sampled_from(MODELS))
@settings(max_examples=60, deadline=None)
def test_scores_are_those_of_one_pass_for_each_request(found: list, batch_tokens: int, model: Decoder) -> None:
    items = asked(found)
    for item, score in zip(items, Scorer(model, batch_tokens=batch_tokens)(items), strict=True):
        log_likelihood, greedy = alone(model, item)
        assert score.log_likelihood == pytest.approx(log_likelihood, abs=1e-10)
        assert score.is_greedy == greedy


@given(questions, st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_batches_hold_each_request_once_and_only_prefixes_of_their_groups(found: list, pass_tokens: int) -> None:
    items = sorted(set(asked(found)))
    made = plan(items, 60, pass_tokens)
    assert sorted(item for batch in made for group in batch for item in group.requests) == items
    for batch in made:
        rows = [item for group in batch for item in group.requests]
        assert len(rows) == 1 or len(rows) * max(len(item.inputs) for item in rows) <= 60
        assert len({group.prefix_length for group in batch}) == 1
        for group in batch:
            assert len({item.inputs[: group.prefix_length] for item in group.requests}) == 1


@given(questions.map(asked).map(lambda items: sorted(set(items))))
@settings(max_examples=60, deadline=None)
def test_a_group_saves_tokens_by_the_prefix_that_all_of_it_begins_with(items: list[Request]) -> None:
    groups = share_prefixes(items)
    assert [item for group in groups for item in group.requests] == items
    for group in groups:
        assert {item.inputs[: group.prefix_length] for item in group.requests} == {
            group.requests[0].inputs[: group.prefix_length]
        }
        if len(group.requests) > 1:  # a request that joined earlier may have shared a longer prefix
            assert 2 * group.prefix_length >= len(group.requests[-1].inputs)


def counting_decoder() -> tuple[Decoder, list[int]]:
    """A decoder, and the numbers of tokens of each pass through it."""
    model, fed = decoder(), []
    hidden = model.hidden
    model.hidden = lambda tokens_BT, *rest: (fed.append(tokens_BT.numel()), hidden(tokens_BT, *rest))[1]  # type: ignore[method-assign]
    return model, fed


def test_the_choices_of_a_question_run_its_context_once() -> None:
    model, fed = counting_decoder()
    context = tuple(torch.arange(18).remainder(7).tolist())
    items = [make_request(context, (choice, 1, 2), CONTEXT) for choice in range(4)]
    Scorer(model, batch_tokens=4000)(items)
    assert fed == [18, 4 * 2]


def test_one_token_continuations_and_repeated_requests_cost_one_pass() -> None:
    model, fed = counting_decoder()
    items = [make_request((1, 2, 3, 4, 5), (choice,), CONTEXT) for choice in (0, 1, 0, 1)]
    scores = Scorer(model, batch_tokens=4000)(items)
    assert fed == [5]
    assert scores[:2] == scores[2:]
    expected = [alone(model, item)[0] for item in items[:2]]
    assert [score.log_likelihood for score in scores[:2]] == pytest.approx(expected, abs=1e-10)


def test_logits_of_a_context_are_never_made() -> None:
    model, rows = decoder(), []
    scorer = Scorer(model, batch_tokens=4000)
    head = scorer._head
    scorer._head = lambda hidden, targets: (rows.append(len(hidden)), head(hidden, targets))[1]  # type: ignore[method-assign]
    scorer([make_request((1, 2, 3, 4, 5, 6), (choice, 1), CONTEXT) for choice in (2, 3)])
    assert rows == [4]


def test_a_batch_ends_where_its_padding_would_cost_more_than_a_pass() -> None:
    groups = [Group((Request((number,) * length, (1,)),), 0) for number, length in enumerate((2, 2, 10, 10))]
    assert [len(batch) for batch in make_batches(groups, 4000, 4)] == [2, 2]
    assert [len(batch) for batch in make_batches(groups, 4000, 40)] == [4]


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="bfloat16 is emulated on this machine")
def test_autocast_scores_are_those_of_autocast_logits() -> None:
    model = decoder().float()
    item = make_request((1, 2, 3, 4), (2, 0), CONTEXT)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = alone(model, item)
    others = [make_request((1, 2, 3, 4), (2, number), CONTEXT) for number in range(1, 4)]
    score = Scorer(model, batch_tokens=4000, autocast=torch.bfloat16)([item, *others])[0]
    assert score.log_likelihood == pytest.approx(expected, abs=0.1)
    assert score.log_likelihood != pytest.approx(alone(model, item)[0], abs=1e-6)


def test_a_model_that_has_diverged_has_no_best_choice() -> None:
    model = decoder()
    with torch.no_grad():
        model.norm.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"^log-likelihoods are not finite, .* float64 overflows"):
        Scorer(model, batch_tokens=100)([make_request((1, 2), (3,), CONTEXT)])


def test_half_precision_scores_are_those_of_one_pass_for_each_request() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = decoder(layer_sharing="immediate", num_repeats=2).to(dtype)
        items = [make_request((1, 2, 3, 4, 5, 6), (choice, 1, 2), CONTEXT) for choice in range(4)]
        for item, score in zip(items, Scorer(model, batch_tokens=4000)(items), strict=True):
            assert score.log_likelihood == pytest.approx(alone(model, item)[0], rel=20 * torch.finfo(dtype).eps)


def test_a_continuation_that_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="0 tokens cannot be scored: it must have 1 to 24"):
        make_request((1, 2), (), CONTEXT)
    with pytest.raises(ValueError, match="25 tokens cannot be scored"):
        make_request((1, 2), (0,) * 25, CONTEXT)
