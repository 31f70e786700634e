"""Conversations, chat templates of the usual kinds, and a tokenizer with their special tokens."""

from pathlib import Path

from slm.data import Tokenizer, load_tokenizer
from tests.data.foreign import byte_level, save_as

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)
MARKED = """{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>bot
{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}<|im_start|>{{ m.role }}
{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>bot
{% endif %}"""
FORGETS = """{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}said something
{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"""
"""Shortens all answers but the last, as templates of reasoning models drop their thoughts."""

CALL = {"type": "function", "function": {"name": "set_timer", "arguments": {"minutes": 5, "why": "thé"}}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Tea for 5 <minutes>?"},
    {"role": "assistant", "content": "Sure.", "tool_calls": [CALL]},
    {"role": "tool", "content": "ok"},
    {"role": "assistant", "content": "It runs."},
]
TOOLS = [{"name": "set_timer"}]


def chat_tokenizer(folder: Path) -> Tokenizer:
    """Bytes, and the marks of ChatML, of which <|im_end|> ends a text."""
    save_as(byte_level(), folder, "<|im_start|>", "<|im_end|>", eos_token="<|im_end|>", bos_token="<|im_start|>")
    return load_tokenizer(folder)
