"""`results.json`: what has been measured so far, kept after every measurement, so that nothing is measured twice.

Notable: a directory belongs to one set of settings, and an entry to one content of a checkpoint (its fingerprint): what
was measured under others is refused or measured anew, never mixed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from slm.evaluation.labels import short_names

Entry = dict[str, Any]

IDENTITY = ("data", "device", "dtype", "seed", "perplexity", "speed", "task_limit", "task_shots")
"""Settings that must be the same for a directory to be continued; checkpoints and tasks may be added."""
SAME = ("revision", "fingerprint", "dtype", "autocast", "device")
"""Facts of an entry that must be the same for its figures to stand, whatever the checkpoint is called."""
SETTINGS = "evaluation.yaml"
CONTENTS = ("results.json", "results.csv", "report.md", "figures", "config.yaml", "checkpoints", "model", "config.json")
"""Of evaluations, runs, analyses and models: a folder with one of these and without `SETTINGS` is another's."""


class Ledger:
    """The entries of an evaluation directory, in the order in which checkpoints were first asked for."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Raises `ValueError` if the directory holds an evaluation with other settings, or somebody else's files."""
        self.folder, self.file = folder, folder / "results.json"
        self.settings = {key: settings[key] for key in (*IDENTITY, "checkpoints", "revision") if key in settings}
        self.entries = self._read()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory, with its settings in it. Raises `ValueError` if another process evaluates there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock").acquire(timeout=0):
                self.entries = self._read()  # another process may have ended since
                self._write(SETTINGS, yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True))
                yield
        except Timeout:
            raise ValueError(f"output_dir={self.folder} is in use by another process that evaluates there") from None

    def entry(self, facts: Mapping[str, Any]) -> Entry:
        """The entry of a checkpoint, with what was measured of it before; a new one holds the `facts` alone."""
        for entry in self.entries:
            if all(entry.get(key) == facts[key] for key in SAME):
                entry["checkpoint"] = facts["checkpoint"]
                if entry["versions"] != facts["versions"]:
                    said = f"Begun with {_listed(entry['versions'])}, continued with {_listed(facts['versions'])}."
                    entry["continued"] = said
                return entry
        # An entry of the same checkpoint with another content is of the past: a run that went on training, or figures
        # of a machine with another precision.
        self.entries = [entry for entry in self.entries if entry["checkpoint"] != facts["checkpoint"]]
        self.entries.append({**facts, **_blank()})
        return self.entries[-1]

    def save(self) -> None:
        """Write `results.json` whole or not at all."""
        text = json.dumps(self.entries, indent=2, ensure_ascii=False, allow_nan=False)
        lists_on_one_line = re.sub(r"\[\n[-+.,\deE\s]*\]", lambda found: " ".join(found[0].split()), text)
        self._write("results.json", lists_on_one_line + "\n")

    def arrange(self, checkpoints: Sequence[str]) -> None:
        """Put the entries of `checkpoints` in that order, those of earlier commands after them, and name them apart."""
        places = {name: place for place, name in enumerate(checkpoints)}
        self.entries.sort(key=lambda entry: places.get(entry["checkpoint"], len(places)))
        for entry, name in zip(self.entries, short_names([e["checkpoint"] for e in self.entries]), strict=True):
            entry["name"] = name

    def _read(self) -> list[Entry]:
        if not (self.folder / SETTINGS).exists():
            foreign = [name for name in CONTENTS if (self.folder / name).exists()]
            if foreign:
                raise ValueError(
                    f"output_dir={self.folder} holds {foreign[0]} and is no evaluation: choose another output_dir"
                )
            return []
        try:
            before = yaml.safe_load((self.folder / SETTINGS).read_text(encoding="utf-8"))
            entries = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else []
            if not all("fingerprint" in entry["versions"] | entry for entry in entries):
                raise TypeError
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            raise ValueError(
                f"output_dir={self.folder} holds results or settings that cannot be read: choose another output_dir"
            ) from None
        changed = [key for key in IDENTITY if before.get(key) != _plain(self.settings.get(key))]
        if changed:
            raise ValueError(
                f"output_dir={self.folder} holds an evaluation with other settings of {', '.join(changed)}: choose "
                "another output_dir, or give the same settings to continue it"
            )
        return entries

    def _write(self, name: str, text: str) -> None:
        partial = self.folder / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, self.folder / name)


def _blank() -> Entry:
    """The part of an entry that measurements fill in."""
    return {"perplexity_results": [], "speed": None, "tasks": {}, "wall_seconds": 0.0, "status": "begun"}


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _plain(value: Any) -> Any:
    """As YAML gives it back."""
    return yaml.safe_load(yaml.safe_dump(value))
