"""Write a Llama-shaped decoder as one GGUF file for llama.cpp, and run such a file with llama.cpp.

Notable: llama.cpp rotates neighbouring channels, so rows of the query and key projections are reordered. It cuts text
by rules that have names (`tokenizer.ggml.pre`), and stops at a name that it does not know. The rule of slm's own BPE
has none there. The nearest one is written with a note, unless `tokenizer.split=llama3` trained the tokenizer.
"""

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slm.checkpoints.engine import EngineModel, import_extra, quiet
from slm.data.conversations import end_of_turn_ids
from slm.data.tokenizer import Tokenizer
from slm.data.vocabulary import SPLITS
from slm.model.config import ModelConfig

DTYPES = {"float32": "F32", "float16": "F16", "q8_0": "Q8_0"}
"""`export_dtype` -> type of the matrices; vectors are always float32."""
NEAREST_NOTE = (
    "llama.cpp has no rule that cuts text as slm's own BPE does. The nearest one gives other tokens, of the same text, "
    "where the word after an apostrophe only begins like a contraction, as in f'Setting'."
)
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's types of tokens
_GPT2, _DIGITS = "gpt2", "digits"
_LLAMA3, _QWEN2 = SPLITS["llama3"], SPLITS["llama3"].replace(r"\p{N}{1,3}", r"\p{N}")
_CONTRACTIONS = _LLAMA3.partition("|[^")[0]
# How a tokenizer cuts text -> llama.cpp's name for it. For these, `llama-bpe` would take whole pieces before merging.
_RULES = {
    (_GPT2,): "gpt-2",
    (_DIGITS, _GPT2): "smollm",
    (_LLAMA3,): "smaug-bpe",
    (_QWEN2,): "qwen2",
    (SPLITS["slm"],): "smaug-bpe",  # the nearest
}
_TENSORS = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""Our names without "layers.N." and ".weight" -> llama.cpp's without "blk.N."."""


class Vocabulary(NamedTuple):
    """A tokenizer as GGUF has it."""

    model: str  # "gpt2" for byte-level BPE, "llama" for SentencePiece
    rule: str  # `tokenizer.ggml.pre`
    tokens: list[str]
    types: list[int]
    merges: list[str]  # byte-level BPE only
    scores: list[float]  # SentencePiece only
    notes: tuple[str, ...] = ()


