"""What a person at the prompt of sweep.py meets before an analysis starts."""

import subprocess
import sys

import pytest
from hydra.errors import OverrideParseException

import sweep
from slm.composition.keys import check_keys, explain_unknown_keys
from slm.composition.resolvers import register
from slm.evaluation.config import register as register_evaluate
from slm.runtime.command_line import one_sentence
from slm.sweep.config import check_settings
from slm.sweep.design import check_design
from slm.sweep.recipe import Recipe
from tests.running import ROOT
from tests.sweep.designs import composed


def test_only_the_columns_that_were_named_are_renamed() -> None:
    settings = check_settings(composed("runs=mobilellm_published", "columns.loss=val_loss", "+columns.eval_set=data"))
    assert settings["columns"] == {"loss": "val_loss", "eval_set": "data"}
    assert settings["logger"]["job_type"] == "analysis"
    assert settings["output_dir"].startswith("outputs/")


def test_a_query_arrives_as_it_was_written() -> None:
    query = """where='context_length == 16384 and family == "llama"'"""
    settings = check_settings(composed("runs=mobilellm_published", query))
    assert settings["where"] == 'context_length == 16384 and family == "llama"'


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["runs=''"], "runs= must be text that is not empty"),
        (["retry=all"], "retry=all must be one of none, failed"),
        (["dry_run=1"], "dry_run=1 must be true or false"),
        (["runs=a", "dry_run=true"], "dry_run=true is for training a sweep, but runs=a is a finished table"),
        (["runs=a", "retry=failed"], "retry=failed is for training a sweep"),
        (["runs=a", "sweep.seeds=[1,2]"], r"sweep.seeds=\[1,2\] is for training a sweep, but runs=a is"),
        (["runs=a", "launcher=slurm"], "launcher=slurm is for training a sweep"),
        (["output_dir=''"], "output_dir= must be text that is not empty"),
        (["runs=a", "drop_worst=-1"], "drop_worst=-1 must be a whole number"),
        (["runs=a", "best_of=5"], "best_of=5 must be a column or a list of columns"),
        (["runs=a", "seed=one"], "seed=one must be a whole number"),
        (["runs=a", "columns=loss"], "columns=loss must be a mapping"),
        (["runs=mobilellm_published", f"output_dir={ROOT}/README.md"], "is a file"),
        ([f"runs={ROOT}/README.mdx"], "README.mdx does not exist: did you mean README.md$"),
        (["runs=zzz"], "zzz does not exist: slm ships mobilellm_published"),
        (["overlay_column=x"], "overlay_column=x needs overlay"),
    ],
)
def test_settings_that_are_wrong_are_named(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_settings(composed(*overrides), overrides)


@pytest.mark.parametrize("override", ["runs=5", "drop_worst=1.5", "where=5", "columns.loss=5", "best_of=[lr,2]"])
def test_a_value_that_is_wrong_is_named(override: str) -> None:
    with pytest.raises(ValueError, match=f"{override.partition('=')[0]}="):
        check_settings(composed("runs=a", override), ["runs=a", override])


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("data=local", r"data=local is a setting of train.py: .*sweep.also=\['data=local'\]"),
        ("+data.paths=a.txt", r"sweep.also=\['data.paths=a.txt'\]"),
        ("train.tokens=5", r"train.tokens=5 is a setting of train.py"),
        ("+dryrun=true", r"dryrun is not a setting of sweep.py; did you mean dry_run\?"),
        ("+launcher.slot=1", r"launcher.slot is not a setting of sweep.py; did you mean launcher.slots\?"),
        ("analysis.foo=1", r"^analysis.foo is not a setting of sweep.py: python sweep.py --help lists all settings$"),
        ("launcher.slot=1", r"launcher.slot is not a setting of sweep.py; did you mean launcher.slots\?"),
        ("+launcher.partition=day", r"partition has no effect with launcher.name=local: it needs launcher=slurm"),
        ("checkpoint=a", r"checkpoint=a is a setting of train.py"),
    ],
)
def test_settings_of_train_py_and_keys_that_nobody_reads_are_refused(item: str, said: str) -> None:
    with pytest.raises(ValueError, match=said), explain_unknown_keys("sweep"):
        check_keys(composed(item), "sweep", [item])


@pytest.mark.parametrize("launcher", ["local", "slurm", "ray"])
def test_overrides_that_sweep_py_knows_pass(launcher: str) -> None:
    known = ["sweep=quick", "seed=3", "+columns.eval_set=data", "output_dir=a", "logger=csv", f"launcher={launcher}"]
    known += ["+sweep.assume.params.E=1.7", "analysis.level=0.9", "launcher.tries=2", "name='a=b'"]
    check_keys(composed(*known, *["+launcher.sbatch.qos=low"] * (launcher == "slurm")), "sweep", known)


@pytest.mark.parametrize("item", ["+train.tokns=5", "train.tokns=5", "+model.hiden_size=8", "~train.tokns"])
def test_keys_that_train_py_does_not_read_are_refused_before_any_job(item: str) -> None:
    register()
    with pytest.raises(ValueError, match=r"is not a setting of train\.py; did you mean (train\.tok|model\.hid)"):
        Recipe("ssd", [item])


def test_a_key_that_evaluate_py_does_not_read_is_refused_by_name() -> None:
    register_evaluate()
    with pytest.raises(ValueError, match=r"max_tokens is not a setting of evaluate.py; did you mean perplexity"):
        check_design(composed("sweep.evaluation={wiki: ['data=pydocs','+max_tokens=5']}")["sweep"])


def test_a_reader_who_stops_reading_is_told_nothing() -> None:
    command = f"set -o pipefail; {sys.executable} {ROOT}/sweep.py --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


@pytest.mark.parametrize("said", ["", "interrupted with 1 of 2 cells completed"])
def test_an_interrupt_exits_130(said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: object) -> int:
        raise KeyboardInterrupt(*[said] * bool(said))

    monkeypatch.setattr(sweep, "run", run)
    monkeypatch.setattr(sweep, "exit_codes", [])
    sweep.main.__wrapped__(None)  # without Hydra's
    assert sweep.exit_codes == [130]
    assert capsys.readouterr().err == f"\n{said or 'interrupted: the same command repeats the analysis'}\n"


def test_a_value_that_hydra_cannot_read_says_how_to_quote() -> None:
    with pytest.raises(OverrideParseException) as caught:
        composed("runs=mobilellm_published", "where=tokens == 1e9")
    assert "needs two pairs of quotes" in one_sentence(caught.value)
