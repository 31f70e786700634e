"""Models that our decoder cannot hold, against transformers: logits, losses, decoding, counts; and what is refused."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, logging

from slm.checkpoints import check, check_any, export, load, load_any
from slm.checkpoints.load import check_quantize
from slm.data.chat_template import PLAIN_TEMPLATE
from slm.data.conversations import SCORED, conversation, encode_conversation
from slm.data.questions import make_request
from slm.data.vocabulary import byte_tokenizer
from slm.evaluation.chat import talk
from slm.evaluation.encode import encode
from slm.evaluation.measure import load_checked
from slm.evaluation.perplexity import Protocol, perplexity
from slm.evaluation.run import SKIPPED_TASKS, evaluate
from slm.evaluation.tasks.scoring import Scorer
from slm.evaluation.texts import Text
from slm.model import generate
from tests.checkpoints.releases import change_config, llama, save
from tests.evaluation.asked import small
from tests.evaluation.toys import random_stream
from tests.running import ROOT
from tests.seeds import seeded

VOCAB, WEIGHTS = 260, "model.safetensors"
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "max_position_embeddings": 48}
GEMMA = SHAPE | {"head_dim": 8, "sliding_window": 5}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# MobileLLM-R1: blocks of Llama 4 without experts, rotations in all of them (which no_rope_layers writes as 1).
R1 = {"head_dim": 8, "num_local_experts": 0, "interleave_moe_layer_step": 0, "moe_layers": [], "no_rope_layers": [1, 1]}
R1 |= {"intermediate_size_mlp": 40, "use_qk_norm": True, "attn_scale": 0.1, "attention_chunk_size": 32}
TYPES: dict[str, dict[str, Any]] = {
    "gpt_neox": SHAPE | {"tie_word_embeddings": False},
    "opt": {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"max_position_embeddings": 48, "word_embed_proj_dim": 16, "pad_token_id": 0, "do_layer_norm_before": False},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 5, "max_position_embeddings": 48}
    | {"attention_types": [[["global", "local"], 1]]},
    "qwen2": SHAPE | {"tie_word_embeddings": True},
    "qwen3": SHAPE | {"head_dim": 8},
    "olmo2": SHAPE,
    "gemma": SHAPE | {"head_dim": 8},
    "gemma2": GEMMA | {"final_logit_softcapping": 3.0},
    "gemma3_text": GEMMA,
    "llama": SHAPE | {"rope_parameters": LLAMA3 | {"rope_theta": 1e4, "original_max_position_embeddings": 16}},
    "llama4_text": SHAPE | R1,
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
# Bytes of keys and values of a token and of a full context, and of states, by hand: 2 x layers x heads x 8 x 4 bytes.
BYTES = {
    "gpt_neox": (512, 512 * 48, 0),
    "bloom": (512, 512 * 2048, 0),
    "qwen2": (256, 256 * 48, 0),
    "gemma2": (256, 128 * 48 + 128 * 5, 0),  # of every two layers, the first has a window of 5
    "mamba": (0, 0, 2 * 64 * (4 + 4) * 4),  # twice the width, times 4 of the convolution and 4 of the state
}


def foreign(kind: str, folder: Path, **options: Any) -> Any:
    """Save a random model of a type as transformers does, and return it. Its weights are large, so that all matters."""
    logging.disable_progress_bar()
    torch.manual_seed(seeded())
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=VOCAB, **TYPES[kind])).eval()
    for parameter in model.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    model.to(options.pop("dtype", torch.float32)).save_pretrained(folder, **options)
    byte_tokenizer().save(folder)
    return model


@pytest.fixture(scope="module", params=TYPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    folder = tmp_path_factory.mktemp("foreign") / request.param
    theirs = foreign(request.param, folder)
    return request.param, load_any(folder).decoder, theirs


@torch.inference_mode()
def test_logits_and_losses_are_those_of_transformers(pair: tuple[str, Any, Any]) -> None:
    _, ours, theirs = pair
    tokens = torch.randint(0, 257, (3, 40), generator=torch.Generator().manual_seed(seeded(1)))
    expected = theirs(tokens).logits
    hidden = ours.hidden(tokens)
    torch.testing.assert_close(ours.head(hidden), expected, rtol=0, atol=1e-5)
    targets = tokens.roll(-1, 1)
    losses = torch.nn.functional.cross_entropy(expected.double().flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(ours.losses(hidden.flatten(0, 1), targets.flatten()).double(), losses, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_perplexity_is_that_of_the_loop_in_the_documentation_of_transformers(pair: tuple[str, Any, Any]) -> None:
    _, ours, theirs = pair
    stream = random_stream(90, vocab_size=257)
    tokens = torch.from_numpy(stream.tokens)[None]
    for name, length, stride in (("sliding", 24, 12), ("non_overlapping", 24, 24)):
        nats, last = 0.0, 1
        windows = range(0, 90 - 1, 24) if name == "non_overlapping" else range(0, 90 - 12, 12)
        for begin in windows:
            end = min(begin + length + (name == "non_overlapping"), 90)
            inputs, num_scored = tokens[:, begin:end], end - last
            targets = inputs.clone()
            targets[:, :-num_scored] = -100
            nats += theirs(inputs, labels=targets).loss.item() * num_scored
            last = end
        result = perplexity(ours, stream, Protocol(name=name, max_length=length, stride=stride), batch_tokens=100)
        assert result["loss"] == pytest.approx(nats / 89, abs=1e-5)
        assert result["perplexity"] == pytest.approx(math.exp(nats / 89), rel=1e-5)


def test_a_baseline_keeps_its_results_if_a_later_measurement_is_impossible(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, baseline = save(llama(), tmp_path / "ours"), tmp_path / "gpt2"
    foreign("gpt2", baseline)  # with a shorter context than ours
    text = tmp_path / "t.txt"
    text.write_text("One and one make two. " * 20)
    both = (f"checkpoint={ours}", f"+baselines.checkpoints=[{baseline}]", "speed.enabled=false")
    beyond = "perplexity.non_overlapping.max_length=60"
    assert evaluate(small(tmp_path, text, *both, beyond)) == SKIPPED_TASKS
    assert f"{baseline} is skipped: max_length=60" in capsys.readouterr().err
    file = tmp_path / "out" / "results.json"
    assert [entry["name"] for entry in json.loads(file.read_text())] == ["ours"]
    more = (*both, f"output_dir={tmp_path / 'more'}")
    assert evaluate(small(tmp_path, text, *more)) == 0
    file = tmp_path / "more" / "results.json"
    before = json.loads(file.read_text())
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"query": "a", "choices": ["b", "c"], "gold": 0}) + "\n")

    def fail(provenance: Any, precision: Any) -> Any:
        if provenance.kind == "transformers":
            raise ValueError("its weights are gone")
        return load_checked(provenance, precision)

    monkeypatch.setattr("slm.evaluation.run.load_checked", fail)
    assert evaluate(small(tmp_path, text, *more, f"task_files={{mine: {questions}}}")) == SKIPPED_TASKS
    ours_after, baseline_after = json.loads(file.read_text())
    assert baseline_after == before[1]
    assert ours_after["tasks"]["mine"]["n"] == 1


def test_conversations_are_scored_one_by_one_because_transformers_cannot_mask_them(tmp_path: Path) -> None:
    theirs = foreign("gpt_neox", tmp_path)
    checkpoint = load_any(tmp_path)
    talks = [[("user", f"{n}?"), ("assistant", "ya" * n)] for n in range(1, 6)]
    documents = [conversation({"messages": [{"role": r, "content": c} for r, c in t]}, "") for t in talks]
    text = Text(name="talks", documents=tuple(documents), separate=True, template=PLAIN_TEMPLATE)
    protocol = Protocol(name="non_overlapping", max_length=48, stride=48)
    found = perplexity(checkpoint.decoder, encode(text, checkpoint.tokenizer), protocol, batch_tokens=96)
    nats = []
    for document in documents:
        encoded = encode_conversation(document, checkpoint.tokenizer, PLAIN_TEMPLATE)
        ids = torch.tensor(encoded.ids)
        with torch.no_grad():
            losses = F.cross_entropy(theirs(ids[None, :-1]).logits[0], ids[1:], reduction="none")
        nats += losses[torch.from_numpy(encoded.marks)[1:] & SCORED > 0].tolist()
    assert found["tokens"] == len(nats)
    assert found["loss"] == pytest.approx(np.mean(nats), rel=1e-5)


def test_greedy_decoding_with_the_cache_is_transformers_generate(pair: tuple[str, Any, Any]) -> None:
    _, ours, theirs = pair
    prompt = [3, 141, 59, 26, 53, 58, 97]
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "bos_token_id": None}
    expected = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 7), **options)[0, 7:].tolist()
    assert list(generate(ours, prompt, max_new_tokens=20, temperature=0)) == expected
    assert len(expected) == 20


@torch.inference_mode()
def test_continuations_of_one_context_share_its_cache_and_score_as_alone(pair: tuple[str, Any, Any]) -> None:
    _, ours, theirs = pair
    context = [5, 8, 13, 21, 34, 55, 89, 144, 233, 121, 98, 76]
    continuations = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]
    others = [make_request([9, *context[:7]], [11, 12], 48)]
    scores = Scorer(ours, batch_tokens=64)([*(make_request(context, one, 48) for one in continuations), *others])
    for one, score in zip(continuations, scores, strict=False):
        logits = theirs(torch.tensor([context + one])).logits[0, len(context) - 1 : -1].double()
        expected = logits.log_softmax(-1).gather(1, torch.tensor(one)[:, None]).sum().item()
        assert score.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_parameters_count_once_and_bytes_are_those_of_the_shape(pair: tuple[str, Any, Any]) -> None:
    kind, ours, theirs = pair
    counts = ours.counts()
    assert counts.params_total == theirs.num_parameters()
    assert counts.model_bytes == 4 * counts.params_total
    positions = sum(p.numel() for name, p in theirs.named_parameters() if "wpe" in name or "embed_positions" in name)
    rows = VOCAB * theirs.get_input_embeddings().embedding_dim * (1 if theirs.config.tie_word_embeddings else 2)
    assert counts.params_non_embedding == counts.params_total - positions - rows
    if kind in BYTES:
        assert (counts.kv_bytes_per_token, counts.kv_cache_bytes, counts.state_bytes) == BYTES[kind]


def test_a_model_of_transformers_computes_with_rounded_linear_maps_except_its_head(tmp_path: Path) -> None:
    theirs = foreign("qwen2", tmp_path)
    rounded = load_any(tmp_path, quantize="int8")
    tokens = torch.randint(0, 257, (2, 20), generator=torch.Generator().manual_seed(seeded(1)))
    num_rounded = 0
    for path, module in theirs.named_modules():
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            steps = module.weight.data.abs().amax(1, keepdim=True) / 127.5
            module.weight.data = (module.weight.data * (1 / steps)).round().clamp(-128, 127) * steps
            num_rounded += module.weight.numel()
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(rounded.decoder.head(rounded.decoder.hidden(tokens)), expected, rtol=0, atol=1e-5)
    counts = rounded.decoder.counts()
    assert counts.params_total == theirs.num_parameters()
    rows = sum(m.out_features for path, m in theirs.named_modules() if isinstance(m, torch.nn.Linear)) - VOCAB
    assert counts.model_bytes == 4 * (counts.params_total - num_rounded) + num_rounded + 4 * rows
    check_quantize(check_any(tmp_path), "int8")
    foreign("gpt2", tmp_path / "gpt2")
    for refuse in (check_quantize, lambda _, kind: load_any(tmp_path / "gpt2", quantize=kind)):
        with pytest.raises(ValueError, match="quantize=int8 is for models with linear maps"):
            refuse(check_any(tmp_path / "gpt2"), "int8")


@pytest.mark.parametrize("stored", ["shards", "pickle"])
def test_sharded_bfloat16_loads_as_transformers_loads_it_in_any_precision(stored: str, tmp_path: Path) -> None:
    model = foreign("gpt_neox", tmp_path, dtype=torch.bfloat16, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    if stored == "pickle":  # with the masks that old releases store
        for file in tmp_path.glob("model*.safetensors*"):
            file.unlink()
        masks = {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool)}
        torch.save(model.state_dict() | masks, tmp_path / "pytorch_model.bin")
    tokens = torch.arange(30)[None]
    for dtype in (torch.float32, torch.bfloat16):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        checkpoint = load_any(tmp_path, dtype=dtype)
        ours = checkpoint.decoder
        assert (ours.dtype, checkpoint.provenance.stored_dtype) == (dtype, "bfloat16")
        assert checkpoint.provenance.kind == "transformers"
        with torch.inference_mode():
            assert torch.equal(ours.head(ours.hidden(tokens)), theirs(tokens).logits)


def with_old_tokenizer(folder: Path) -> None:
    """Replace tokenizer.json by a vocabulary with two merges, as GPT-2 and OPT have it."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"] | {"<|endoftext|>": 256}
    vocabulary |= {"th": 257, "the": 258}
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_tokenizer_of_vocabulary_and_merges_is_that_of_transformers(tmp_path: Path) -> None:
    foreign("gpt2", tmp_path)
    with_old_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = load_any(tmp_path).tokenizer
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tmp_path).chat_template
    text = "the theory, naïve: them\n"
    assert tokenizer.encode(text) == AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 258 in tokenizer.encode(text)
    assert (tokenizer.eos_id, tokenizer.adds_bos) == (256, False)


