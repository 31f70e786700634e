import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slm.checkpoints import export_model, hf_config
from slm.data.vocabulary import plan_tokenizer
from slm.model import Decoder, ModelConfig

SHAPE = {
    "vocab_size": 260,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 64,
    "init_std": 0.2,
    "rope_theta": 12345.0,
}


def exported(folder: Path, **changes) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(ModelConfig(**SHAPE | changes))
    tokenizer = plan_tokenizer({"kind": "bytes"}).make(lambda: iter([]))
    export_model(folder, decoder.config, decoder.state_dict(), tokenizer)
    return decoder


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"attention_bias": True, "mlp_bias": True}])
def test_an_exported_model_gives_the_same_logits_in_transformers(changes: dict, tmp_path: Path) -> None:
    decoder = exported(tmp_path / "model", **changes)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = torch.tensor([tokenizer.encode("A text, with 漢字.")])
    assert tokenizer.decode(ids[0]) == "A text, with 漢字."
    with torch.no_grad():
        assert (decoder(ids) - theirs(ids).logits).abs().max() < 1e-4
    assert theirs.config.eos_token_id == tokenizer.eos_token_id == 256


@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({"layer_sharing": "immediate", "num_repeats": 2}, "mobilellm"),
        ({"layer_sharing": "reverse", "num_repeats": 2}, "slm"),
        ({"qk_norm": "learned"}, "slm"),
        ({"rope_style": "interleaved"}, "slm"),
    ],
)
def test_what_is_no_llama_does_not_say_it_is(changes: dict, model_type: str) -> None:
    config = ModelConfig(**SHAPE | changes)
    written = hf_config(config, bos_id=None, eos_id=256)
    assert written["model_type"] == model_type
    assert ModelConfig.from_dict(written["slm"]) == config
    if model_type == "mobilellm":
        assert written["layer_sharing"] is True
        assert written["share_embedding"] is True


def test_an_export_replaces_the_one_before_it_and_leaves_nothing_else(tmp_path: Path) -> None:
    exported(tmp_path / "model")
    exported(tmp_path / "model", num_layers=1)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["num_hidden_layers"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
