"""Hub ids: huggingface_hub's own cache and exceptions, with a stand-in for the network."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

from slm.checkpoints import check, check_any, export, load, load_any
from tests.checkpoints.releases import IDS, difference, halved, llama, mobilellm, refusal, save, store_as_head
from tests.checkpoints.test_foreign import foreign, with_old_tokenizer

REPO, COMMIT = "someone/Tiny-Llama", "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Files of one repository, fetched into a cache of huggingface_hub's layout; `asked` says which."""

    def __init__(self, files: Path, cache: Path) -> None:
        self.files = files
        self.asked: list[str] = []
        self.fails: Exception | None = None
        self.cached_only = huggingface_hub.hf_hub_download
        self.repository = cache / f"models--{REPO.replace('/', '--')}"

    def download(self, repository, name, *, revision=None, local_files_only=False) -> str:
        if local_files_only:
            return self.cached_only(repository, name, revision=revision, local_files_only=True)
        self.asked.append(name)
        if self.fails:
            raise self.fails
        if not (self.files / name).exists():
            raise errors.RemoteEntryNotFoundError(f"no {name}", response=answer(404))
        place = self.repository / "snapshots" / COMMIT / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.files / name, place)
        if revision != COMMIT:
            (self.repository / "refs").mkdir(exist_ok=True)
            (self.repository / "refs" / (revision or "main")).write_text(COMMIT)
        return str(place)


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", f"https://huggingface.co/{REPO}"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    stand_in = Hub(tmp_path / "files", tmp_path / "cache")
    stand_in.files.mkdir()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", stand_in.download)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: names(stand_in.files))
    monkeypatch.setattr("slm.checkpoints.hub.require_network", lambda purpose: None)
    return stand_in


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(purpose: str) -> None:
        raise ValueError(purpose)

    monkeypatch.setattr("slm.checkpoints.hub.require_network", fail)


def test_a_repository_is_fetched_once_and_pinned_to_its_commit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    save(model, hub.files)
    decoder, tokenizer, provenance = load(REPO)
    assert (decoder(IDS) - model(IDS).logits).abs().max() < 1e-5
    assert (provenance.revision, provenance.kind, provenance.run) == (COMMIT, "hf", None)
    assert tokenizer.name == REPO
    unplug(monkeypatch)
    hub.asked.clear()
    assert check(REPO).revision == check(REPO, revision=COMMIT).revision == COMMIT
    assert hub.asked == []


def test_a_repository_is_exported_at_the_commit_that_was_asked_for(hub: Hub, tmp_path: Path) -> None:
    model = llama()
    save(model, hub.files)
    folder = export(REPO, tmp_path / "exported", revision=COMMIT)
    assert torch.equal(load(folder).decoder(IDS), load(REPO).decoder(IDS))
    assert f"`{REPO}` at commit {COMMIT}" in (folder / "README.md").read_text()


def test_only_what_is_read_is_fetched_and_no_code_and_safetensors_rather_than_a_pickle(hub: Hub) -> None:
    save(llama(), hub.files, max_shard_size="60KB")
    for name in ("pytorch_model.bin", "modeling_evil.py", "README.md", "tokenizer.model", "model.gguf"):
        (hub.files / name).write_bytes(b"x")
    load(REPO)
    shards = {name for name in names(hub.files) if name.startswith("model-0")}
    fetched = {"config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors.index.json"}
    assert set(hub.asked) == shards | fetched
    assert len(hub.asked) == len(set(hub.asked))


def test_a_mobilellm_repository_is_fetched_with_its_pickle(hub: Hub) -> None:
    mobilellm(hub.files, llama())
    load(REPO)
    assert hub.asked == ["config.json", "tokenizer_config.json", "tokenizer.json", "pytorch_model.bin"]


def test_a_model_that_transformers_computes_is_fetched_with_the_files_of_an_old_tokenizer(hub: Hub) -> None:
    foreign("gpt2", hub.files)
    with_old_tokenizer(hub.files)
    checkpoint = load_any(REPO)
    assert hub.asked == ["config.json", "tokenizer_config.json", "vocab.json", "merges.txt", "model.safetensors"]
    assert (checkpoint.provenance.revision, checkpoint.provenance.kind) == (COMMIT, "transformers")
    hub.asked.clear()
    assert check_any(REPO) == checkpoint.provenance
    assert hub.asked == []


def test_a_second_format_is_fetched_only_where_the_first_is_unusable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = halved(llama())
    mobilellm(hub.files, model)
    store_as_head(hub.files)
    assert load(REPO).provenance.notes == ()
    assert "pytorch_model.bin" not in hub.asked
    shutil.rmtree(hub.repository)
    (hub.files / "model.safetensors").write_bytes(b"<html>")
    assert difference(load(REPO).decoder, model) < 1e-5
    assert hub.asked[-1] == "pytorch_model.bin"
    unplug(monkeypatch)
    assert "pytorch_model.bin was read" in check(REPO).notes[0]
    next(hub.repository.rglob("pytorch_model.bin")).unlink()
    assert "model.safetensors is not a safetensors file" in refusal(REPO)


def test_a_download_that_was_cut_short_is_completed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    save(llama(), hub.files, max_shard_size="60KB")
    load(REPO)
    shard = next((hub.repository / "snapshots" / COMMIT).glob("model-00002*"))
    shard.unlink()
    hub.asked.clear()
    assert check(REPO).revision == COMMIT
    assert shard.name in hub.asked
    shard.unlink()
    unplug(monkeypatch)
    assert "is not a local folder and must be downloaded" in refusal(REPO)


def test_a_gated_repository_says_where_to_accept_its_licence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fails = errors.GatedRepoError("401 Client Error. Cannot access gated repo", response=answer(401))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    remedy = f"accept its licence at https://huggingface.co/{REPO} and run `hf auth login` or set HF_TOKEN"
    assert refusal(REPO).endswith(f"is gated: {remedy}")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    assert refusal(REPO).endswith("with the account of the token in use")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.RepositoryNotFoundError("404", response=answer(404)), "nor a repository of the hub that you may read"),
        (errors.RevisionNotFoundError("404", response=answer(404)), "revision=v9 is not a branch, tag or commit of"),
        (errors.RemoteEntryNotFoundError("404", response=answer(404)), "has no config.json on the hub, so it is not a"),
        (errors.HfHubHTTPError("500", response=answer(500)), "cannot be fetched from https"),
        (errors.LocalEntryNotFoundError("no connection"), "the hub stopped answering; give the same command again"),
        (httpx.ConnectError("reset"), r"the hub stopped answering; give the same command again \(ConnectError\)"),
    ],
)
def test_an_answer_of_the_hub_becomes_one_sentence(hub: Hub, error: Exception, sentence: str) -> None:
    hub.fails = error
    with pytest.raises(ValueError, match=sentence) as refused:
        load(REPO, revision="v9")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_repository_without_weights_or_tokenizer_is_refused_before_a_long_download(hub: Hub, name: str) -> None:
    save(llama(), hub.files)
    (hub.files / name).unlink()
    other = {"model.safetensors": "pytorch_model", "tokenizer.json": "tokenizer"}[name]
    assert f"has none of {name}, {other}" in refusal(REPO).replace("model.safetensors.index.json, ", "")
    assert set(hub.asked) == {"config.json"}


def test_without_network_an_unknown_id_fails_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    unplug(monkeypatch)
    assert "is not a local folder and must be downloaded" in refusal(REPO)


@pytest.mark.hub
def test_a_real_repository_loads() -> None:
    assert check("HuggingFaceTB/SmolLM2-135M").revision
