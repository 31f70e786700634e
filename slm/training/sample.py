"""The text that a run generates while it trains."""

from collections.abc import Mapping
from typing import Any

from slm.data.conversations import encode_prompt, end_of_turn_ids
from slm.data.corpus import Corpus
from slm.model.decoding import generate
from slm.training.module import LanguageModel


def sample_text(module: LanguageModel, corpus: Corpus, train: Mapping[str, Any]) -> str:
    """Generate a continuation of `train.sample_prompt`; "" if weights are sharded or `train.sample_tokens` is 0.

    If the run learns from conversations, generate the assistant's answer to the prompt as a message of the user.
    """
    is_sharded = any(hasattr(p, "full_tensor") for p in module.decoder.parameters())
    if is_sharded or not train["sample_tokens"]:
        return ""
    tokenizer, prompt = corpus.tokenizer, train["sample_prompt"]
    if corpus.holds_conversations:
        prompt_ids, stop_ids = (
            encode_prompt([{"role": "user", "content": prompt}], tokenizer),
            end_of_turn_ids(tokenizer),
        )
    else:
        prompt_ids, stop_ids = [tokenizer.separator_id, *tokenizer.encode(prompt)], [tokenizer.eos_id]
    ids = generate(
        module.decoder,
        prompt_ids,
        max_new_tokens=train["sample_tokens"],
        stop_id=stop_ids,
        num_ids=tokenizer.vocab_size,
    )
    return ("\n" if corpus.holds_conversations else "") + tokenizer.decode(list(ids))