def write_gguf(
    file: Path, name: str, config: ModelConfig, tensors: Mapping[str, Tensor], tokenizer: Tokenizer, dtype: str
) -> tuple[str, ...]:
    """Write a plain Llama that rotates halves. Returns notes on what llama.cpp will do differently.

    Raises `ValueError` for a tokenizer or widths that llama.cpp does not have.
    """
    gguf = import_extra("gguf", "gguf", "format=gguf")
    vocabulary = convert_tokenizer(tokenizer, config.vocab_size)
    kind = gguf.GGMLQuantizationType[DTYPES[dtype]]
    widths = {tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 2}
    if dtype == "q8_0" and (odd := sorted(width for width in widths if width % 32)):
        raise ValueError(f"export_dtype=q8_0 needs widths that are multiples of 32, and a matrix has {odd[0]} columns")
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[{"F32": "ALL_F32"}.get(kind.name, f"MOSTLY_{kind.name}")])
    _add_shape(writer, config)
    _add_vocabulary(writer, vocabulary, tokenizer)
    for own_name, tensor in tensors.items():
        heads = {"q_proj": config.num_heads, "k_proj": config.kv_heads}.get(own_name.split(".")[-2])
        array = tensor.float().cpu()
        if heads:  # from halves (0, 1, ..) to neighbours (0, C/2, 1, ..)
            array = array.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        tensor_kind = kind if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        values = gguf.quants.quantize(array.contiguous().numpy(), tensor_kind)
        writer.add_tensor(_tensor_name(own_name), values, raw_dtype=tensor_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return vocabulary.notes


def _add_shape(writer: Any, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.rule)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
    writer.add_bos_token_id(tokenizer.separator_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_add_bos_token(tokenizer.adds_bos)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
        writer.add_eot_token_id(end_of_turn_ids(tokenizer)[-1])
    writer.add_add_space_prefix(vocabulary.model == "llama")


def _tensor_name(name: str) -> str:
    *path, kind = name.split(".")
    if path[0] == "layers":
        return f"blk.{path[1]}.{_TENSORS['.'.join(path[2:])]}.{kind}"
    return f"{_TENSORS['.'.join(path)]}.{kind}"


def convert_tokenizer(tokenizer: Tokenizer, num_rows: int) -> Vocabulary:
    """Return the tokenizer for an embedding of `num_rows` rows. Raises `ValueError` if llama.cpp has none like it."""
    content = json.loads(tokenizer.content)
    model = content["model"]
    tokens = [f"[PAD{i}]" for i in range(num_rows)]
    types = [_UNUSED] * num_rows
    scores = [0.0] * num_rows
    if model["type"] != "BPE":
        raise ValueError(f"format=gguf writes tokenizers of type BPE, and {tokenizer.name} is of type {model['type']}")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    for rank, (left, right) in reversed(list(enumerate(merges))):
        scores[model["vocab"][left + right]] = -float(rank)
    for token, i in model["vocab"].items():
        is_byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
        tokens[i], types[i] = token, _BYTE if is_byte else _NORMAL
    for added in content["added_tokens"]:
        if added["id"] >= num_rows:  # a special token that the model cannot read (Gemma 3)
            continue
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    if model.get("byte_fallback"):
        if not (_puts_space_first(content) and model.get("unk_token")):
            raise ValueError(f"format=gguf: tokenizer {tokenizer.name} treats spaces in a way that llama.cpp cannot")
        types[model["vocab"][model["unk_token"]]] = _UNKNOWN
        return Vocabulary("llama", "default", tokens, types, [], scores)
    rule, notes = _rule(tokenizer, content)
    # llama.cpp refuses a file without merges. This merge never applies, because text never becomes a special token.
    lines = [f"{left} {right}" for left, right in merges] or [f"{tokens[tokenizer.eos_id]} {tokens[tokenizer.eos_id]}"]
    return Vocabulary("gpt2", rule, tokens, types, lines, [], notes)


def _rule(tokenizer: Tokenizer, content: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return llama.cpp's name for the way in which a byte-level tokenizer cuts text, and notes."""
    stages = content["pre_tokenizer"] or {}
    splits: list[str] = []
    for stage in stages.get("pretokenizers", [stages]):
        if stage.get("type") == "Split" and stage["behavior"] == "Isolated" and not stage["invert"]:
            splits.append(next(iter(stage["pattern"].values())).replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTIONS))
        elif stage.get("type") == "Digits" and stage["individual_digits"]:
            splits.append(_DIGITS)
        elif stage.get("type") == "ByteLevel" and not stage["add_prefix_space"]:
            splits += [_GPT2] if stage["use_regex"] else []
        else:
            splits.append(str(stage.get("type")))
    if not splits and not content["model"]["merges"]:
        return "gpt-2", ()  # every byte is a token, however the text is cut
    rule = _RULES.get(tuple(splits))
    if rule is None or content["normalizer"] is not None:
        raise ValueError(
            f"format=gguf: llama.cpp has no rule that cuts text as tokenizer {tokenizer.name} does "
            f"({_how_cut(splits, content)}); slm's own tokenizers, GPT-2's, Llama 3's, Qwen 2's and SmolLM's are "
            "supported"
        )
    if rule == "smaug-bpe" and content["model"].get("ignore_merges"):
        rule = "llama-bpe"
    return rule, (NEAREST_NOTE,) if splits == [SPLITS["slm"]] else ()


def _how_cut(splits: list[str], content: Mapping[str, Any]) -> str:
    if content["normalizer"] is not None:
        return f"it normalises text by {content['normalizer']['type']}"
    return "it cuts by " + (", ".join(f"{split:.40}" for split in splits) or "nothing")


def _puts_space_first(content: Mapping[str, Any]) -> bool:
    text = json.dumps([content["normalizer"], content["pre_tokenizer"]], ensure_ascii=False)
    return '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text


class GgufModel(EngineModel):
    """A GGUF file in llama.cpp, on as many threads as torch has; its memory is float32 only if the weights are."""

    def __init__(self, file: Path, config: ModelConfig, dtype: str) -> None:
        llama_cpp = import_extra("llama_cpp", "gguf", f"checkpoint={file}")
        super().__init__(config, torch.float32 if dtype == "float32" else torch.float16, file.stat().st_size)
        memory_type = llama_cpp.GGML_TYPE_F32 if dtype == "float32" else llama_cpp.GGML_TYPE_F16
        threads = torch.get_num_threads()
        options = {"type_k": memory_type, "type_v": memory_type, "n_threads": threads, "n_threads_batch": threads}
        options |= {"n_ctx": config.max_position_embeddings, "logits_all": True, "verbose": False}
        try:
            with quiet():
                self.llama = llama_cpp.Llama(str(file), **options)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"checkpoint={file}: llama.cpp cannot load it ({error}): export it again") from None
        weakref.finalize(self, self.llama.close)  # also at exit, before Python takes the library's functions away

    def read(self, tokens: list[int], start: int) -> Tensor:
        """See `EngineModel.read`."""
        self.llama.n_tokens = start  # what is in memory after this is dropped
        self.llama.eval(tokens)
        logits: np.ndarray = self.llama.scores[start : start + len(tokens)]
        return torch.from_numpy(logits.copy())

    def encode(self, text: str) -> list[int]:
        """Return llama.cpp's ids of a text, without begin and end."""
        return list(self.llama.tokenize(text.encode(), add_bos=False))
