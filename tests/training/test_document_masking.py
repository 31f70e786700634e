"""train.document_masking: what a step of training sees of other documents, and that it is compiled once."""

import math
from itertools import pairwise

import pytest
import torch

from slm.training.module import LanguageModel
from slm.training.plan import make_plan
from slm.training.speed import measure_speed
from tests.seeds import seeded
from tests.training.small import CPU, config

SEPARATOR = 7


def module(*, masked: bool) -> LanguageModel:
    return LanguageModel(make_plan(config(document_masking=masked), CPU), SEPARATOR if masked else None)


def batch(seed: int) -> torch.Tensor:
    """Windows of 33 tokens with about four documents each."""
    rng = torch.Generator().manual_seed(seeded(seed))
    tokens = torch.randint(8, 100, (16, 33), generator=rng)
    return tokens.masked_fill(torch.rand(16, 33, generator=rng) < 0.1, SEPARATOR)


def by_documents(model: LanguageModel, tokens_BT: torch.Tensor) -> float:
    """Mean loss of windows cut before each separator among the inputs, every piece in a pass of its own."""
    nats = 0.0
    for window in tokens_BT:
        begins = [0, *(i for i in range(1, 32) if window[i] == SEPARATOR), 32]
        for begin, end in pairwise(begins):
            piece = window[None, begin : end + 1]
            nats += model.decoder.loss(piece[:, :-1], piece[:, 1:]).item() * (end - begin)
    return nats / tokens_BT[:, 1:].numel()


def test_a_masked_step_has_the_loss_of_its_documents_one_by_one_and_is_compiled_once() -> None:
    model = module(masked=True)
    batches = [batch(0), batch(1)]
    expected = [by_documents(model, tokens_BT) for tokens_BT in batches]
    torch._dynamo.reset()
    model.decoder.compile_blocks()
    measure_speed(model.decoder, model.plan)  # compiles
    with torch.compiler.set_stance("fail_on_recompile"):
        found = [model.training_step(tokens_BT, 0).item() for tokens_BT in batches]
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_it_a_step_sees_all_of_its_window() -> None:
    model, tokens_BT = module(masked=False), batch(0)
    older = config()
    del older["train"]["document_masking"]
    assert not make_plan(older, CPU).document_masking  # the config of a run that is older than the key
    loss = model.training_step(tokens_BT, 0).item()
    assert loss == model.decoder.loss(tokens_BT[:, :-1], tokens_BT[:, 1:]).item()
    assert not math.isclose(loss, by_documents(model, tokens_BT), rel_tol=1e-4)
