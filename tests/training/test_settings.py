import copy
import re
import shlex
from typing import Any

import pytest
import yaml

from slm.composition.settings import KINDS, OPTIMIZERS, OPTIONAL_KINDS, check_settings
from slm.runtime.settings import suffix_hint
from slm.training import optim
from tests.composing import composed


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    return composed("optim=muon", "schedule=wsd", "data=local", "data.paths=x.txt")


def with_value(settings: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = place = copy.deepcopy(settings)
    *groups, name = key.split(".")
    for group in groups:
        place = place[group]
    place[name] = value
    return changed


# A nested list is of no kind at all.
@pytest.mark.parametrize("key", list(KINDS | OPTIONAL_KINDS))
def test_every_key_in_the_table_refuses_nonsense_by_name(key: str, defaults: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        check_settings(with_value(defaults, key, [["nonsense"]]))


REFUSED = shlex.split("""
    seed=-1 seed=1.5 seed=9223372036854775808 seed=null dry_run=yes_please branch_from='' output_dir=null
    train=null train.tokens=.inf train.tokens=.nan train.tokens=true train.log_every=0 train.val_tokens=0
    train.sample_tokens=-1 train.sample_prompt=null train.document_masking=maybe
    checkpoint.every_steps=0 checkpoint.every_minutes=-1 checkpoint.keep_best=maybe checkpoint.keep_steps=5
    checkpoint.keep_steps=[0] schedule.warmup_steps=-1 logger.tags=abc data.val_fraction=2 data.paths=5
    optim=null optim.name=lion optim.lr=0 optim.lr=.inf optim.betas=0.9 optim.betas=[0.9,1.0] optim.skip_factor=0.5
    trainer.precision=16-true trainer.strategy=dpp trainer.accelerator=tpu trainer.devices=0 trainer.devices=all
    trainer.num_nodes=0 trainer.compile=maybe trainer.micro_batch_tokens=-5 trainer.num_workers=abc
    trainer.activation_checkpointing=some trainer.num_workers=-1 trainer.deterministic=auto
""")


@pytest.mark.parametrize("setting", REFUSED)
def test_values_that_cannot_work_are_refused_by_name(setting: str, defaults: dict[str, Any]) -> None:
    key, _, value = setting.partition("=")
    with pytest.raises(ValueError, match=re.escape(f"{key}=")):
        check_settings(with_value(defaults, key, yaml.safe_load(value or "''")))


@pytest.mark.parametrize(
    ("key", "value"), [("train.tokens", 1e6), ("train.batch_tokens", 512.0), ("data.paths", ["a"])]
)
def test_numbers_may_be_written_as_people_write_them(key: str, value: Any, defaults: dict[str, Any]) -> None:
    check_settings(with_value(defaults, key, value))


def test_every_optimizer_can_be_asked_for() -> None:
    assert set(OPTIMIZERS) == set(optim.OPTIMIZERS)


def test_a_count_with_a_suffix_is_refused_with_the_number_that_it_would_be() -> None:
    numbers = {"1M": "1_000_000", "2.5k": "2_500", "64K": "64_000", "20B": "20_000_000_000", "1 T": "1_000_000_000_000"}
    assert {value: suffix_hint(value) for value in numbers} == {v: f"; write {n}" for v, n in numbers.items()}


@pytest.mark.parametrize("value", ["lots", "1e6", "M", "1Mb", "", None, 5, ["1M"]])
def test_of_other_values_no_number_is_guessed(value: Any) -> None:
    assert suffix_hint(value) == ""


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optim=adamw", "optim.name=muon"], "optim.name=muon needs optim.momentum: choose optim=muon, which sets it"),
        (["schedule.name=wsd"], "schedule.name=wsd needs schedule.decay_fraction: choose schedule=wsd, which"),
        (["schedule=constant", "schedule.name=linear"], "schedule.name=linear needs schedule.final_fraction: choose"),
        (["~optim.eps"], "optim.eps is missing: it must be a number above 0"),
        (["optim.name=[muon]"], "optim.name=['muon'] must be one of adamw, muon"),
    ],
)
def test_what_a_choice_cannot_do_without_is_missed_before_any_work(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        check_settings(composed(*overrides))


def test_a_config_of_a_run_older_than_a_key_is_refused_by_the_name_of_the_key(defaults: dict[str, Any]) -> None:
    optim = {key: value for key, value in defaults["optim"].items() if key != "ema_decay"}
    with pytest.raises(ValueError, match=r"^optim\.ema_decay is missing: it must be a number above 0"):
        check_settings(defaults | {"optim": optim})
