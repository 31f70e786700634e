"""Replace the names of data configs in `data.sources`, as in `{web: fineweb_edu}`, by the configs that they name."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

from slm.composition.keys import CONF, did_you_mean
from slm.runtime.command_line import in_quotes, one_sentence
from slm.runtime.settings import as_typed

CHOICE = "data"
"""Key of a source whose value is the name of a data config; the source's other keys change that config."""


def expand_sources(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the data config of each source of a mix. Those of other data are returned unchanged.

    A source is the name of a choice of the group `data`, or keys that change the choice named by their key `data`, or a
    whole data config, as in config.yaml of a run. Raises ValueError for a name or a key that does not exist.
    """
    data = settings.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("sources"), Mapping):
        return dict(settings)
    sources = {name: _expanded(f"data.sources.{name}", source) for name, source in data["sources"].items()}
    return {**settings, "data": {**data, "sources": sources}}


def _expanded(key: str, source: Any) -> dict[str, Any]:
    given = {CHOICE: source} if isinstance(source, str) else source
    if isinstance(given, Mapping) and CHOICE not in given and {"source", "name"} <= given.keys():
        return dict(given)
    if not isinstance(given, Mapping) or not isinstance(given.get(CHOICE), str):
        raise ValueError(
            f"{key}={as_typed(source)} must be the name of a data config, or one with changes, as in "
            f"'{key}={{data: local, paths: texts}}'"
        )
    changes = {name: value for name, value in given.items() if name != CHOICE}
    try:
        chosen = _composed(given[CHOICE], tuple(searchpath_overrides()))
    except HydraException as error:
        raise ValueError(f"{key}: {one_sentence(error)}") from None
    for name in changes.keys() - chosen.keys():
        raise ValueError(f"{key} has {name}, which is no key of data={given[CHOICE]}{did_you_mean(name, chosen)}")
    merged = {**chosen, **changes}
    if missing := [name for name, value in merged.items() if value == "???"]:
        raise ValueError(
            f"{key}.{missing[0]} must be set, as in '{key}={{data: {given[CHOICE]}, {missing[0]}: VALUE}}'"
        )
    return merged


@cache
def _composed(choice: str, searchpath: tuple[str, ...]) -> dict[str, Any]:
    with conf_folder():
        config = compose("train", overrides=[*searchpath, f"data={choice}"])
    return OmegaConf.to_container(config.data, resolve=True)  # type: ignore[return-value]


def conf_folder() -> AbstractContextManager[Any]:
    """Let Hydra read conf/ in this context; within a script, it does already."""
    is_initialized = GlobalHydra.instance().is_initialized()
    return nullcontext() if is_initialized else initialize_config_dir(str(CONF), version_base="1.3")


def searchpath_overrides() -> list[str]:
    """Return an override with the config folders of this process (--config-dir, hydra.searchpath), if it has any."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    added = [source.path for source in sources if source.schema == "file" and source.provider not in ("main", "hydra")]
    folders = [in_quotes(Path(path).resolve()) for path in dict.fromkeys(added)]
    return [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []
