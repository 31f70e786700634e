import errno
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slm.checkpoints import check, export, export_model, hf_config, load
from slm.checkpoints.export import non_llama_fields
from slm.data.vocabulary import byte_tokenizer
from slm.model import Decoder, ModelConfig
from tests.checkpoints.releases import change_config, halved, llama, mobilellm, save
from tests.seeds import seeded

SHAPE = {"vocab_size": 260, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
SHAPE |= {"intermediate_size": 64, "init_std": 0.2, "rope_theta": 12345.0}
SHARINGS = [("none", 1), ("immediate", 2), ("immediate", 3), ("repeat_all_over", 2), ("reverse", 2), ("reverse", 3)]
TEXT = torch.randint(0, 257, (2, 40), generator=torch.Generator().manual_seed(seeded(3)))
LACKED = {"mixer_pattern": "S", "sliding_window": [64, 128], "mlp": "geglu", "norm": "layernorm", "position": "none"}
LACKED |= {"parallel_block": True, "residual_multiplier": 0.5, "attention_multiplier": 0.1}


def exported(folder: Path, **changes) -> Decoder:
    torch.manual_seed(seeded())
    decoder = Decoder(ModelConfig(**SHAPE | changes))
    export_model(folder, decoder.config, decoder.state_dict(), byte_tokenizer())
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
    "changes",
    [
        {"mixer_pattern": "SP", "position_pattern": "AR", "rope_style": "interleaved"},
        {"mixer_pattern": "LG", "norm": "layernorm", "norm_bias": True, "norm_position": "both"},
        {"mixer_pattern": "GF", "rope_style": "interleaved"},  # G has a convolution over its queries and keys, in order
        {"mixer_pattern": "SPL", "rope_style": "interleaved", "num_layers": 3},
        {"mlp": "gelu", "position": "learned", "parallel_block": True, "logits_multiplier": 0.5},
        {"qk_norm": "learned", "rope_style": "interleaved", "layer_sharing": "reverse", "num_repeats": 2},
        {"qk_norm": "weightless", "rope_style": "interleaved", "layer_sharing": "reverse", "num_repeats": 2},
    ],
)
def test_any_family_comes_back_from_an_export_as_it_was_and_is_not_a_llama(changes: dict, tmp_path: Path) -> None:
    decoder = exported(tmp_path / "model", **changes)
    again = export(tmp_path / "model", tmp_path / "again")
    with torch.no_grad():
        for folder in (tmp_path / "model", again):
            assert torch.equal(load(folder).decoder(TEXT), decoder(TEXT))
    assert "transformers has no such architecture" in (again / "README.md").read_text()
    with pytest.raises(ValueError, match=rf"plain Llama, which has no model\.{next(iter(changes))}=.*: export without"):
        export(tmp_path / "model", tmp_path / "llama", unroll_sharing=True)


