"""Keep `results.json`, which is saved after every measurement so that nothing is measured twice.

Notable: a directory belongs to one set of settings and rejects other settings. An entry belongs to one fingerprint of a
checkpoint; a checkpoint whose content has changed is measured again.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import yaml

from slm.runtime.files import locked, write_atomically

Entry = dict[str, Any]

FIXED_SETTINGS = ("source", "data", "device", "dtype", "seed", "perplexity", "speed", "task_limit", "task_shots")
"""An evaluation is continued only if these settings are unchanged; checkpoints and tasks may be added."""
IDENTITY_FIELDS = ("revision", "fingerprint", "dtype", "autocast", "device", "quantize")
"""An entry keeps its results only if these fields are unchanged; the name of the checkpoint may change."""
SETTINGS_FILE = "evaluation.yaml"
FOREIGN_FILES = ("results.json", "results.csv", "report.md", "report.html", "figures", "config.yaml", "checkpoints",
                 "model", "config.json")  # fmt: skip
"""A folder with one of these, but without `SETTINGS_FILE`, is not an evaluation but a run, an analysis or a model."""
GENERIC_NAMES = ("model", "checkpoints")  # folder names that do not identify a checkpoint


class Ledger:
    """The entries of an evaluation directory, in the order in which their checkpoints were first evaluated."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Raises `ValueError` if the directory holds an evaluation with other settings, or something else."""
        self.folder, self.file = folder, folder / "results.json"
        self.settings = {key: settings[key] for key in (*FIXED_SETTINGS, "checkpoints", "revision") if key in settings}
        self.entries = self._read()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory and write its settings. Raises `ValueError` if another process evaluates there."""
        with locked(self.folder, "process that evaluates there"):
            self.entries = self._read()  # another process may have added entries meanwhile
            settings_text = yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True)
            write_atomically(self.folder / SETTINGS_FILE, settings_text)
            yield

    def find_or_add(self, description: Entry) -> Entry:
        """Return the entry of the checkpoint with this description; if there is none, add one without results."""
        for entry in self.entries:
            if all(entry.get(key) == description[key] for key in IDENTITY_FIELDS):
                entry["checkpoint"] = description["checkpoint"]
                if entry["versions"] != description["versions"]:
                    old, new = _version_text(entry["versions"]), _version_text(description["versions"])
                    entry["continued"] = f"Begun with {old}, continued with {new}."
                return entry
        # Other entries of this checkpoint are outdated if it was trained further or the precision has changed.
        other_kinds = [entry for entry in self.entries if _label(entry) != _label(description)]
        unchanged = [name for name in IDENTITY_FIELDS if name != "quantize"]
        self.entries = [
            entry
            for entry in other_kinds
            if entry["checkpoint"] != description["checkpoint"]
            or all(entry.get(name) == description[name] for name in unchanged)
        ]
        empty: Entry = {"perplexity_results": [], "speed": None, "tasks": {}, "wall_seconds": 0.0, "status": "begun"}
        self.entries.append({**description, **empty})
        return self.entries[-1]

    def save(self) -> None:
        """Write `results.json` atomically, with each list of numbers on one line."""
        text = json.dumps(self.entries, indent=2, ensure_ascii=False, allow_nan=False)
        compact_text = re.sub(r"\[\n[-+.,\deE\s]*\]", lambda match: " ".join(match[0].split()), text)
        write_atomically(self.file, compact_text + "\n")

    def arrange(self, labels: Sequence[str]) -> None:
        """Sort entries in the order of `labels`, entries of earlier commands last; give each a unique name.

        A label is a checkpoint `with_quantisation`.
        """
        order = {label: index for index, label in enumerate(labels)}
        self.entries.sort(key=lambda entry: order.get(_label(entry), len(order)))
        checkpoints = list(dict.fromkeys(entry["checkpoint"] for entry in self.entries))
        names = dict(zip(checkpoints, short_names(checkpoints), strict=True))
        for entry in self.entries:
            entry["name"] = with_quantisation(names[entry["checkpoint"]], entry.get("quantize"))

    def _read(self) -> list[Entry]:
        if not (self.folder / SETTINGS_FILE).exists():
            if foreign := [name for name in FOREIGN_FILES if (self.folder / name).exists()]:
                raise ValueError(f"output_dir={self.folder} holds {foreign[0]} but no evaluation: choose another one")
            return []
        try:
            old_settings = yaml.safe_load((self.folder / SETTINGS_FILE).read_text(encoding="utf-8"))
            entries = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else []
            if not all("fingerprint" in entry and isinstance(entry["versions"], dict) for entry in entries):
                raise TypeError  # becomes the error below
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            raise ValueError(f"output_dir={self.folder} holds files that cannot be read: choose another one") from None
        new_settings = yaml.safe_load(yaml.safe_dump(self.settings))  # with the types that YAML reads back
        if changed := [key for key in FIXED_SETTINGS if old_settings.get(key) != new_settings.get(key)]:
            raise ValueError(
                f"output_dir={self.folder} holds an evaluation with other values of {', '.join(changed)}: choose "
                "another output_dir, or give the same values to continue it"
            )
        return entries


def with_quantisation(name: str, kind: str | None) -> str:
    """Return the name of a checkpoint that is measured with this rounding of its weights."""
    return f"{name} {kind}" if kind else name


def _label(entry: Entry) -> str:
    return with_quantisation(entry["checkpoint"], entry.get("quantize"))


def _version_text(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in versions.items())


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """Return the shortest unique ends of paths or hub ids; if the last part is generic, its parent is kept too."""
    paths = [[part for part in PurePath(name).parts if part not in ("/", ".", "..")] or [name] for name in checkpoints]
    min_parts = [2 if path[-1] in GENERIC_NAMES else 1 for path in paths]
    for num_parts in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-max(num_parts, minimum) :]) for path, minimum in zip(paths, min_parts, strict=True)]
        if len(set(names)) == len(names):
            return names
    return list(checkpoints)
