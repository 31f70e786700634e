"""A conversation answers as transformers would on the same text, whatever was kept, stopped or dropped before."""

import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from slm.checkpoints import Checkpoint, load
from slm.data.conversations import end_of_turn_ids
from slm.evaluation.chat import Chat, talk
from slm.evaluation.generation import generate, stream
from slm.evaluation.history import RunningText
from slm.model import KVCache, decoding
from slm.model.decoding import eager_logits
from tests.checkpoints.releases import llama, save
from tests.evaluation.asked import asked

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
OPTIONS = {"seed": 1, "max_new_tokens": 12, "temperature": 0.0}
LINES = ["Some line", "and another", "the last"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(llama(max_position_embeddings=256), tmp_path_factory.mktemp("release"))


@pytest.fixture
def model(release: Path) -> Checkpoint:
    return load(release)


@pytest.fixture
def chat_model(release: Path) -> Checkpoint:
    loaded = load(release)
    loaded.tokenizer.chat_template = TEMPLATE
    return loaded


Say = Callable[..., str]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Pipe lines into a chat; returns what it prints."""

    def say_lines(chat: Chat, lines: list[str]) -> str:
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
        chat.run()
        return capsys.readouterr().out

    return say_lines


class Reference:
    """Greedy answers of transformers."""

    def __init__(self, release: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(release)
        self.tokenizer = AutoTokenizer.from_pretrained(release)

    def continue_ids(self, ids: list[int], max_new_tokens: int = 12) -> list[int]:
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, "eos_token_id": 256, "pad_token_id": 0}
        options["suppress_tokens"] = [257, 258, 259]  # which only pad the vocabulary
        new = self.model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
        return new[:-1] if new[-1:] == [256] else new

    def continue_text(self, lines: list[str]) -> tuple[list[int], str]:
        """The ids of one text of lines and continuations, and the continuations, each with a line break."""
        ids, shown = [], ""
        for number, line in enumerate(lines):
            ids += list(f"\n{line}".encode() if number else line.encode())
            new = self.continue_ids(ids)
            ids += new
            shown += self.tokenizer.decode(new, skip_special_tokens=True) + "\n"
        return ids, shown


@pytest.fixture(scope="module")
def reference(release: Path) -> Reference:
    return Reference(release)


def counted(model: Checkpoint, lengths: list[int]) -> Callable[[Tensor, KVCache], Tensor]:
    """Logits of a model that note how many tokens each call processes."""
    logits = eager_logits(model.decoder)

    def next_logits(tokens_1T: Tensor, cache: KVCache) -> Tensor:
        lengths.append(tokens_1T.shape[1])
        return logits(tokens_1T, cache)

    return next_logits


def test_a_base_model_continues_one_running_text_and_computes_no_token_twice(
    model: Checkpoint, say: Say, reference: Reference
) -> None:
    lengths: list[int] = []
    ids, expected = reference.continue_text(LINES)
    assert say(Chat(model, OPTIONS, counted(model, lengths)), LINES) == expected
    assert sum(lengths) == len(ids) - 1  # the last token of an answer is read with the next line


def test_a_chat_model_answers_the_conversation_in_the_form_of_its_template(
    chat_model: Checkpoint, say: Say, reference: Reference
) -> None:
    messages = [{"role": "system", "content": "Be brief."}]
    expected = ""
    for line in LINES:
        messages.append({"role": "user", "content": line})
        text = reference.tokenizer.apply_chat_template(
            messages, chat_template=TEMPLATE, add_generation_prompt=True, tokenize=False
        )
        new = reference.continue_ids(reference.tokenizer(text, add_special_tokens=False)["input_ids"])
        messages.append({"role": "assistant", "content": reference.tokenizer.decode(new, skip_special_tokens=True)})
        expected += messages[-1]["content"] + "\n"
    chat = Chat(chat_model, OPTIONS, eager_logits(chat_model.decoder), system="Be brief.")
    assert say(chat, LINES) == expected
    assert generate(chat_model, messages[:2], max_new_tokens=12, temperature=0) == messages[2]["content"]


def test_an_answer_ends_at_the_special_token_that_the_template_writes_after_answers(chat_model: Checkpoint) -> None:
    assert end_of_turn_ids(chat_model.tokenizer) == [256, 256]
    chat_model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert end_of_turn_ids(chat_model.tokenizer) == [256]
    chat_model.tokenizer.chat_template = "<|endoftext|>{% if add_generation_prompt %}Go:{% endif %}"  # hides answers
    assert end_of_turn_ids(chat_model.tokenizer) == [256]


def test_reset_begins_again_with_the_same_seeds_and_options_can_be_set(
    model: Checkpoint, say: Say, capsys: pytest.CaptureFixture[str]
) -> None:
    options = OPTIONS | {"temperature": 1.0}
    shown = say(Chat(model, options, eager_logits(model.decoder)), ["One", "/reset", "One", "One"])
    first = generate(model, "One", max_new_tokens=12, temperature=1.0, seed=1)
    assert shown.startswith(f"{first}\n{first}\n")
    assert say(Chat(model, options, eager_logits(model.decoder)), ["/set max_new_tokens=3", "One"]) == (
        generate(model, "One", max_new_tokens=3, temperature=1.0, seed=1) + "\n"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set top_p=7", "error: top_p=7 must be above 0"),
        ("/set topp=1", "error: topp is not an option of generation: they are max_new_tokens"),
        ("/set temperature=[", "error: "),
        ("/what is this", "/what is not a command: /help lists them"),
        ("x" * 256, "error: a text of 256 tokens is too long for the checkpoint's context of 256 tokens"),
        ("x" * 10_000_000, "error: a text of 10,000,000 characters is too long"),
        ("/help", "/reset"),
    ],
)
def test_a_mistake_in_a_line_is_answered_and_the_chat_goes_on(
    line: str, said: str, model: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{line}\nOne".encode())))
    Chat(model, OPTIONS, eager_logits(model.decoder)).run()
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == generate(model, "One", max_new_tokens=12, temperature=0) + "\n"


def test_the_oldest_turns_are_dropped_when_the_context_is_full_which_is_said_once(
    model: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reference: Reference
) -> None:
    lines = [f"{number} " + "x" * 78 for number in range(5)]  # with its answer, each has 92 or 93 of 256 tokens
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    chat = Chat(model, OPTIONS, eager_logits(model.decoder))
    chat.run()
    printed = capsys.readouterr()
    assert printed.err.count("the oldest turns are dropped") == 1
    turns: list[list[int]] = []
    for line in lines:
        turns = turns[-1:]  # two turns with a new line and its answer do not fit: 2 * 93 + 81 + 12
        ids = [token for turn in turns for token in turn] + list((f"\n{line}" if turns else line).encode())
        new = reference.continue_ids(ids)
        turns.append([*list((f"\n{line}" if turns else line).encode()), *new])
    assert printed.out.endswith(reference.tokenizer.decode(new) + "\n")
    assert isinstance(chat.history, RunningText)
    assert chat.history.turns == turns


def test_ctrl_c_stops_an_answer_which_stays_in_the_text_and_twice_ends_the_chat(
    model: Checkpoint, say: Say, reference: Reference
) -> None:
    logits = eager_logits(model.decoder)
    calls = 0

    def interrupted(tokens_1T: Tensor, cache: KVCache) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            signal.raise_signal(signal.SIGINT)
        return logits(tokens_1T, cache)

    shown = say(Chat(model, OPTIONS, interrupted), LINES[:2])
    first = reference.continue_ids(list(LINES[0].encode()))[:3]  # the third token is completed
    second = reference.continue_ids([*LINES[0].encode(), *first, *f"\n{LINES[1]}".encode()])
    assert shown == f"{reference.tokenizer.decode(first)}\n{reference.tokenizer.decode(second)}\n"

    def twice(tokens_1T: Tensor, cache: KVCache) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return logits(tokens_1T, cache)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        say(Chat(model, OPTIONS, twice), LINES)
    assert signal.getsignal(signal.SIGINT) == handler


def test_a_diverged_model_and_an_instruction_without_a_template_are_refused(model: Checkpoint, say: Say) -> None:
    with pytest.raises(ValueError, match="system needs a chat template, and this checkpoint"):
        Chat(model, OPTIONS, eager_logits(model.decoder), system="Be brief.")
    with pytest.raises(ValueError, match="messages need a chat template"):
        generate(model, [{"role": "user", "content": "Hello"}])
    model.decoder.norm.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite: it diverged"):
        say(Chat(model, OPTIONS, eager_logits(model.decoder)), LINES)


def test_a_prompt_comes_from_a_file_or_from_standard_input_to_the_last_character(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = 'Say "hi",\n[ok]? = {größe}\n'
    (tmp_path / "p.txt").write_bytes(text.replace("\n", "\r\n").encode() + b"\r\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode() + b"\n")))
    common = [f"checkpoint={release}", "generation.max_new_tokens=1", "logger=csv"]
    for source in (f"prompt_file={tmp_path / 'p.txt'}", "prompt=-"):
        assert talk(asked(*common, source)) == 0
        assert capsys.readouterr().out.startswith(text)
    (tmp_path / "p.txt").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match="is not UTF-8 at byte 3"):
        talk(asked(*common, f"prompt_file={tmp_path / 'p.txt'}"))
    with pytest.raises(ValueError, match="No such file"):
        talk(asked(*common, "prompt_file=nowhere.txt"))


def test_the_example_of_the_documentation_runs(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how_to.md").read_text()
    (example,) = [block.split("```")[0] for block in page.split("```python\n")[1:] if "from slm import" in block]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "run").symlink_to(release)
    names: dict[str, Any] = {}
    exec(example, names)
    model = names["model"]
    shown = capsys.readouterr().out
    greedy = generate(model, "The function", max_new_tokens=40, temperature=0)
    assert greedy in shown
    assert "".join(stream(model, "The function", max_new_tokens=40, temperature=0)) == greedy
    for seed in range(3):  # by chance some of them end
        hot: dict[str, Any] = {"max_new_tokens": 200, "temperature": 3.0, "top_k": None, "seed": seed}
        ids = decoding.generate(model.decoder, list(b"a"), stop_id=256, num_ids=257, **hot)
        assert generate(model, "a", **hot) == model.tokenizer.decode([97, *ids])[1:]
    for option in ({"temperature": -1}, {"top_k": 0}, {"wrong": 1}):
        with pytest.raises(ValueError, match=f"^{next(iter(option))}"):
            generate(model, "a", **option)
