"""Exports for other engines: GGUF against transformers' own reader and llama.cpp, `.pte` in ExecuTorch's runtime."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slm.checkpoints import export_model, load
from slm.checkpoints.engine import EngineModel
from slm.checkpoints.engine_export import export_for_engine
from slm.checkpoints.engine_folder import check_engine, load_engine
from slm.checkpoints.gguf import NEAREST_NOTE, convert_tokenizer
from slm.data.tokenizer import Tokenizer
from slm.data.vocabulary import byte_tokenizer, plan_tokenizer
from slm.evaluation.run import evaluate
from slm.model import Decoder, ModelConfig, generate
from tests.evaluation.asked import small
from tests.seeds import seeded

SHAPE = {"vocab_size": 420, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "init_std": 0.2}
SHAPE |= {"intermediate_size": 96, "max_position_embeddings": 64}
SHARED = {"layer_sharing": "immediate", "num_repeats": 2, "tie_embeddings": False, "rope_style": "interleaved"}
TEXTS = ["It's 12345 'string' of the mat, isn't it?\n\n  def f(x):\n\treturn x  # 漢字 é\r\n", "", " ", "<|endoftext|>"]


def bpe(split: str) -> Tokenizer:
    lines = ["the cat sat on the mat 1234 and don't 'string' it's fine, isn't it?\n  def f(x): return x\n"] * 40
    config = {"kind": "bpe", "vocab_size": 400, "train_bytes": None, "split": split}
    return plan_tokenizer(config).make(lambda: iter([lines]))


def checkpoint(folder: Path, tokenizer: Tokenizer | None = None, **changes: Any) -> Decoder:
    torch.manual_seed(seeded())
    decoder = Decoder(ModelConfig(**SHAPE | changes)).eval().requires_grad_(False)
    export_model(folder, decoder.config, decoder.state_dict(), tokenizer or bpe("llama3"))
    return decoder


def random_tokens(length: int) -> Tensor:
    return torch.randint(380, (1, length), generator=torch.Generator().manual_seed(seeded(5)))


@pytest.mark.parametrize(("changes", "dtype", "error"), [(SHARED, "float32", 1e-5), ({}, "float16", 0.01)])
def test_transformers_reads_a_gguf_as_the_same_model(changes: dict, dtype: str, error: float, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs slm[gguf]")
    from transformers import AutoModelForCausalLM

    decoder = checkpoint(tmp_path / "model", **changes)
    folder = export_for_engine(tmp_path / "model", tmp_path / "out", engine="gguf", dtype=dtype)
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
    with torch.no_grad():
        ours, read = decoder(random_tokens(50)), theirs(random_tokens(50)).logits
    assert (ours - read).abs().max() < error * ours.abs().max()


def test_llama_cpp_gives_the_same_ids_logits_and_continuation(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs slm[gguf]")
    pytest.importorskip("llama_cpp", reason="needs slm[gguf], whose llama-cpp-python is compiled")
    decoder = checkpoint(tmp_path / "model", **SHARED)
    folder = export_for_engine(tmp_path / "model", tmp_path / "out", engine="gguf", dtype="float32")
    model, tokenizer, provenance = load_engine(str(folder / "model.gguf"))
    for text in TEXTS:
        assert model.encode(text) == tokenizer.encode(text)
    assert_computes_the_same(model, decoder, error=1e-4)
    assert NEAREST_NOTE not in provenance.notes


def test_a_gguf_has_the_chat_template_and_the_token_that_ends_a_turn(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs slm[gguf]")
    pytest.importorskip("llama_cpp", reason="needs slm[gguf], whose llama-cpp-python is compiled")
    tokenizer = bpe("llama3")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    checkpoint(tmp_path / "model", tokenizer)
    folder = export_for_engine(tmp_path / "model", tmp_path / "out", engine="gguf", dtype="float32")
    fields = gguf.GGUFReader(folder / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.eot_token_id"].contents() == tokenizer.eos_id


def assert_computes_the_same(model: EngineModel, decoder: Decoder, error: float) -> None:
    tokens_1T = random_tokens(50)
    expected = decoder(tokens_1T)
    cache = model.make_cache(1, 64)
    parts = [model.hidden(part, cache) for part in tokens_1T.split([20, 1, 29], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=error)
    other = model.make_cache(1, 64)
    model.hidden(tokens_1T[:, 10:20], other)  # the engine's memory now holds another text
    cache.select(other, torch.tensor([0]))
    model.hidden(tokens_1T, model.make_cache(1, 64))
    after = model.hidden(tokens_1T[:, 20:30], cache)
    torch.testing.assert_close(after, decoder(tokens_1T[:, 10:30])[:, 10:], rtol=0, atol=error)
    prompt, options = tokens_1T[0, :8].tolist(), {"max_new_tokens": 12, "temperature": 0}
    assert list(generate(model, prompt, **options)) == list(generate(decoder, prompt, **options))


@pytest.mark.parametrize("quantize", ["int8_dynamic", "int4_dynamic"])
def test_a_quantised_program_computes_what_the_quantised_checkpoint_does(quantize: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="needs slm[device]")
    pytest.importorskip("torchao", reason="needs slm[device]")
    tied = quantize == "int4_dynamic"
    decoder = checkpoint(tmp_path / "model", num_layers=1, tie_embeddings=tied)
    folder = export_for_engine(tmp_path / "model", tmp_path / "out", engine="executorch", quantize=quantize)
    model, _, provenance = load_engine(str(folder / "model.pte"))
    assert provenance.stored_dtype == quantize
    rounded = load(tmp_path / "model", quantize=quantize).decoder
    tokens_BT = random_tokens(60).view(12, 5)
    expected = rounded(tokens_BT)
    # A difference in the last bit may round an input of a text to the next number, which later tokens notice.
    errors_B = (model.hidden(tokens_BT) - expected).abs().amax((1, 2))
    assert errors_B.median() < 1e-4 < 1e-2 < (decoder(tokens_BT) - expected).abs().amax((1, 2)).min()
    assert errors_B.max() < 0.3 * expected.abs().max()
    head_bytes = tied * SHAPE["vocab_size"] * SHAPE["hidden_size"]
    assert (folder / "model.pte").stat().st_size < rounded.counts().model_bytes + head_bytes + 60_000


def test_a_program_computes_the_same_and_is_measured_beside_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="needs slm[device]")
    decoder = checkpoint(tmp_path / "model", num_layers=1, mixer_pattern="F", layer_sharing="immediate", num_repeats=2)
    text, file = tmp_path / "text.txt", tmp_path / "program" / "model.pte"
    text.write_text("the cat sat on the mat. " * 20)
    ask = [f"checkpoint={tmp_path / 'model'}", f"export={file.parent}", "format=executorch"]
    assert evaluate(small(tmp_path, text, *ask)) == 0
    assert_computes_the_same(load_engine(str(file))[0], decoder, error=1e-4)
    assert evaluate(small(tmp_path, text, f"checkpoints=[{tmp_path / 'model'},{file}]")) == 0
    ours, program = json.loads((tmp_path / "out" / "results.json").read_text())
    scores = [entry["perplexity_results"][0]["loss"] for entry in (ours, program)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged or from another export"):
        check_engine(str(file))


@pytest.mark.parametrize(
    ("tokenizer", "rule"), [(bpe("llama3"), "smaug-bpe"), (bpe("slm"), "smaug-bpe"), (byte_tokenizer(), "gpt-2")]
)
def test_a_tokenizer_becomes_a_vocabulary_with_a_rule_that_llama_cpp_knows(tokenizer: Tokenizer, rule: str) -> None:
    vocabulary = convert_tokenizer(tokenizer, 420)
    assert vocabulary.rule == rule
    assert [vocabulary.tokens.index(f"[PAD{i}]") for i in range(tokenizer.vocab_size, 420)] == [
        *range(tokenizer.vocab_size, 420)
    ]
    has_own_rule = '"(?:' not in tokenizer.content and tokenizer.vocab_size > 257
    assert vocabulary.notes == ((NEAREST_NOTE,) if has_own_rule else ())


@pytest.mark.parametrize(
    ("engine", "changes", "options", "message"),
    [
        ("gguf", {"mixer_pattern": "G"}, {}, "format=gguf writes a plain Llama, which has no model.mixer_pattern=G"),
        ("gguf", {"qk_norm": "learned"}, {}, "which has no model.qk_norm=learned"),
        ("executorch", {}, {"max_length": 65}, "export_context=65 is longer than the 64 positions of the checkpoint"),
    ],
)
def test_what_an_engine_cannot_have_is_refused_before_weights_are_read(
    engine: str, changes: dict, options: dict, message: str, tmp_path: Path
) -> None:
    checkpoint(tmp_path / "model", byte_tokenizer(), **changes)
    with pytest.raises(ValueError, match=message):
        export_for_engine(tmp_path / "model", tmp_path / "out", engine=engine, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("engine", "module", "extra"), [("gguf", "gguf", "gguf"), ("executorch", "executorch.exir", "device")]
)
def test_a_missing_extra_is_named(
    engine: str,
    module: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint(tmp_path / "model", byte_tokenizer())
    monkeypatch.setitem(sys.modules, module, None)
    capsys.readouterr()
    with pytest.raises(ValueError, match=rf"needs the package {engine}: pip install 'slm\[{extra}\]'"):
        export_for_engine(tmp_path / "model", tmp_path / "out", engine=engine)
    assert capsys.readouterr().out == ""  # not that it compiles


def test_a_file_without_its_folder_or_of_another_version_is_refused(tmp_path: Path) -> None:
    from slm.checkpoints.executorch import check_program

    file = tmp_path / "model.pte"
    file.write_bytes(b"\x00\x00\x00\x00ET11" + b"\x00" * 60)
    with pytest.raises(ValueError, match=r"needs the config\.json and the tokenizer of its export beside it"):
        check_engine(str(file))
    with pytest.raises(ValueError, match="has format 'ET11', and this ExecuTorch reads 'ET12'"):
        check_program(file)
    file.write_bytes(b"text")
    with pytest.raises(ValueError, match="is not an ExecuTorch program"):
        check_program(file)
