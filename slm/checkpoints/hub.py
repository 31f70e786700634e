"""Fetch a model repository of the Hugging Face hub: config, tokenizer and weights, pinned to one commit.

Notable: only files of data are fetched, by name, and never code; weights in a second format only where the first cannot
be used; the token is the one that `hf auth login` or HF_TOKEN left; what was fetched before is used without asking the
network.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from slm.checkpoints.architecture import read_json
from slm.checkpoints.weights import WEIGHT_FILES
from slm.data.hub import require_network
from slm.data.tokenizer import CONFIGS
from slm.data.vocabulary import TOKENIZER_FILES


def fetch(repository: str, revision: str | None) -> tuple[Path, str]:
    """Folder and commit of a repository, fetched where it is not in the cache whole.

    `revision` is a branch, tag or commit; None is the main branch, as it was when it was fetched first. Raises
    `ValueError` that says what to do for a repository that is gated, absent or out of reach.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(hf_hub_download(repository, "config.json", revision=revision, local_files_only=True)).parent
        if _is_whole(cached):
            return cached, cached.name
    except LocalEntryNotFoundError:
        pass
    try:
        require_network("")
    except ValueError:
        raise ValueError(
            f"checkpoint={repository!r} is no folder and, as a hub id, not in the cache whole, and the hub cannot be "
            "reached: connect to the network, or give a local folder"
        ) from None
    return _download(repository, revision)


def fetch_other_weights(repository: str, commit: str) -> bool:
    """Fetch the weights of a commit in every format it has, where the preferred one cannot be used; whether it could.

    Raises `ValueError` as `fetch` does for a hub that answers with an error.
    """
    try:
        require_network("")
    except ValueError:
        return False
    _download(repository, commit, every_format=True)
    return True


def _is_whole(folder: Path) -> bool:
    """Whether the cache holds all that is read: an interrupted download leaves some."""
    first = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if first is None or not any((folder / name).exists() for name in TOKENIZER_FILES):
        return False
    return first.suffix != ".json" or all((folder / name).exists() for name in _shards(first))


def _shards(index: Path) -> list[str]:
    return sorted({str(name) for name in dict(read_json(index).get("weight_map") or {}).values()})


def _download(repository: str, revision: str | None, *, every_format: bool = False) -> tuple[Path, str]:
    from huggingface_hub import HfApi, get_token, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repository}"
    try:
        folder = Path(hf_hub_download(repository, "config.json", revision=revision)).parent
        commit = folder.name
        names = HfApi().list_repo_files(repository, revision=commit)
        for name in _wanted(repository, names, every_format=every_format):
            file = Path(hf_hub_download(repository, name, revision=commit))
            for shard in _shards(file) if name in WEIGHT_FILES and file.suffix == ".json" else ():
                hf_hub_download(repository, shard, revision=commit)
        return folder, commit
    except GatedRepoError:
        way = "with the account of the token in use" if get_token() else "and then run `hf auth login` or set HF_TOKEN"
        raise ValueError(f"checkpoint={repository!r} is gated: accept its licence at {page} {way}") from None
    except RevisionNotFoundError:
        raise ValueError(f"revision={revision} is no branch, tag or commit of {page}") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"checkpoint={repository!r} is no folder here and no repository of the hub that you may read (a private "
            "one wants `hf auth login` or HF_TOKEN)"
        ) from None
    except LocalEntryNotFoundError:  # the network went away
        raise ValueError(f"checkpoint={repository!r}: the hub stopped answering; give the same command again") from None
    except EntryNotFoundError:
        raise ValueError(f"checkpoint={repository!r} has no config.json on the hub, so it is no model") from None
    except HfHubHTTPError as error:
        raise ValueError(f"checkpoint={repository!r} cannot be fetched from {page} ({type(error).__name__})") from None
    except (ValueError, OSError):  # what the files hold; a full disk
        raise
    except Exception as error:  # which class depends on the HTTP client of the installed huggingface_hub
        raise ValueError(
            f"checkpoint={repository!r}: the hub stopped answering ({type(error).__name__}); give the same command "
            "again"
        ) from None


def _wanted(repository: str, names: Collection[str], *, every_format: bool) -> list[str]:
    """The files to fetch, weights last, so that what can be refused is refused before the long download."""
    configs, tokenizers, weights = (
        [name for name in accepted if name in names] for accepted in (CONFIGS, TOKENIZER_FILES, WEIGHT_FILES)
    )
    for found, accepted in ((tokenizers, TOKENIZER_FILES), (weights, WEIGHT_FILES)):
        if not found:
            raise ValueError(f"checkpoint={repository!r} has none of {', '.join(accepted)} on the hub")
    return [*configs, tokenizers[0], *(weights if every_format else weights[:1])]
