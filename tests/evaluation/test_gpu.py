"""What is measured on a GPU against the CPU: pytest -m gpu."""

import copy

import pytest
import torch

from slm.evaluation.perplexity import Protocol, perplexity
from slm.evaluation.speed import measure_speed
from slm.model import Decoder, generate
from slm.model.decoding import compiled_logits
from tests.evaluation.toys import random_decoder, random_stream

pytestmark = pytest.mark.gpu
SHAPE = {"vocab_size": 300, "hidden_size": 64, "num_layers": 3, "intermediate_size": 128}
SHAPE |= {"max_position_embeddings": 2048, "init_std": 0.1}


def pair() -> tuple[Decoder, Decoder]:
    host = random_decoder(**SHAPE)
    return host, copy.deepcopy(host).cuda()


def test_perplexity_is_that_of_the_cpu() -> None:
    stream = random_stream(2000, vocab_size=300)
    protocol = Protocol(name="sliding", max_length=128, stride=64)
    host, device = (perplexity(one, stream, protocol, batch_tokens=512) for one in pair())
    assert device["loss"] == pytest.approx(host["loss"], rel=1e-5)


def test_compiled_decoding_gives_the_tokens_of_the_cpu() -> None:
    host, device = pair()
    prompt = [1, 2, 3, 4]
    expected = list(generate(host, prompt, max_new_tokens=40, temperature=0))
    with torch.inference_mode():
        found = list(generate(device, prompt, max_new_tokens=40, temperature=0, next_logits=compiled_logits(device)))
    assert found == expected


def test_speed_and_memory_are_those_of_the_device() -> None:
    settings = {"prompt_tokens": 64, "new_tokens": 16, "repetitions": 2, "cache": True, "compile": "auto"}
    found = measure_speed(pair()[1], settings)
    assert found["device"] == "cuda"
    assert found["model_bytes"] < found["peak_memory_bytes"] < 1e9
