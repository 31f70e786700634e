"""Fetch a model repository of the Hugging Face hub: config, tokenizer and weights, pinned to one commit.

Only data files are fetched, never code. Weights in a second format are fetched only if the first cannot be used. The
token comes from `hf auth login` or HF_TOKEN. If the cache has a complete copy, the network is not used.
"""

from collections.abc import Collection
from pathlib import Path

from slm.checkpoints.architecture import read_json
from slm.checkpoints.foreign import OTHER_TOKENIZER_FILES
from slm.checkpoints.weights import WEIGHT_FILES
from slm.data.chat_template import TEMPLATE_FILE
from slm.data.hub import require_network
from slm.data.tokenizer import CONFIGS
from slm.data.vocabulary import TOKENIZER_FILES


def fetch(repository: str, revision: str | None) -> tuple[Path, str]:
    """Fetch a repository, unless the cache has all of its files. Returns the folder of the files and their commit.

    `revision` is a branch, tag or commit; None means the main branch as it was when first fetched. Raises `ValueError`
    with advice if the repository is gated, absent or cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(hf_hub_download(repository, "config.json", revision=revision, local_files_only=True)).parent
        if _is_complete(cached):
            return cached, cached.name
    except LocalEntryNotFoundError:
        pass
    require_network(f"checkpoint={repository!r} is not a local folder and must be downloaded from the hub")
    return _download(repository, revision)


def fetch_other_weights(repository: str, commit: str) -> bool:
    """Fetch a commit's weights in all formats. Returns False without connection; raises `ValueError` like `fetch`."""
    try:
        require_network("")
    except ValueError:  # no connection
        return False
    _download(repository, commit, every_format=True)
    return True


def _is_complete(folder: Path) -> bool:
    """Return whether the cache has all files that loading reads; an interrupted download leaves only some."""
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    tokenizers = (*TOKENIZER_FILES, OTHER_TOKENIZER_FILES[0])
    if weights is None or not any((folder / name).exists() for name in tokenizers):
        return False
    return all((folder / name).exists() for name in _shards(weights))


def _shards(file: Path) -> list[str]:
    """Return the files that an index of weights names; [] if `file` is not an index but holds weights."""
    if file.suffix != ".json":
        return []
    file_of_tensor = dict(read_json(file).get("weight_map") or {})
    return sorted({str(name) for name in file_of_tensor.values()})


def _download(repository: str, revision: str | None, *, every_format: bool = False) -> tuple[Path, str]:
    from huggingface_hub import HfApi, errors, get_token, hf_hub_download

    page, given = f"https://huggingface.co/{repository}", f"checkpoint={repository!r}"
    login = "with the account of the token in use" if get_token() else "and run `hf auth login` or set HF_TOKEN"
    sentences: dict[type[Exception], str] = {  # subclasses first
        errors.GatedRepoError: f"{given} is gated: accept its licence at {page} {login}",
        errors.RevisionNotFoundError: f"revision={revision} is not a branch, tag or commit of {page}",
        errors.RepositoryNotFoundError: f"{given} is neither a folder here nor a repository of the hub that you may "
        "read (for a private repository, run `hf auth login` or set HF_TOKEN)",
        errors.LocalEntryNotFoundError: f"{given}: the hub stopped answering; give the same command again",
        errors.EntryNotFoundError: f"{given} has no config.json on the hub, so it is not a model",
        errors.HfHubHTTPError: f"{given} cannot be fetched from {page}",
    }
    try:
        folder = Path(hf_hub_download(repository, "config.json", revision=revision)).parent
        names = HfApi().list_repo_files(repository, revision=folder.name)
        for name in _files_to_fetch(repository, names, every_format=every_format):
            file = Path(hf_hub_download(repository, name, revision=folder.name))
            if name in WEIGHT_FILES:
                for shard in _shards(file):
                    hf_hub_download(repository, shard, revision=folder.name)
        return folder, folder.name
    except tuple(sentences) as error:
        sentence = next(sentence for kind, sentence in sentences.items() if isinstance(error, kind))
        raise ValueError(sentence) from None
    except (ValueError, OSError):  # invalid contents of a file, or a full disk
        raise
    except Exception as error:  # the class depends on the HTTP client of the installed huggingface_hub
        raise ValueError(f"{sentences[errors.LocalEntryNotFoundError]} ({type(error).__name__})") from None


def _files_to_fetch(repository: str, names: Collection[str], *, every_format: bool) -> list[str]:
    """Return the files to fetch. The weights come last, so that other errors come before the long download."""
    others = [name for name in OTHER_TOKENIZER_FILES if name in names]
    tokenizers = [name for name in TOKENIZER_FILES if name in names][:1] or others
    weights = [name for name in WEIGHT_FILES if name in names]
    for present, accepted in ((tokenizers, TOKENIZER_FILES), (weights, WEIGHT_FILES)):
        if not present:
            raise ValueError(f"checkpoint={repository!r} has none of {', '.join(accepted)} on the hub")
    configs = [name for name in (*CONFIGS, TEMPLATE_FILE) if name in names]
    return [*configs, *tokenizers, *(weights if every_format else weights[:1])]
