"""What `load` and `check` refuse: each in one sentence that says what was given and what to do."""

import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from slm.checkpoints import check, load
from tests.checkpoints.releases import change_config, llama, refusal, save

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 538090408\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound release."""
    return save(llama(), tmp_path / "release")


class Harmful:
    """A pickle of it runs a command when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_execute_code_is_refused_and_does_not_execute(folder, zipped, tmp_path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    evil = {**state, "extra": Harmful(tmp_path / "executed")}
    torch.save(evil, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    said = refusal(folder)
    assert "refused and was not executed" in said
    assert "posix.system" in said
    assert "safetensors" in said
    assert not (tmp_path / "executed").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # it would have
    assert (tmp_path / "executed").exists()


def test_a_bare_pickle_is_refused_and_does_not_execute(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful(tmp_path / "executed")))
    assert str(folder / "pytorch_model.bin") in refusal(folder)
    assert not (tmp_path / "executed").exists()


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize("size", [1, 7, 8, 9, 100, 5000, -1])
def test_a_truncated_safetensors_is_refused_in_one_sentence(folder: Path, size: int) -> None:
    cut(folder / "model.safetensors", size)
    assert "truncated" in refusal(folder)


@pytest.mark.parametrize("size", [1, 10, 100, 5000, -1, -100])
def test_a_truncated_pickle_is_refused_in_one_sentence(folder: Path, size: int) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    cut(folder / "pytorch_model.bin", size)
    assert "damaged" in refusal(folder)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(llama(), tmp_path_factory.mktemp("sound"))
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "new.bin")
    torch.save(state, folder / "old.bin", _use_new_zipfile_serialization=False)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["model.safetensors", "new.bin", "old.bin", "config.json", "tokenizer.json"])
@settings(deadline=None, max_examples=40)
@given(changes=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_changed_bytes_loads_or_is_refused_in_one_sentence(sound: Path, kind: str, changes: list) -> None:
    place = {"new.bin": "pytorch_model.bin", "old.bin": "pytorch_model.bin"}.get(kind, kind)
    content = bytearray((sound / kind).read_bytes())
    for position, byte in changes:
        content[position % len(content)] = byte
    with tempfile.TemporaryDirectory() as folder:
        for file in sound.iterdir():
            if file.suffix == ".json" or place == file.name or place.endswith(".json"):
                shutil.copyfile(file, Path(folder) / file.name)
        (Path(folder) / place).write_bytes(content)
        try:
            load(folder)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017


def overwrite(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content)


def rewrite_tensors(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return harm


def store(tensor: torch.Tensor) -> Callable[[Path], object]:
    return rewrite_tensors(lambda state: state.update({NORM: tensor}))


def as_pickle(content: object) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return harm


def misnamed_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def index_of(file: str) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))

    return harm


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


