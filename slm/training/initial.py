"""Start a run from the weights of a checkpoint (`init_from`), with a new optimizer and a schedule from its beginning.

Notable: shape and tokenizer are the checkpoint's, so `complete_settings` puts them into the config before anything else
reads it. Once a run has a checkpoint of its own, the initial one is not opened again and may have moved or changed: the
shape is in config.yaml, the tokenizer in the cache, and what was known of the initial weights in corpus.json.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from slm.checkpoints.load import inspect, load
from slm.checkpoints.location import Provenance
from slm.checkpoints.weights import EMBEDDING, HEAD
from slm.composition.budget import model_config
from slm.composition.keys import default_choice
from slm.data.cache import digest
from slm.data.tokenizer import CONFIGS, Tokenizer
from slm.data.vocabulary import plan_tokenizer
from slm.model.config import ModelConfig
from slm.model.decoder import Decoder
from slm.runtime.address import named, split_revision
from slm.runtime.settings import as_typed
from slm.training.checkpointing import checkpoint_step, newest_intact, resumable_checkpoints
from slm.training.run_directory import RunDirectory

KEY = "init_from"
CHANGEABLE = ("max_position_embeddings", "rope_theta")
"""Fields that a run may change, for a longer context: no tensor depends on them, unless positions are learned."""


def complete_settings(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings with the shape and tokenizer of `init_from`. `overrides` are those of the command line.

    Raises `ValueError` if the checkpoint cannot be loaded, and for a shape or tokenizer that was chosen and differs.
    """
    if settings.get("branch_from") is not None:
        raise ValueError(
            f"branch_from={settings['branch_from']} and init_from={settings[KEY]} are both set: a branch continues the "
            "optimizer and schedule of its trunk, and init_from starts new ones, so set one of them to null"
        )
    tokenizer, keeps_vocab = settings["tokenizer"], settings["init_vocab"] == "same"
    is_named = any(re.match(r"\+*tokenizer[.=]", override) for override in overrides)
    has_default = tokenizer["kind"] == default_choice("train", "tokenizer")["kind"]
    is_chosen = tokenizer["kind"] != "checkpoint" and (is_named or not has_default)
    if stored := _stored_settings(settings):
        shape, family = model_config(stored["model"]), stored["model"].get("family")
        own_tokenizer = stored["tokenizer"]
    else:
        provenance, loaded_tokenizer = inspect(KEY, settings[KEY])
        shape, family = provenance.config, _family(provenance)
        own_tokenizer = _copied_to_cache(loaded_tokenizer, provenance, settings)
    if not keeps_vocab:
        shape = replace(shape, vocab_size=settings["model"]["vocab_size"])
    model = {"family": family, **_with_changes(shape, settings, overrides).to_dict()}
    if keeps_vocab and is_chosen and not stored:
        _check_tokenizer(tokenizer, loaded_tokenizer, settings[KEY])
    if any(override.startswith("model.family=") for override in overrides):
        model["family"] = settings["model"]["family"]  # a name, not a part of the shape
    return {**settings, "model": model, "tokenizer": own_tokenizer if keeps_vocab and not is_chosen else tokenizer}


