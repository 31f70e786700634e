"""Chat templates: rendered as transformers renders them, and read from a tokenizer's folder."""

import json
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from slm.data.chat_template import PLAIN_TEMPLATE, load_chat_template, render
from tests.data.chats import CHATML, LLAMA, MARKED, TALK, TOOLS

LOOPS = "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
LOOPS += "{% set ns.n = ns.n + 1 %}{{ ns.n }}: {{ {'b': '<', 'a': m.content} | tojson }}\n{% endfor %}"
LOOPS += "  {% if tools %}\n  {{ tools | tojson(indent=2) }}\n  {% endif %}\n"


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, CHATML, LLAMA, MARKED, LOOPS])
@pytest.mark.parametrize("prompt", [True, False])
def test_a_conversation_is_rendered_as_transformers_renders_it(template: str, prompt: bool) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    expected, _ = render_jinja_template(
        [TALK[:-1] if prompt else TALK], tools=TOOLS, chat_template=template, add_generation_prompt=prompt, **tokens
    )
    messages = TALK[:-1] if prompt else TALK
    assert render(messages, template, tools=TOOLS, add_generation_prompt=prompt, **tokens) == expected[0]


def test_the_plain_template_says_who_says_what() -> None:
    text = render(TALK, PLAIN_TEMPLATE, eos_token="<end>", tools=TOOLS)
    assert text == (
        'Tools:\n{"name": "set_timer"}\n\nSystem:\nBe brief.\n\nUser:\nTea for 5 <minutes>?\n\n'
        'Assistant:\nSure.\n{"name": "set_timer", "arguments": {"minutes": 5, "why": "thé"}}<end>\n\n'
        "Tool:\nok\n\nAssistant:\nIt runs.<end>\n\n"
    )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system\\nmessage') }}", "no system message"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        (PLAIN_TEMPLATE, "a role must be system, user, assistant or tool, not judge"),
    ],
)
def test_a_template_that_fails_is_told_in_one_sentence(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match="cannot render the conversation") as caught:
        render([{"role": "judge", "content": "?"}], template)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_has_its_template_in_a_file_or_in_the_config(tmp_path: Path) -> None:
    def with_config(value: object) -> str | None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        return load_chat_template(tmp_path)

    assert load_chat_template(tmp_path) is None
    assert with_config(None) is None
    assert with_config("one") == "one"
    named = [{"name": "rag", "template": "first"}, {"name": "default", "template": "second"}]
    assert (with_config(named), with_config(named[:1]), with_config([])) == ("second", "first", None)
    with pytest.raises(ValueError, match=r"chat_template in .*tokenizer_config.json must be text"):
        with_config(3)
    with pytest.raises(ValueError, match=r"cannot be read \(KeyError\)"):
        with_config([{"name": "x"}])
    (tmp_path / "chat_template.jinja").write_text("file")
    assert load_chat_template(tmp_path) == "file"
