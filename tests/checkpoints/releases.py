"""Tiny random releases on disk, in the formats of the hub, and what transformers computes with them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, logging

from slm.checkpoints import check, load
from slm.data.vocabulary import byte_tokenizer
from tests.seeds import seeded

SHAPE = {"vocab_size": 260, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64}
SHAPE |= {"rms_norm_eps": 1e-5, "initializer_range": 0.12}
LLAMA = SHAPE | {"tie_word_embeddings": True, "eos_token_id": 256, "bos_token_id": 256}
IDS = torch.randint(0, 257, (2, 33), generator=torch.Generator().manual_seed(seeded(1)))


def llama(**changes) -> LlamaForCausalLM:
    """Random, float32; biases and norm gains too, which transformers starts at 0 and 1."""
    torch.manual_seed(seeded())
    model = LlamaForCausalLM(LlamaConfig(**LLAMA | changes)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data = 1 + 0.3 * torch.randn_like(parameter)
    return model


def save(model: LlamaForCausalLM, folder: Path, **options) -> Path:
    """As transformers saves a release."""
    logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
    byte_tokenizer().save(folder)
    return folder


def change_config(folder: Path, *gone: str, **changes) -> None:
    file = folder / "config.json"
    values = {key: value for key, value in json.loads(file.read_text()).items() if key not in gone}
    file.write_text(json.dumps(values | changes))


def mobilellm(
    folder: Path, model: LlamaForCausalLM, *, tied: bool = True, head: Tensor | None = None, sharing: bool = False
) -> Path:
    """As facebook/MobileLLM-* is on the hub: its config keys, float16 pytorch_model.bin, nothing else of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = SHAPE | {"model_type": "mobilellm", "architectures": ["MobileLLMForCausalLM"], "use_cache": False}
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_mobilellm.MobileLLMForCausalLM"}}
    config |= {"_name_or_path": "MobileLLM", "torch_dtype": "float16", "transformers_version": "4.41.2"}
    config |= {"attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "head_dim": 8}
    config |= {"hidden_act": "silu", "pretraining_tp": 1, "bos_token_id": 1, "eos_token_id": 2}
    config |= {"rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False}
    config |= {"layer_sharing": sharing, "share_embedding": tied}
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    if head is not None:
        state["lm_head.weight"] = head.half()
    torch.save(state, folder / "pytorch_model.bin")
    byte_tokenizer().save(folder)
    return folder


def store_as_head(folder: Path) -> None:
    """Store the table as the conversions of MobileLLM do: in safetensors, and as lm_head.weight alone."""
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["lm_head.weight"] = state.pop("model.embed_tokens.weight")
    save_file(state, folder / "model.safetensors")


def halved(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """With weights that float16 holds exactly, so that what is stored is what the reference computes with."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model


@torch.no_grad()
def difference(ours: torch.nn.Module, theirs: LlamaForCausalLM) -> float:
    """Largest absolute difference of logits."""
    return (ours(IDS) - theirs(IDS).logits).abs().max().item()


def refusal(place: object, **options: object) -> str:
    """The sentence of `check`, which must be that of `load`."""
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - callers compare the sentence
        check(place, **options)
    with pytest.raises(ValueError) as again:  # noqa: PT011
        load(place, **options)
    assert str(again.value) == str(refused.value)
    assert "\n" not in str(refused.value)
    return str(refused.value)
