import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.model.counts import num_params
from slm.training.plan import make_plan
from tests.training.small import config, hardware


@given(
    sequences=st.integers(1, 64),
    devices=st.integers(1, 4),
    length=st.integers(1, 64),
    micro_tokens=st.integers(1, 5000),
)
def test_passes_of_all_devices_add_up_to_the_batch(
    sequences: int, devices: int, length: int, micro_tokens: int
) -> None:
    tokens = sequences * devices * length
    plan = make_plan(
        config(batch_tokens=tokens, sequence_length=length, tokens=tokens), hardware(devices, micro_tokens)
    )
    assert plan.micro_batch_size * plan.accumulation * devices * length == plan.batch_tokens == tokens
    assert plan.micro_batch_size == 1 or plan.micro_batch_size * length <= micro_tokens


def test_the_three_budgets_mean_the_same_thing() -> None:
    params = num_params(make_plan(config(), hardware()).model)
    by_tokens = make_plan(config(tokens=20 * params), hardware())
    assert make_plan(config(tokens_per_param=20), hardware()).steps == by_tokens.steps
    assert make_plan(config(flops=6 * params * 20 * params), hardware()).steps == by_tokens.steps
    assert by_tokens.train_tokens == 20 * params // 512 * 512


@pytest.mark.parametrize(
    ("train", "named"),
    [
        ({"tokens": 511}, ["train.tokens=511", "511 tokens", "train.batch_tokens=512"]),
        ({"tokens_per_param": 1e-3}, ["train.tokens_per_param=0.001", "fewer than one step"]),
        ({"tokens_per_param": 1, "flops": 1e9}, ["tokens_per_param", "flops", "one budget"]),
        ({"batch_tokens": 500}, ["train.batch_tokens=500", "480 or 512"]),
        ({"sequence_length": 4096}, ["train.sequence_length=4096", "max_position_embeddings=2048"]),
    ],
)
def test_arithmetic_that_cannot_work_is_refused(train: dict, named: list[str]) -> None:
    with pytest.raises(ValueError, match="train") as error:
        make_plan(config(**train), hardware())
    assert all(text in str(error.value) for text in named), str(error.value)


def test_a_step_to_keep_that_never_comes_is_refused() -> None:
    make_plan(config() | {"checkpoint": {"keep_steps": [19]}}, hardware())
    with pytest.raises(ValueError, match=r"checkpoint\.keep_steps=\[5, 20\] has 20, but the run ends at step 19"):
        make_plan(config() | {"checkpoint": {"keep_steps": [5, 20]}}, hardware())
