"""`device=here`: measure each shape of a table on this machine, twice, in a process that loads torch.

Speeds do not depend on the weights, so each shape is built anew from its family's rule in conf/family. Shapes that
`device.csv` in the analysis directory has already are not measured again.
"""

import csv
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf.errors import OmegaConfBaseException

from slm.composition.keys import CONF
from slm.runtime.progress import say
from slm.runtime.words import shortlist
from slm.scaling.measures import HERE, HERE_FILE
from slm.sweep.recipe import Recipe, composed
from slm.sweep.shapes import count_params, with_other_ffn

if TYPE_CHECKING:
    from slm.scaling.tables import Table

SHAPE = ("family", "width", "depth")
PROMPT, NEW = 512, 128  # tokens at most; fewer if the runs were trained on shorter sequences


def with_device(config: Mapping[str, Any], table: "Table") -> Mapping[str, Any]:
    """Return the config with `device=here` replaced by the file of the measurements, which are taken first.

    Raises a `ValueError` of one sentence if the table does not say which shapes to build.
    """
    if config["device"] != HERE:
        return config
    file = Path(config["output_dir"]) / HERE_FILE
    shapes = _shapes(table, _overrides(config))
    done = csv.DictReader(file.read_text(encoding="utf-8").splitlines()) if file.exists() else []
    measured = Counter(tuple(row[key] for key in SHAPE) for row in done)
    order = list(range(len(shapes)))
    random.Random(0).shuffle(order)
    # Two passes in opposite orders: other load on the machine becomes scatter, and no bias of a family.
    queue = [(index, count) for count, passed in enumerate((order, order[::-1])) for index in passed]
    missing = [
        shapes[index] for index, count in queue if measured[tuple(str(shapes[index][key]) for key in SHAPE)] <= count
    ]
    if missing:
        file.parent.mkdir(parents=True, exist_ok=True)
        say(f"measuring {len(shapes)} shapes on this machine, each twice; results go to {file}")
        _measure(missing, _speed_settings(table), file)
    return {**config, "device": str(file)}


def _overrides(config: Mapping[str, Any]) -> Sequence[str]:
    """The settings of the shapes of a sweep: of this sweep, or of the one beside the table `runs`."""
    beside = Path(config["runs"] or "").parent / "sweep.yaml"
    if config["runs"] is None:
        sweep = config["sweep"]
    elif beside.is_file():
        sweep = yaml.safe_load(beside.read_text(encoding="utf-8"))["sweep"]
    else:
        return ()
    overrides = [*(sweep.get("also") or []), *(sweep.get("overrides") or [])]
    return [override for override in overrides if override.startswith("model.")]


def _shapes(table: "Table", overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The shapes of the table, each with its full `model`."""
    frame = table.frame
    if absent := [name for name in SHAPE[1:] if name not in frame or frame[name].isna().any()]:
        raise ValueError(
            f"device=here needs the columns width and depth in every row, and {' and '.join(absent)} is missing"
        )
    known = sorted(path.stem for path in (CONF / "family").glob("*.yaml"))
    if unknown := [family for family in table.families if family not in known]:
        raise ValueError(
            f"device=here builds the families of conf/family ({', '.join(known)}), and {shortlist(unknown)} is none of "
            "them: measure checkpoints with evaluate.py, and give its file as device=results.csv"
        )
    columns = [name for name in (*SHAPE, "params_total", "vocab_size") if name in frame]
    recipes: dict[tuple[str, ...], Recipe] = {}
    found = []
    for row in frame.drop_duplicates(columns)[columns].to_dict("records"):
        width, depth = int(row["width"]), int(row["depth"])
        vocabulary = [f"model.vocab_size={int(row['vocab_size'])}"] if "vocab_size" in row else []
        key = (row["family"], *vocabulary)
        if key not in recipes:
            recipes[key] = Recipe(row["family"], (*overrides, *vocabulary))
        try:
            model = recipes[key].shape(width, depth)
        except (ValueError, OmegaConfBaseException) as error:
            raise ValueError(f"device=here: {row['family']} {width}x{depth} cannot be built: {error}") from None
        if "params_total" in row:  # a sweep that matches sizes changes the feed-forward width
            target = row["params_total"]
            models = (model, *with_other_ffn(model, target, "params_total"))
            model = min(models, key=lambda model: abs(count_params(model, "params_total") - target))
        found.append({"family": row["family"], "width": width, "depth": depth, "model": model.to_dict()})
    return found


def _speed_settings(table: "Table") -> dict[str, Any]:
    """The settings of evaluate.py, with a text that is no longer than the sequences of the runs."""
    speed = dict(composed("evaluate", ()).speed)
    names = [name for name in ("sequence_length", "context_length") if name in table.frame]
    length = int(table.frame[names[0]].min()) if names else PROMPT + NEW
    new_tokens = min(NEW, max(1, length // 2))
    return speed | {"new_tokens": new_tokens, "prompt_tokens": max(1, min(PROMPT, length - new_tokens))}


def _measure(shapes: list[dict[str, Any]], speed: dict[str, Any], file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "shapes.json"
        request.write_text(json.dumps({"shapes": shapes, "speed": speed}), encoding="utf-8")
        command = [sys.executable, "-m", "slm.evaluation.shapes", str(request), str(file)]
        done = subprocess.run(command, check=False, start_new_session=True)  # Ctrl-C kills it, without its traceback
    if done.returncode:
        raise ValueError(f"device=here: the measurement failed (exit code {done.returncode}), for the reason above")
