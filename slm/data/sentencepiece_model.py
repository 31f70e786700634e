"""A SentencePiece `tokenizer.model` (Llama's, MobileLLM's) as a tokenizer of the `tokenizers` library, id for id.

Merges are recovered from the pieces: any two pieces whose concatenation is a piece merge, best score first, which is
the rule SentencePiece itself encodes by. Models that cannot be converted exactly (unigram models, normalisation tables,
symbols other than markup) are refused in one sentence and never approximated. Needs the extra `[hub]`.
"""

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
    """The tokenizer in a `tokenizer.model`; `config` is what a tokenizer_config.json beside it says.

    Llama's rules hold where the config says nothing: `bos_token` and `eos_token` are the model's own, and a text
    begins with the former. Raises ValueError for a model that cannot be converted exactly.
    """
    model = _parsed(file)
    problem = _problem(model)
    if problem:
        raise ValueError(f"{file} {problem}, which cannot be reproduced exactly here: give the folder a tokenizer.json")
    bos, eos = (
        config.get(f"{role}_token") or _control_piece(model, getattr(model.trainer_spec, f"{role}_id"))
        for role in ("bos", "eos")
    )
    if eos is None:
        raise ValueError(f"{file} has no end token: name eos_token in tokenizer_config.json beside it")
    return Tokenizer(name, _tokenizer(model).to_str(), bos=bos, eos=eos, adds_bos=config.get("add_bos_token", True))


def _parsed(file: Path) -> Any:
    try:
        # Imported by name because neither package has types.
        protobuf = import_module("google.protobuf.message")
        proto = import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError:
        raise ValueError(
            f"{file} is a SentencePiece model, and reading it needs an extra: pip install 'slm[hub]'"
        ) from None
    model = proto.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except protobuf.DecodeError:
        model.Clear()
    if not model.pieces:
        raise ValueError(f"{file} is not a SentencePiece model, or is damaged: download it again")
    return model


def _problem(model: Any) -> str | None:
    """Why a model cannot be converted exactly, or None."""
    kind, normalizer = _MODEL_TYPES.get(model.trainer_spec.model_type, "unknown"), model.normalizer_spec
    if kind != "BPE":
        return f"is a SentencePiece model of type {kind} and not BPE"
    if normalizer.precompiled_charsmap:
        return f"normalises text by a table ({normalizer.name or 'unnamed'})"
    if model.trainer_spec.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
        return "does not mark the space before a word"
    for piece in model.pieces:
        if piece.type == _UNUSED:
            return "has pieces that are marked unused"
        # SentencePiece makes user-defined symbols out of text. For markup we do not; white space or words would be
        # encoded differently.
        is_markup = len(piece.piece) > 2 and piece.piece[0] + piece.piece[-1] in ("<>", "[]")
        if piece.type == _USER_DEFINED and not is_markup:
            return f"has the user-defined symbol {piece.piece!r}"
    return None


def _control_piece(model: Any, number: int) -> str | None:
    if 0 <= number < len(model.pieces) and model.pieces[number].type == _CONTROL:
        return str(model.pieces[number].piece)
    return None


def _tokenizer(model: Any) -> tokenizers.Tokenizer:
    pieces = list(model.pieces)
    ids = {piece.piece: number for number, piece in enumerate(pieces)}
    scores = {piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}
    merges = [  # all pairs of pieces that make a piece, best score first, then lowest id
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: (-scores[piece], ids[piece]))
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
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
    _add_whitespace_rules(inner, model.normalizer_spec, scores)
    special = [piece.piece for piece in pieces if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)]
    inner.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    return inner


def _add_whitespace_rules(inner: tokenizers.Tokenizer, spec: Any, scores: Mapping[str, float]) -> None:
    """Set the normaliser, pre-tokenizer and decoder for the model's handling of spaces."""
    before: list[Any] = []
    after: list[Any] = [normalizers.Replace(" ", _SPACE)]
    if spec.remove_extra_whitespaces:
        before += [normalizers.Replace(tokenizers.Regex(regex), to) for regex, to in ((r"\A +", ""), (" +", " "))]
        # Last, since here a U+2581 of the text itself counts as a space.
        after.append(normalizers.Replace(tokenizers.Regex(rf"{_SPACE}+\z"), ""))
    prefix = [normalizers.Prepend(_SPACE)] if spec.add_dummy_prefix else []
    inner.normalizer = normalizers.Sequence([*before, *prefix, *after])
    if _SPACE in scores and not any(_SPACE in piece.lstrip(_SPACE) for piece in scores):
        # No piece crosses the beginning of a word, so words may be encoded, and cached, separately.
        words = tokenizers.Regex(f"{_SPACE}*[^{_SPACE}]+|{_SPACE}+")
        inner.pre_tokenizer = pre_tokenizers.Split(words, behavior="isolated")
    strip = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    inner.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