def tokenizer_source(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config group `tokenizer`, as `slm.data` reads it: for that of a checkpoint, its copy in the cache."""
    tokenizer = settings["tokenizer"]
    if tokenizer["kind"] != "checkpoint":
        return tokenizer
    folder = Path(os.path.expanduser(settings["cache_dir"])) / "tokenizers" / tokenizer["fingerprint"]
    return {"kind": "file", "path": str(folder / tokenizer["name"]), "revision": None}


def find_initial(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what result.json says of the checkpoint whose weights a run starts from; None for random weights.

    `checkpoint` is as given; also its `revision`, the `fingerprint` of the weights, `tokens_before` and `vocab`.
    """
    if settings.get(KEY) is None:
        return None
    if _stored_settings(settings) is not None:
        return dict(RunDirectory(settings["output_dir"]).corpus()[KEY])
    provenance, _ = inspect(KEY, settings[KEY])
    return {
        "checkpoint": settings[KEY],
        "revision": provenance.revision,
        "fingerprint": provenance.fingerprint,
        "tokens_before": _tokens_before(provenance),
        "vocab": settings["init_vocab"],
    }


def load_initial(decoder: Decoder, settings: Mapping[str, Any], tokenizer: Tokenizer) -> list[str]:
    """Copy the weights of `init_from` into a run's `decoder`; returns lines to print.

    Raises `ValueError` if they are not finite.
    """
    with named(KEY):
        path, revision = split_revision(settings[KEY])
        initial = load(path, revision=revision)
    state, lines = initial.decoder.state_dict(), []
    if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(f"init_from={settings[KEY]} has NaN or infinite values in {bad[0]}: choose another checkpoint")
    if settings["init_vocab"] == "match":
        rows = matching_rows(initial.tokenizer, tokenizer, decoder.config.vocab_size)
        for name in {EMBEDDING, HEAD} & state.keys():
            state[name] = with_rows(state[name], rows)
        lines.append(
            f"vocabulary   {(rows >= 0).sum():,} of {len(rows):,} rows are the checkpoint's; the others are its mean"
        )
    decoder.load_state_dict(state)
    return lines


def matching_rows(old: Tokenizer, new: Tokenizer, num_rows: int) -> Tensor:
    """Return for each of `num_rows` ids of `new` the id of the same token in `old`, or -1; (num_rows,), int64."""
    rows = torch.full((num_rows,), -1)
    for token, token_id in new.vocabulary.items():
        rows[token_id] = old.vocabulary.get(token, -1)
    rows[new.separator_id], rows[new.eos_id] = old.separator_id, old.eos_id
    return rows


def with_rows(weight_VD: Tensor, rows: Tensor) -> Tensor:
    """Return the `rows` of an embedding or a head, with the mean of all its rows where the row is -1.

    With the mean, the predictions for other tokens change least (Hewitt 2021, "Initializing new word embeddings for
    pretrained language models").
    """
    return torch.where((rows >= 0)[:, None], weight_VD[rows.clamp(min=0)], weight_VD.mean(0))


def _stored_settings(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return config.yaml of the run directory, if its run started from `init_from` and can go on without it."""
    folder = RunDirectory(settings["output_dir"])
    stored = folder.settings() if resumable_checkpoints(folder.checkpoints) else None
    if stored is None or stored.get(KEY) != settings[KEY] or KEY not in folder.corpus():
        return None
    has_tokenizer = Path(tokenizer_source(stored | {"cache_dir": settings["cache_dir"]}).get("path", "")).exists()
    return stored if has_tokenizer else None


def _with_changes(shape: ModelConfig, settings: Mapping[str, Any], overrides: Sequence[str]) -> ModelConfig:
    """Return the shape with the changes of `CHANGEABLE`. Raises `ValueError` for a field that was chosen and differs.

    A field was chosen if the command line sets it, or if it has neither its default nor the checkpoint's value.
    """
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    groups = (default_choice("train", "model"), settings["model"])
    default, chosen, actual = (config.to_dict() for config in (*map(model_config, groups), shape))
    for key, name in (("width", "hidden_size"), ("depth", "num_layers")):
        if settings.get(key) is not None:
            chosen[name], keys = settings[key], keys | {f"model.{name}"}
    changes = {}
    for name in sorted(actual, key=lambda name: name == "vocab_size"):  # last, because its advice is another
        is_chosen = not keys.isdisjoint((f"model.{name}", "model", "family")) or chosen[name] != default[name]
        if not is_chosen or chosen[name] == actual[name] or name == "init_std":
            continue
        if name not in CHANGEABLE or shape.position == "learned":
            advice = "leave out the keys of the shape (model, family, width, depth), which the checkpoint gives"
            if name == "vocab_size":
                advice = "leave it out, or set init_vocab=match to give the model other rows"
            raise ValueError(
                f"model.{name}={as_typed(chosen[name])} contradicts init_from={settings[KEY]}, where it is "
                f"{as_typed(actual[name])}: {advice}"
            )
        changes[name] = chosen[name]
    return replace(shape, **changes)


def _check_tokenizer(config: Mapping[str, Any], own: Tokenizer, given: str) -> None:
    """Raise `ValueError` if the tokenizer that was chosen is not the checkpoint's `own`."""
    name = f"tokenizer={config['kind']}"
    if config["kind"] == "bpe":
        problem = f"{name} would train a tokenizer"
    else:
        chosen = plan_tokenizer(config).make(lambda: iter(()))
        if chosen.fingerprint == own.fingerprint:
            return
        problem = f"{name} has {chosen.vocab_size:,} ids and is another one"
    raise ValueError(
        f"{problem}, but the weights of init_from={given} belong to a tokenizer of {own.vocab_size:,} ids: leave "
        "tokenizer out to use that one, or set init_vocab=match to keep the rows of tokens that both have"
    )


def _copied_to_cache(tokenizer: Tokenizer, provenance: Provenance, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the checkpoint's tokenizer to the cache, and return the config group `tokenizer` that names it."""
    # A run's tokenizer is loaded from its folder `model`, after which it is called; the result has its real name.
    name = (provenance.result.get("tokenizer") or {}).get("name") or tokenizer.name
    # Base models and their chat models may differ in the end token and the chat template alone.
    identity = digest([tokenizer.fingerprint, tokenizer.special_tokens, tokenizer.chat_template])
    config = {"kind": "checkpoint", "name": Path(name).name, "fingerprint": identity}
    folder = Path(tokenizer_source({**settings, "tokenizer": config})["path"])
    if not (folder / CONFIGS[0]).exists():  # which is written last
        tokenizer.save(folder)
    return config


def _family(provenance: Provenance) -> str:
    """Return the family of the run that trained the checkpoint, or the name of a release."""
    if provenance.run is not None:
        config = yaml.safe_load((provenance.run / "config.yaml").read_text(encoding="utf-8"))
        if family := config["model"].get("family"):
            return str(family)
    return Path(split_revision(provenance.checkpoint)[0]).name


def _tokens_before(provenance: Provenance) -> int | None:
    """Return the tokens on which the weights were trained, also before their own run started; None if not known."""
    if provenance.run is None:
        return None
    before = (provenance.result.get(KEY) or {"tokens_before": 0})["tokens_before"]
    tokens = provenance.result.get("train_tokens")
    if provenance.folder.name == "checkpoints":  # of an unfinished run, whose result is older than its checkpoint
        newest = newest_intact(provenance.folder)
        config = yaml.safe_load((provenance.run / "config.yaml").read_text(encoding="utf-8"))
        tokens = None if newest is None else checkpoint_step(newest) * int(config["train"]["batch_tokens"])
    return None if before is None or tokens is None else before + tokens