NORM, UP, BYTES = "model.norm.weight", "model.layers.1.mlp.up_proj.weight", torch.ones(48, dtype=torch.int8)
HARMS = {
    "empty weights": (overwrite("model.safetensors", b""), "model.safetensors is empty: download it again"),
    "lfs weights": (overwrite("model.safetensors", POINTER), "is a git-lfs pointer.* run git lfs pull in"),
    "lfs tokenizer": (overwrite("tokenizer.json", POINTER), "tokenizer.json is a git-lfs pointer .* run git lfs pull"),
    "no header": (overwrite("model.safetensors", b"\x08" + b"\0" * 40), "is not a safetensors file, or is truncated"),
    "bad config": (overwrite("config.json", b"{,}"), r"config\.json is not valid JSON .*restore it"),
    "config of bytes": (overwrite("config.json", b"\xff\xfe"), r"config\.json is not valid JSON"),
    "config is a list": (overwrite("config.json", b"[]"), "holds a JSON list, but must hold an object"),
    "bad tokenizer": (overwrite("tokenizer.json", b"{}"), "is not a tokenizer.json of the tokenizers library"),
    "strange tokenizer": (overwrite("tokenizer.json", b'{"added_tokens":[]}'), "cannot be read by|says which token"),
    "bad tokenizer config": (overwrite("tokenizer_config.json", b"["), "tokenizer_config.json is not a JSON object"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer; give a tokenizer.json, a tokeni"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights: give model.safetensors or"),
    "absent shard": (misnamed_index, "names model-00002-of-00002.safetensors, but 1 of its 2 files do not exist"),
    "shard elsewhere": (index_of("../../secret"), r"names '\.\./\.\./secret', which is not a file in the same folder"),
    "missing": (rewrite_tensors(lambda s: s.pop(UP)), r"1 missing \(layers\.1\.mlp\.up_proj\.weight\)"),
    "unexpected": (rewrite_tensors(lambda s: s.update(x=torch.ones(1))), r"1 unexpected \(x\)"),
    "misshaped": (store(torch.ones(7)), r"1 mis-shaped \(norm\.weight is \[7\] and not \[48\]\)"),
    "many missing": (
        rewrite_tensors(lambda s: [s.pop(name) for name in list(s) if "layers.0" in name]),
        r"9 missing \(layers\.0\..*, .*, .* and 6 more\)",
    ),
    "integers": (store(BYTES), "model.norm.weight is stored as int8, but must be one of float64, float32"),
    "integers in a pickle": (as_pickle({"a": BYTES}), "a is stored as int8, but must be one of"),
    "a list in a pickle": (as_pickle([torch.ones(2)]), "holds a list, but must map names to tensors"),
    "numbered tensors": (as_pickle({3: torch.ones(2)}), "must map names to dense tensors, but has the entry '3'"),
    "a tensor without values": (as_pickle({"a": torch.ones(2, device="meta")}), "dense tensors, but has the entry 'a'"),
    "an endless name": (rewrite_tensors(lambda s: s.update({"x" * 3000: torch.ones(1)})), r"unexpected \(x+\.\.\.x+\)"),
    "a folder": (lambda f: as_folder(f / "model.safetensors"), r"model.safetensors cannot be read \(Is a directory\)"),
    "an index of the folder": (index_of(""), "names '', which is not a file in the same folder"),
    "a number in a pickle": (as_pickle({"epoch": 3}), "must map names to dense tensors, but has the entry 'epoch'"),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_folder_is_refused_in_one_sentence(folder: Path, name: str) -> None:
    harm, sentence = HARMS[name]
    harm(folder)
    said = refusal(folder)
    assert re.search(sentence, said), said


OWN = {"vocab_size": 260, "hidden_size": 48, "num_layers": 2, "num_heads": 6, "intermediate_size": 80}
CONFIGS = {
    "gemma2": ({"model_type": "gemma2"}, "has model_type 'gemma2', but must have one of llama, mob"),
    "none": ({"model_type": None}, "has no model_type, but must"),
    "missing": ({"hidden_size": None, "vocab_size": None}, "vocab_size and hidden_size must be set"),
    "heads": ({"num_key_value_heads": 4}, "num_heads=6 is not divisible by num_kv_heads=4"),
    "endless": ({"hidden_size": 10**30}, "hidden_size=10{30} is more than any machine holds: give at most 2147483647"),
    "wide": ({"hidden_size": 6 * 2**28, "vocab_size": 2**30}, "hidden_size=16.* with vocab_size=10.* gives tensors"),
    "endless base": ({"rope_parameters": None, "rope_theta": 10**30}, "rope_theta=10{30} must be a number above 0"),
    "own null": ({"model_type": "slm", "slm": OWN | {"chunk_size": None}}, "chunk_size=None must be a whole number"),
    "text": ({"hidden_size": "48"}, "hidden_size='48' must be a whole number"),
    "yarn": ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling asks for rotary .* of type 'yarn'"),
    "llama3": ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters asks for .* 'llama3', but only '"),
    "layers": ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "of type 'one for each kind of layer'"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported: it must be 1.0"),
    "gelu": ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported: it must be 'silu'"),
    "window": ({"sliding_window": 4096}, "sliding_window=4096 is not supported: it must be null"),
    "kinds": ({"layer_types": ["full_attention", "x"]}, r"layer_types=.*'x'\] is not supported: .* 'full_attention'"),
    "quantised": ({"quantization_config": {"quant_method": "awq"}}, r"the weights are quantised \(awq\), which is not"),
    "slm": ({"model_type": "slm"}, "under the key slm, which is absent"),
    "own": ({"slm": {"vocab": 3}}, r"model\.vocab is not a field"),
    "own list": ({"slm": [1]}, r"slm=\[1\] must be an object"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_no_decoder_of_ours_is_refused_by_name(folder: Path, name: str) -> None:
    changes, sentence = CONFIGS[name]
    change_config(folder, **changes)
    said = refusal(folder)
    assert re.search(sentence, said), said
    assert str(folder / "config.json") in said


def test_a_place_without_a_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").endswith("(a run of train.py), but has nothing")
    assert "is a file: give the run directory" in refusal(folder / "config.json")
    assert "does not exist: give a run directory" in refusal(tmp_path / "absent")
    assert "does not exist: give a run directory" in refusal("./no/such")
    assert "needs a hub id" in refusal(folder, revision="main")


def test_code_in_the_folder_is_not_imported(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    load(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.timeout(20)
def test_heads_by_the_billion_are_refused_at_once_with_what_fits(folder: Path) -> None:
    change_config(folder, hidden_size=32, num_attention_heads=2**31 - 4, num_key_value_heads=7, head_dim=2)
    said = refusal(folder)
    assert "num_heads=2147483644 is not divisible by num_kv_heads=7: num_kv_heads can be 1, 2, 4, 233" in said


@pytest.mark.timeout(20)
def test_layers_by_the_billion_are_refused_without_making_them(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path / "m")
    change_config(folder, num_hidden_layers=10**9)
    with pytest.raises(ValueError, match=r"tensors for 1,000,000,000 layers in config\.json"):
        check(folder)
