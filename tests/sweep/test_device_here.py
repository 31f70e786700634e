"""`device=here`: the shapes that are built are those of the runs; what cannot be built is refused."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from slm.composition.resolvers import register
from slm.evaluation import shapes as measured_shapes
from slm.scaling import table_from_frame
from slm.scaling.device import match, read_device
from slm.sweep import device
from slm.sweep.device import with_device

register()
FIRST_STUDY = Path(__file__).parents[2] / "results" / "first_study" / "sweep" / "results.csv"


def config(folder: Path, runs: str = str(FIRST_STUDY)) -> dict[str, Any]:
    return {"device": "here", "runs": runs, "output_dir": str(folder), "ship": {}}


def test_every_shape_of_a_sweep_is_rebuilt_with_its_parameters_and_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(device, "_measure", lambda shapes, speed, file: asked.extend(shapes))
    frame = pd.read_csv(FIRST_STUDY)
    made = with_device(config(tmp_path), table_from_frame(frame))
    assert made["device"] == str(tmp_path / "device.csv")
    assert len(asked) == 2 * 24
    names = [(shape["family"], shape["width"], shape["depth"]) for shape in asked]
    assert sorted(names[:24]) == sorted(names[24:])
    assert names[:24] == names[24:][::-1]
    from slm.model.config import ModelConfig
    from slm.model.counts import num_params

    params = frame.drop_duplicates(["family", "width", "depth"]).set_index(["family", "width", "depth"])["params_total"]
    for name, shape in zip(names, asked, strict=True):
        assert num_params(ModelConfig.from_dict(shape["model"])) == params[name]


def test_what_was_measured_is_not_measured_again_and_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.DataFrame({"family": "mobilellm", "width": [64, 96], "depth": [2, 3], "params_total": [2e5, 4e5],
                          "tokens": 1e6, "loss": [4.0, 3.8], "vocab_size": 256, "sequence_length": 16})  # fmt: skip

    def measure_without_compiling(shapes: list[dict], speed: dict, file: Path) -> None:
        calls.append(len(shapes))
        request = tmp_path / "request.json"
        request.write_text(json.dumps({"shapes": shapes, "speed": speed | {"compile": False, "repetitions": 2}}))
        measured_shapes.measure_shapes(request, file)

    calls: list[int] = []
    monkeypatch.setattr(device, "_measure", measure_without_compiling)
    table = table_from_frame(frame)
    made = with_device(config(tmp_path, "none.csv"), table)
    file = tmp_path / "device.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")  # as if it had been interrupted
    with_device(config(tmp_path, "none.csv"), table)
    with_device(config(tmp_path, "none.csv"), table)
    assert calls == [4, 1]
    found = match(read_device(made["device"]), table, "params_total").frame
    assert found["width"].tolist() == [64, 96] or found["width"].tolist() == [96, 64]
    assert (found["decode_tokens_per_second"] > 0).all()
    assert found["shape"].notna().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "mine"}, "mine is none of them"),
        ({"width": None}, "needs the columns width and depth in every row, and width is missing"),
        ({"width": 33}, "mobilellm 33x2 cannot be built"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    row = {"family": "mobilellm", "width": 64, "depth": 2, "params_total": 2e5, "tokens": 1e6, "loss": 4.0} | change
    frame = pd.DataFrame([{key: value for key, value in row.items() if value is not None}])
    with pytest.raises(ValueError, match=words):
        with_device(config(tmp_path, "none.csv"), table_from_frame(frame))
