"""What `load` computes, against transformers' Llama in float32."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slm.checkpoints import check, load
from slm.model.counts import num_params
from tests.checkpoints.releases import IDS, change_config, difference, halved, llama, mobilellm, save, store_as_head

UNUSABLE = {
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "a pointer": lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    "of another model": lambda file: save_file({"model.norm.weight": torch.ones(3)}, file),
    "an index of nothing": lambda file: file.rename(file.with_name("model.safetensors.index.json")),
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 6, "head_dim": 12},
        {"rope_parameters": {"rope_theta": 12345.0, "rope_type": "default"}, "rms_norm_eps": 1e-2},
    ],
)
def test_a_llama_folder_gives_the_logits_of_transformers(changes: dict, tmp_path: Path) -> None:
    model = llama(**changes)
    checkpoint = load(save(model, tmp_path))
    assert difference(checkpoint.decoder, model) < 1e-5
    assert num_params(checkpoint.decoder.config) == sum(p.numel() for p in model.parameters())
    assert not checkpoint.decoder.training
    assert (checkpoint.provenance.kind, checkpoint.provenance.stored_dtype) == ("hf", "float32")
    assert checkpoint.provenance.notes == ()


@pytest.mark.parametrize("key", ["rope_theta", "rope_parameters", "both"])
def test_the_base_of_the_rotation_is_read_from_where_old_and_new_transformers_write_it(key: str, tmp_path) -> None:
    model = llama(rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
    save(model, tmp_path)
    if key == "rope_theta":
        change_config(tmp_path, "rope_parameters", rope_theta=500.0, rope_scaling=None)
    if key == "both":
        change_config(tmp_path, rope_theta=777.0)
    assert difference(load(tmp_path).decoder, model) < 1e-5


def test_what_a_config_leaves_out_is_what_transformers_takes_it_to_be(tmp_path: Path) -> None:
    model = llama(rms_norm_eps=1e-6, num_key_value_heads=6)
    save(model, tmp_path)
    change_config(tmp_path, "rms_norm_eps", "num_key_value_heads", "head_dim", "rope_parameters", "attention_bias")
    assert difference(load(tmp_path).decoder, model) < 1e-5


@pytest.mark.parametrize("sharing", [False, True])
def test_a_tied_mobilellm_gives_the_logits_of_llama_with_its_blocks_unrolled(sharing: bool, tmp_path: Path) -> None:
    model = halved(llama())
    checkpoint = load(mobilellm(tmp_path, model, sharing=sharing))
    if sharing:
        model = unrolled_by_hand(model)
        assert checkpoint.decoder.config.num_layers == 2
    assert difference(checkpoint.decoder, model) < 1e-5
    assert checkpoint.provenance.stored_dtype == "float16"
    assert checkpoint.decoder.head_weight.dtype == torch.float32
    assert checkpoint.provenance.notes == ()


def unrolled_by_hand(model):
    """Blocks 0 0 1 1 as a Llama of four blocks."""
    longer, state = llama(num_hidden_layers=4), model.state_dict()
    for name in longer.state_dict():
        before, _, after = name.partition("layers.")
        number, _, rest = after.partition(".")
        longer.state_dict()[name].copy_(state[f"{before}layers.{int(number) // 2}.{rest}" if after else name])
    return longer


def test_a_stored_head_that_differs_from_the_embedding_is_used_and_noted(tmp_path: Path) -> None:
    model = halved(llama(tie_word_embeddings=False))
    checkpoint = load(mobilellm(tmp_path, model, head=model.lm_head.weight))
    assert difference(checkpoint.decoder, model) < 1e-5
    assert "differs from the embedding" in checkpoint.provenance.notes[0]
    assert num_params(checkpoint.decoder.config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("tied", "note"), [(True, "the embedding: the head is tied"), (False, "total counts both")])
def test_a_stored_head_equal_to_the_embedding_is_tied_as_configured(tied: bool, note: str, tmp_path: Path) -> None:
    model = halved(llama())
    head = model.model.embed_tokens.weight.detach().clone()
    checkpoint = load(mobilellm(tmp_path, model, tied=tied, head=head))
    assert difference(checkpoint.decoder, model) < 1e-5
    assert checkpoint.decoder.config.tie_embeddings == tied
    assert note in checkpoint.provenance.notes[0]


def test_an_untied_config_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = mobilellm(tmp_path, llama(), tied=False)
    with pytest.raises(ValueError, match=r"head is not tied .*share_embedding.* no lm_head\.weight"):
        check(folder)


@pytest.mark.parametrize("tied_by", ["share_embedding", "tie_word_embeddings"])
def test_a_tied_table_may_be_stored_under_the_heads_name(tied_by: str, tmp_path: Path) -> None:
    model = halved(llama())
    folder = mobilellm(tmp_path, model, tied=False)
    store_as_head(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors: .* 1 missing \(embed_tokens\.weight\)$"):
        check(folder)
    change_config(folder, **{tied_by: True})
    checkpoint = load(folder)
    assert difference(checkpoint.decoder, model) < 1e-5
    assert num_params(checkpoint.decoder.config) == sum(p.numel() for p in model.parameters())
    assert checkpoint.provenance.notes == ()


@pytest.mark.parametrize("how", UNUSABLE)
def test_where_one_format_is_unusable_the_other_is_read_and_a_note_says_so(how: str, tmp_path: Path) -> None:
    model = llama()
    save(model, tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    UNUSABLE[how](tmp_path / "model.safetensors")
    checkpoint = load(tmp_path)
    assert difference(checkpoint.decoder, model) < 1e-5
    (note,) = checkpoint.provenance.notes
    assert re.match(r"pytorch_model.bin was read because a preferred file cannot be used: .*model.safetensors", note)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.safetensors.*; and .*pytorch_model\.bin is empty: download it"):
        check(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_load_as_the_whole_does(suffix: str, tmp_path: Path) -> None:
    model = llama()
    folder = save(model, tmp_path, max_shard_size="60KB")
    if suffix == "bin":
        as_pickles(folder)
    assert len(list(folder.glob(f"*.{suffix}"))) > 2
    assert not (folder / "model.safetensors").exists()
    assert difference(load(folder).decoder, model) < 1e-5


def as_pickles(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for shard in list(folder.glob("*.safetensors")):
        torch.save(load_file(shard), shard.with_suffix(".bin"))
        shard.unlink()
    index["weight_map"] = {name: file.replace(".safetensors", ".bin") for name, file in index["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors.index.json").unlink()


def test_safetensors_are_preferred_to_a_pickle_beside_them(tmp_path: Path) -> None:
    model = llama()
    save(model, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert difference(load(tmp_path).decoder, model) < 1e-5


def test_a_pickle_of_torch_before_1_6_and_a_table_of_frequencies_in_it_are_read(tmp_path: Path) -> None:
    model = halved(llama())
    mobilellm(tmp_path, model)
    state = torch.load(tmp_path / "pytorch_model.bin")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert difference(load(tmp_path).decoder, model) < 1e-5


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_tensors_are_converted_to_the_dtype_that_is_asked_for(stored, wanted, tmp_path: Path) -> None:
    model = llama()
    save(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor.to(stored) for name, tensor in state.items()}, tmp_path / "model.safetensors")
    decoder, _, provenance = load(tmp_path, dtype=wanted)
    assert provenance.stored_dtype == str(stored).removeprefix("torch.")
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, state[f"model.{name}"].to(stored).to(wanted))


def test_values_that_are_not_finite_and_mixed_precisions_are_noted(tmp_path: Path) -> None:
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 2] = torch.inf
    save(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.norm.weight"] = state["model.norm.weight"].half()
    save_file(state, tmp_path / "model.safetensors")
    notes = load(tmp_path).provenance.notes
    assert any("different precisions: float16, float32" in note for note in notes)
    assert any("layers.1.mlp.up_proj.weight hold NaN or infinite values" in note for note in notes)


def test_an_embedding_of_which_much_is_unused_is_noted(tmp_path: Path) -> None:
    assert "uses 257 of the embedding's 300 rows" in check(save(llama(vocab_size=300), tmp_path)).notes[0]


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    save(llama(), tmp_path)
    before = torch.get_rng_state()
    load(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_the_fingerprint_is_of_the_content_and_not_of_names_times_or_shards(tmp_path: Path) -> None:
    first = check(save(llama(), tmp_path / "a")).fingerprint
    assert check(save(llama(), tmp_path / "b")).fingerprint == first == load(tmp_path / "b").provenance.fingerprint
    changed = llama()
    changed.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    assert check(save(changed, tmp_path / "c")).fingerprint != first
    change_config(tmp_path / "b", rms_norm_eps=1e-4)
    assert check(tmp_path / "b").fingerprint != first


def test_logits_do_not_depend_on_a_file_that_changes_later(tmp_path: Path) -> None:
    model = llama()
    decoder = load(save(model, tmp_path)).decoder
    before = decoder(IDS)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert torch.equal(decoder(IDS), before)


def test_an_export_whose_two_descriptions_disagree_is_refused(tmp_path: Path) -> None:
    save(llama(), tmp_path)
    own = load(tmp_path).decoder.config.to_dict()
    change_config(tmp_path, slm=own)
    assert check(tmp_path).kind == "export"
    change_config(tmp_path, slm=own | {"rope_theta": 3.0})
    with pytest.raises(ValueError, match=r"slm\.rope_theta=3\.0 contradicts the Llama keys, which say 10000\.0"):
        check(tmp_path)


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path: Path) -> None:
    save(llama(vocab_size=250), tmp_path)
    with pytest.raises(ValueError, match="the tokenizer has 257 ids and the embedding 250 rows"):
        check(tmp_path)