def test_a_special_token_without_a_row_is_no_fault_as_in_gemma_3(tmp_path: Path) -> None:
    foreign("gemma3_text", tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    end = content["added_tokens"][0]
    content["added_tokens"] += [end | {"id": number, "content": f"<{number}>"} for number in range(257, VOCAB + 1)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert check_any(tmp_path).config.vocab_size == VOCAB
    content["added_tokens"][-1]["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has 261 ids and the embedding 260 rows"):
        check_any(tmp_path)


def test_the_fingerprint_tells_configs_and_weights_apart(tmp_path: Path) -> None:
    foreign("llama", tmp_path)
    first = check_any(tmp_path)
    assert load_any(tmp_path).provenance == first
    change_config(tmp_path, rope_parameters=TYPES["llama"]["rope_parameters"] | {"factor": 4.0})
    assert check_any(tmp_path).fingerprint != first.fingerprint


REFUSED = {
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, r"the weights are quantised \(gptq\)"),
    "code": ({"auto_map": {"AutoModelForCausalLM": "modeling.X"}}, "auto_map says that the model runs code of its rep"),
    "images": ({"vision_config": {"hidden_size": 8}}, "vision_config says that the model reads more than text"),
    "encoder": (
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        "'BertForMaskedLM' does not predict",
    ),
    "both": ({"model_type": "t5", "is_encoder_decoder": True}, "is_encoder_decoder=true: the model has an encoder"),
    "no text": ({"model_type": "vit"}, "model_type 'vit' does not predict the next token of a text"),
    "unknown": ({"model_type": "nobody"}, "has model_type 'nobody', but must have one of llama, mobilellm, slm"),
    "bad": ({"hidden_size": "wide"}, "config.json: transformers cannot read it"),
    "layers": ({"num_hidden_layers": 10**9, "layer_types": None}, "num_hidden_layers=1,000,000,000 is more than"),
    "empty": ({"vocab_size": 0}, "vocab_size=0 must be a whole number above 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_cannot_measure_either_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    changes, sentence = REFUSED[name]
    foreign("qwen2", tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=sentence) as refused:
        check_any(tmp_path)
    assert "\n" not in str(refused.value)


def test_weights_that_do_not_fit_and_models_that_are_not_causal_are_refused(tmp_path: Path) -> None:
    foreign("qwen2", tmp_path / "deep")
    change_config(tmp_path / "deep", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(ValueError, match=r"describes [\d,]+ parameters, but the files hold only [\d,]+: download"):
        check_any(tmp_path / "deep")
    model = foreign("qwen2", tmp_path / "renamed")
    tensors = {name.replace("k_proj", "key"): tensor.clone() for name, tensor in model.state_dict().items()}
    save_file({name: tensor for name, tensor in tensors.items() if "head" not in name}, tmp_path / "renamed" / WEIGHTS)
    with pytest.raises(ValueError, match=r"do not match the config: 4 missing \(model\.layers\.0\.self_attn\.k_proj"):
        load_any(tmp_path / "renamed")
    foreign("qwen2", tmp_path / "wide")
    change_config(tmp_path / "wide", intermediate_size=44)
    check_any(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"do not match the config: 6 mis-shaped \(model\.layers\.0\.mlp\.down_proj"):
        load_any(tmp_path / "wide")
    TYPES_OF_ENCODER = {"bert": SHAPE | {"is_decoder": False}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "TYPES", TYPES_OF_ENCODER)
        foreign("bert", tmp_path / "encoder")
    with pytest.raises(ValueError, match="'bert' cannot be measured: it reads the tokens that it should predict"):
        load_any(tmp_path / "encoder")


def test_our_decoder_cannot_hold_it_so_nothing_but_evaluation_takes_it(tmp_path: Path, monkeypatch) -> None:
    foreign("gpt_neox", tmp_path)
    for refused in (lambda: load(tmp_path), lambda: check(tmp_path), lambda: export(tmp_path, tmp_path / "out")):
        with pytest.raises(ValueError, match=r"only evaluate\.py takes a model that our decoder cannot hold"):
            refused()
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"'gpt_neox', but must .*; pip install 'slm\[hub\]' installs transformers"):
        check_any(tmp_path)


def test_a_llama_stays_with_our_decoder(tmp_path: Path) -> None:
    assert type(load_any(save(llama(), tmp_path)).decoder).__name__ == "Decoder"


def test_baselines_are_measured_beside_a_checkpoint_and_skipped_where_they_fail(tmp_path: Path, capsys) -> None:
    folders = {kind: tmp_path / kind for kind in ("gpt_neox", "mamba", "absent")}
    foreign("gpt_neox", folders["gpt_neox"])
    foreign("mamba", folders["mamba"])
    text = tmp_path / "t.txt"
    text.write_text("One and one make two. " * 20)
    names = [str(folders[name]) for name in ("mamba", "absent", "gpt_neox")]
    asked = small(tmp_path, text, f"checkpoint={folders['gpt_neox']}", f"+baselines.checkpoints=[{','.join(names)}]")
    assert evaluate(asked) == SKIPPED_TASKS
    assert f"{folders['absent']} is skipped: checkpoint=" in capsys.readouterr().err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["name"] for entry in results] == ["gpt_neox", "mamba"]
    for entry in results:
        assert entry["kind"] == "transformers"
        assert len(entry["perplexity_results"]) == 2
        assert entry["speed"]["decode_tokens_per_second"] > 0
        assert (entry["speed"]["compiled"], entry["speed"]["cache"]) == (False, True)
    with pytest.raises(ValueError, match="none of the baselines can be measured"):
        evaluate(small(tmp_path, text, f"+baselines.checkpoints=[{folders['absent']}]"))
    with pytest.raises(ValueError, match=r"computed by transformers, uncompiled: give speed\.compile=false"):
        evaluate(
            small(tmp_path, text, f"checkpoint={folders['mamba']}", "speed.compile=true", f"output_dir={tmp_path}/o")
        )
    with pytest.raises(ValueError, match=r"computed by transformers, uncompiled: give generation\.compile=false"):
        talk(small(tmp_path, text, f"checkpoint={folders['mamba']}", "generation.compile=true", "prompt=a"))


def test_loading_says_nothing_of_its_own(tmp_path: Path) -> None:
    """transformers imports torchao if it is installed, which warns of its parts for GPUs."""
    pytest.importorskip("torchao")
    foreign("gpt_neox", tmp_path)
    code = f"from slm.checkpoints import load_any; from pathlib import Path; load_any(Path({str(tmp_path)!r}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (loaded.stdout, loaded.stderr) == ("", "")
