"""Chat templates: how a conversation becomes the text that a model reads.

A template is a Jinja program that comes with a tokenizer. It is run as transformers' `apply_chat_template` runs it: in
a sandbox, because templates come from hubs. `PLAIN_TEMPLATE` serves tokenizers without one.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"

PLAIN_TEMPLATE = """\
{%- if tools %}{{ 'Tools:\\n' }}{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}{{ '\\n' }}{% endif -%}
{%- for message in messages -%}
{%- set content = (message.content or '') | trim -%}
{%- if message.role == 'assistant' -%}
{{- 'Assistant:\\n' -}}
{%- generation -%}
{{- content -}}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function or call -%}
{%- set arguments = call.arguments if call.arguments is string else call.arguments | tojson -%}
{{- '\\n' if content or not loop.first -}}
{{- '{"name": ' + call.name | tojson + ', "arguments": ' + arguments + '}' -}}
{%- endfor -%}
{{- eos_token -}}
{%- endgeneration -%}
{{- '\\n\\n' -}}
{%- elif message.role in ('system', 'user', 'tool') -%}
{{- message.role | capitalize + ':\\n' + content + '\\n\\n' -}}
{%- else -%}
{{- raise_exception('a role must be system, user, assistant or tool, not ' + message.role | string) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif -%}
"""
"""The template of tokenizers that have none. Its only special token is `eos_token`, which ends an assistant's turn."""

START, END = "\ufdd0", "\ufdd1"
"""Characters around what `render` marks. Unicode keeps them for internal use, so no text should hold them."""


def load_chat_template(folder: Path) -> str | None:
    """Return the chat template in a tokenizer's folder; None if there is none.

    It is the text of chat_template.jinja, else `chat_template` in tokenizer_config.json: a text, or a list of named
    ones, of which "default" or the first is taken. Raises ValueError if a file cannot be read.
    """
    file = folder / TEMPLATE_FILE
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8")
        file = folder / CONFIG_FILE
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        template = config.get("chat_template")
        if isinstance(template, list):
            by_name = {entry["name"]: entry["template"] for entry in template}
            template = by_name.get("default", next(iter(by_name.values()), None))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the chat template in {file} cannot be read ({type(error).__name__}): restore it") from None
    if template is not None and not isinstance(template, str):
        raise ValueError(f"chat_template in {file} must be text or a list of named texts")
    return template


def render(
    messages: Sequence[Mapping[str, Any]],
    template: str,
    *,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    mark_generation: bool = False,
) -> str:
    """Return the text of a conversation: of `messages` with `role`, `content` and optionally `tool_calls`.

    `add_generation_prompt` adds what stands before an assistant's next answer. `mark_generation` puts `START` and `END`
    around each `{% generation %}` block of the template. Raises ValueError if the template is not valid or refuses the
    messages.
    """
    try:
        text = _compiled(template, mark_generation).render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            bos_token=bos_token,
            eos_token=eos_token,
        )
    except Exception as error:  # a template is a program: it may fail in any way
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the chat template cannot render the conversation: {message}") from None
    return text


@lru_cache(maxsize=16)
def _compiled(template: str, mark_generation: bool) -> Any:
    from jinja2.ext import Extension, loopcontrols  # not at the top, because most runs need no template
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag `{% generation %}` of transformers, around what the assistant generates."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

        def mark(self, caller: Any) -> str:
            return f"{START}{caller()}{END}" if mark_generation else str(caller())

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter would write <, > and & as HTML and sort the keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise ValueError(message)
