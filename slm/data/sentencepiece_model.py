"""Convert a SentencePiece `tokenizer.model` (Llama's, MobileLLM's) to the `tokenizers` library, with the same ids.

Merges follow from the pieces as in SentencePiece: two pieces merge if their concatenation is a piece, best score first.
Models that cannot be converted exactly (unigram models, normalisation tables, user-defined symbols other than markup)
are refused and never approximated. Needs the extra `[hub]`.
"""

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from slm.data.tokenizer import Tokenizer

_SPACE = "\u2581"  # how SentencePiece writes a space
# ModelProto.SentencePiece.Type and TrainerSpec.ModelType of sentencepiece_model.proto
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}


def convert(file: Path, name: str, config: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer in a `tokenizer.model`; `config` has the settings of a tokenizer_config.json beside it.

    Defaults are as in Llama: the model's own begin and end tokens, and a begin token before each text. For a model that
    cannot be converted exactly, raises ValueError.
    """
    model = _parse(file)
    if problem := _problem(model):
        raise ValueError(f"{file} {problem}, which cannot be reproduced exactly here: give the folder a tokenizer.json")
    bos = config.get("bos_token") or _control_piece(model, model.trainer_spec.bos_id)
    eos = config.get("eos_token") or _control_piece(model, model.trainer_spec.eos_id)
    if eos is None:
        raise ValueError(f"{file} has no end token: name eos_token in tokenizer_config.json beside it")
    return Tokenizer(name, _convert_bpe(model).to_str(), bos=bos, eos=eos, adds_bos=config.get("add_bos_token", True))


def _parse(file: Path) -> Any:
    try:
        # Imported by name because neither package has types.
        protobuf = import_module("google.protobuf.message")
        proto = import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError:
        raise ValueError(f"{file} is a SentencePiece model; to read it, pip install 'slm[hub]'") from None
    model = proto.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except protobuf.DecodeError:
        model.Clear()
    if not model.pieces:
        raise ValueError(f"{file} is not a SentencePiece model, or is damaged: download it again")
    return model


def _problem(model: Any) -> str | None:
    model_type = _MODEL_TYPES.get(model.trainer_spec.model_type, "unknown")
    normalizer = model.normalizer_spec
    if model_type != "BPE":
        return f"is a SentencePiece model of type {model_type} and not BPE"
    if normalizer.precompiled_charsmap:
        return f"normalises text by a table ({normalizer.name or 'unnamed'})"
    if model.trainer_spec.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
        return "does not mark the space before a word"
    for piece in model.pieces:
        if piece.type == _UNUSED:
            return "has pieces that are marked unused"
        # SentencePiece turns text that equals a user-defined symbol into the symbol, but slm never does. For markup,
        # this is wanted. With a symbol of white space or words, slm would encode ordinary text differently.
        is_markup = re.fullmatch(r"<.+>|\[.+\]", piece.piece, re.DOTALL) is not None
        if piece.type == _USER_DEFINED and not is_markup:
            return f"has the user-defined symbol {piece.piece!r}"
    return None


def _control_piece(model: Any, piece_id: int) -> str | None:
    if 0 <= piece_id < len(model.pieces) and model.pieces[piece_id].type == _CONTROL:
        return str(model.pieces[piece_id].piece)
    return None


def _convert_bpe(model: Any) -> tokenizers.Tokenizer:
    pieces = list(model.pieces)
    ids = {piece.piece: number for number, piece in enumerate(pieces)}
    scores = {piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}
    ranked_texts = sorted(scores, key=lambda text: (-scores[text], ids[text]))  # best score first, then lowest id
    merges = [
        (text[:cut], text[cut:])
        for text in ranked_texts
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    inner = tokenizers.Tokenizer(
        models.BPE(
            vocab=ids,
            merges=merges,
            unk_token=next((piece.piece for piece in pieces if piece.type == _UNKNOWN), None),
            fuse_unk=True,
            byte_fallback=any(piece.type == _BYTE for piece in pieces),
        )
    )
    _add_whitespace_rules(inner, model.normalizer_spec, pieces=set(scores))
    special_pieces = [piece.piece for piece in pieces if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)]
    inner.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special_pieces])
    return inner


def _add_whitespace_rules(inner: tokenizers.Tokenizer, spec: Any, pieces: set[str]) -> None:
    """Set the normaliser, pre-tokenizer and decoder for the model's handling of spaces."""
    steps: list[Any] = []
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(tokenizers.Regex(r"\A +"), ""))
        steps.append(normalizers.Replace(tokenizers.Regex(" +"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    if spec.remove_extra_whitespaces:  # spaces at the end, including any U+2581 of the text itself
        steps.append(normalizers.Replace(tokenizers.Regex(rf"{_SPACE}+\z"), ""))
    inner.normalizer = normalizers.Sequence(steps)
    has_inner_space = any(_SPACE in piece.lstrip(_SPACE) for piece in pieces)
    if _SPACE in pieces and not has_inner_space:
        # Every piece lies within one word, so words can be encoded, and cached, separately.
        words = tokenizers.Regex(f"{_SPACE}*[^{_SPACE}]+|{_SPACE}+")
        inner.pre_tokenizer = pre_tokenizers.Split(words, behavior="isolated")
    strip = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    inner.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