@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({"layer_sharing": "immediate", "num_repeats": 2}, "mobilellm"),
        ({"layer_sharing": "reverse", "num_repeats": 2}, "slm"),
        ({"qk_norm": "learned"}, "slm"),
        ({"rope_style": "interleaved"}, "slm"),
        ({"mixer_pattern": "G"}, "slm"),
        ({"mlp": "gelu", "norm": "layernorm", "norm_bias": True, "position": "learned"}, "slm"),
        ({"layer_sharing": "immediate", "num_repeats": 2, "parallel_block": True}, "slm"),
        ({"residual_multiplier": 0.5}, "slm"),
        ({"attention_multiplier": 0.1}, "slm"),
    ],
)
def test_only_a_llama_is_exported_as_a_llama(changes: dict, model_type: str) -> None:
    config = ModelConfig(**SHAPE | changes)
    written = hf_config(config, bos_id=None, eos_id=256)
    assert written["model_type"] == model_type
    assert ModelConfig.from_dict(written["slm"]) == config
    if model_type == "mobilellm":
        assert written["layer_sharing"] is True
        assert written["share_embedding"] is True


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_decides_who_may_read_an_export(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        exported(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {0o666 & ~umask}


def test_an_export_replaces_the_one_before_it_and_leaves_nothing_else(tmp_path: Path) -> None:
    exported(tmp_path / "model")
    exported(tmp_path / "model", num_layers=1)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["num_hidden_layers"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_that_the_system_does_not_let_be_written_are_an_error_with_the_name_of_the_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # bytes: config.json fits, the weights do not
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            exported(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.errno == errno.EFBIG
    assert refused.value.filename.endswith("model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    exported(tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"export=.*file.inner: Not a directory; choose another directory"):
        export(tmp_path / "model", tmp_path / "file" / "inner")


@pytest.mark.parametrize(("sharing", "repeats"), SHARINGS)
@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_every_sharing_comes_back_from_its_export_and_unrolls_to_a_llama(sharing, repeats, style, tmp_path) -> None:
    changes = {"layer_sharing": sharing, "num_repeats": repeats, "rope_style": style, "tie_embeddings": repeats < 3}
    decoder = exported(tmp_path / "model", **changes | {"attention_bias": style == "interleaved", "init_std": 0.12})
    with torch.no_grad():
        logits = decoder(TEXT)
        assert torch.equal(load(tmp_path / "model").decoder(TEXT), logits)
        again = load(export(tmp_path / "model", tmp_path / "again"))
        assert again.decoder.config.layer_sharing == sharing
        assert (again.decoder(TEXT) - logits).abs().max() < 1e-5
        folder = export(tmp_path / "model", tmp_path / "unrolled", unroll_sharing=True)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert (theirs(TEXT).logits - logits).abs().max() < 1e-5
    assert theirs.config.model_type == "llama"
    assert theirs.config.num_hidden_layers == 2 * repeats
    assert (load(folder).decoder(TEXT) - logits).abs().max() < 1e-5


def test_interleaved_rotation_is_rewritten_exactly(tmp_path: Path) -> None:
    """In float64, where only the order of the sums over channels is left of the difference."""
    decoder = exported(tmp_path / "model", rope_style="interleaved", attention_bias=True)
    again = load(export(tmp_path / "model", tmp_path / "half"), dtype=torch.float64).decoder
    assert again.config.rope_style == "half"
    with torch.no_grad():
        assert (again(TEXT) - decoder.double()(TEXT)).abs().max() < 1e-12


def test_a_released_mobilellm_with_sharing_becomes_a_llama_in_its_own_precision(tmp_path: Path) -> None:
    source = mobilellm(tmp_path / "hub", halved(llama()), sharing=True)
    folder = export(source, tmp_path / "llama", unroll_sharing=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.dtype == torch.float16
    decoder = load(source).decoder
    assert (theirs.float()(TEXT).logits - decoder(TEXT)).abs().max() < 1e-5
    kept = json.loads((export(source, tmp_path / "kept") / "config.json").read_text())
    assert (kept["model_type"], kept["layer_sharing"], kept["share_embedding"]) == ("mobilellm", True, True)
    change_config(tmp_path / "kept", "slm")
    assert torch.equal(load(tmp_path / "kept").decoder(TEXT), decoder(TEXT))


def test_an_export_of_an_export_is_the_same_checkpoint(tmp_path: Path) -> None:
    exported(tmp_path / "model")
    folder = export(tmp_path / "model", tmp_path / "again")
    assert check(folder).fingerprint == check(tmp_path / "model").fingerprint
    assert not (folder / "training.yaml").exists()


def test_an_export_does_not_replace_a_folder_that_is_not_an_export(tmp_path: Path) -> None:
    source = save(llama(), tmp_path / "source")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "draft.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for target, sentence in [
        (tmp_path / "thesis", "holds draft.tex, not part of an export: choose another folder"),
        (tmp_path / "file", "is a file: choose a folder"),
        (source, "is the checkpoint itself"),
        (None, "which is not a run directory, needs a folder to write to"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            export(source, target)
    other = save(llama(num_hidden_layers=1), tmp_path / "other")
    for release in (other, export(other, tmp_path / "exported")):
        before = (release / "model.safetensors").read_bytes()
        with pytest.raises(ValueError, match=r"holds another model|holds generation_config\.json, not part"):
            export(source, release)
        assert (release / "model.safetensors").read_bytes() == before
    export(other, tmp_path / "exported")  # the same model again
    (tmp_path / "exported" / "model.pte").write_bytes(b"minutes of compilation")
    with pytest.raises(ValueError, match=r"holds model\.pte, an export in another format: choose another folder"):
        export(other, tmp_path / "exported")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "file", "other", "source", "thesis"]
    assert (tmp_path / "thesis" / "draft.tex").read_text() == "years of work"


@pytest.mark.parametrize("field", LACKED)
def test_every_field_that_llama_lacks_is_named(field: str) -> None:
    assert non_llama_fields(ModelConfig(**SHAPE)) == ()
    assert non_llama_fields(ModelConfig(**SHAPE, **{field: LACKED[field]})) == (field,)
