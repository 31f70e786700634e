"""What a person at the prompt of evaluate.py meets before anything is loaded."""

import re
import shlex
import sys

import pytest

from slm.evaluation.tasks import MOBILELLM
from tests.evaluation.asked import asked
from tests.running import ROOT, run_script

NAMED = shlex.split("""
    checkpoint=5 device=tpu batch_tokens=0 perplexity.max_tokens=0 speed.compile=maybe
    generation.top_p=1.5 generation.temperature=-1 tasks=[1] seed=4294967296 perplexity.bos=maybe
    perplexity.document_start=5
""")


def test_the_papers_eight_tasks_go_by_one_name_and_files_are_run_without_being_named() -> None:
    settings = asked("checkpoint=a", "tasks=[mobilellm,copa,piqa]", "task_files={mine: mine.jsonl, piqa: p.jsonl}")
    assert settings["tasks"] == [*MOBILELLM, "copa", "mine"]
    assert asked("checkpoint=a", "tasks=copa")["tasks"] == ["copa"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "give one checkpoint"),
        (["checkpoint=a", "checkpoints=[b]"], "give one checkpoint"),
        (["checkpoints=[]"], "checkpoints"),
        (["checkpoints=[a,b,a]"], "lists a more than once"),
        (["checkpoints=[a,b]", "prompt=x"], "take a single checkpoint"),
        (["checkpoint=a", "prompt=x", "export=b"], "prompt and export cannot be combined"),
        (["checkpoint=a", "dtype=int8"], "dtype=int8 must be one of auto, float32"),
        (["checkpoint=a", "perplexity.protocols=[slide]"], "perplexity.protocols"),
        (["checkpoint=a", "perplexity.sliding.max_length=1"], "perplexity.sliding.max_length=1 must be .* at least 2"),
        (["checkpoint=a", "data=pydocs", "source=web"], "source=web selects from a run's own text"),
        (["checkpoint=a", "baselines=sub1b"], "baselines need a text .*: give one, such as data=wikitext2"),
        (["checkpoint=a", "perplexity.bos=always"], "perplexity.bos=always needs data="),
        (["checkpoint=a", "speed.new_tokens=1"], "speed.new_tokens=1 must be a whole number of at least 2"),
        (["checkpoint=a", "task_files=mine.jsonl"], "task_files=mine.jsonl must be a mapping"),
        (["checkpoint=a", "task_limit=0"], "task_limit=0 must be a whole number of at least 1"),
        (["checkpoint=a", "perplexity.protocols=[]", "speed.enabled=false"], "nothing to measure"),
        (["checkpoint=a", "speed=null"], "speed=null must be a group of settings"),
        (["checkpoint=a", "perplexity.sliding=null"], "perplexity.sliding=null must be a group of settings"),
        (["checkpoint=a", "output_dir=null"], "output_dir=null must be a folder"),
        (["checkpoint=a", "output_dir=''"], "output_dir= must be a folder"),
        (["checkpoint=a", "cache_dir=5"], "cache_dir=5 must be a folder"),
        (["checkpoint=a", "unroll_sharing=true"], "needs export=FOLDER"),
        (["checkpoint=a", "format=gguf"], "format=gguf needs export=FOLDER"),
        (["checkpoint=a", "export=b", "format=onnx"], "format=onnx must be one of transformers, executorch, gguf"),
        (["checkpoint=a", "export=b", "export_context=9"], "export_context=9 needs format=executorch or format=gguf"),
        (["checkpoint=a", "export=b", "format=executorch", "export_dtype=q8_0"], "is for format=gguf"),
        (["checkpoint=a", "export=b", "format=gguf", "unroll_sharing=true"], "is for format=transformers"),
        (["checkpoint=a", "quantize=int3"], "quantize=int3 must be one of null, int8, int8_dynamic, int4"),
        (["checkpoint=a", "quantize=[int4,int4]"], "must be one of null, int8, .* or a list of different ones"),
        (["checkpoint=a", "quantize=[]"], "or a list of different ones"),
        (["checkpoint=a", "quantize=[null,int4]", "prompt=x"], "prompt takes a single quantize=..., not a list"),
        (["checkpoint=a", "quantize=int4", "export=b"], "quantize=int4 is for format=executorch"),
        (["checkpoint=a", "quantize=int8", "export=b", "format=gguf"], "for format=gguf give export_dtype=q8_0"),
        (["checkpoint=a", "quantize=int4", "export=b", "format=executorch"], "takes quantize=int4_dynamic"),
        (["checkpoint=a", "quantize=[int8]", "export=b", "format=executorch"], "takes quantize=int8_dynamic"),
        (["checkpoints=a"], "checkpoints=a must be a list"),
        (["checkpoint=a", f"output_dir={ROOT}/README.md"], "is a file"),
        (["checkpoint=a", f"cache_dir={ROOT}/README.md/x"], "cannot be made: .*README.md is a file"),
        (["checkpoint=a", f"export={ROOT}/README.md"], "export=.* is a file"),
        (["checkpoint=a", f"output_dir={'a' * 300}"], "File name too long"),
    ],
)
def test_settings_that_are_wrong_are_named(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        asked(*overrides)


def test_an_export_may_say_that_it_is_not_rounded() -> None:
    assert asked("checkpoint=a", "export=b", "quantize=[null]")["quantize"] == [None]


@pytest.mark.parametrize("override", NAMED)
def test_a_value_that_is_wrong_is_named(override: str) -> None:
    with pytest.raises(ValueError, match=re.escape(override)):
        asked("checkpoint=a", "data=pydocs", override)


def test_a_mistake_at_the_prompt_is_one_sentence_and_exit_code_1() -> None:
    command = [sys.executable, str(ROOT / "evaluate.py"), "checkpoint=no/such/folder", "data=pydocs"]
    done = run_script(command)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "no/such/folder" in done.stderr


def test_a_multirun_is_refused_before_it_writes_files() -> None:
    command = [sys.executable, str(ROOT / "evaluate.py"), "-m", "checkpoint=a,b"]
    done = run_script(command)
    assert done.returncode == 1
    assert "give several checkpoints as checkpoints=[a,b]" in done.stderr
