"""What TensorBoard shows of a directory of results, and which loggers the programs accept."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from slm.tracking import Record, check_logger, record_directory
from tests.composing import composed
from tests.evaluation.asked import asked
from tests.sweep import designs
from tests.tracking.offline import SETTINGS

EVERY_LOGGER = ("wandb", "tensorboard", "mlflow", "csv")
NEEDED = {"tensorboard": ["tensorboard"], "mlflow": ["mlflow", "alembic"]}


@pytest.mark.parametrize("logger", EVERY_LOGGER)
def test_every_program_takes_every_logger(logger: str) -> None:
    for module in NEEDED.get(logger, ()):
        pytest.importorskip(module)
    for settings in (
        composed(f"logger={logger}"),
        asked("checkpoint=x", f"logger={logger}"),
        designs.composed(f"logger={logger}"),
    ):
        check_logger(settings["logger"])
        assert settings["logger"]["wandb"] == (logger == "wandb")
        assert [name for name in ("tensorboard", "mlflow") if settings["logger"][name]] == [logger][: logger in NEEDED]


def test_tensorboard_has_numbers_tables_and_figures_of_each_record(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    picture = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    matplotlib.image.imsave(tmp_path / "curve.png", picture)
    for value in (1.5, 2.5):
        record_directory(
            Record(
                folder=tmp_path,
                kind="analysis",
                name="a",
                config={"logger": SETTINGS | {"wandb": False, "tensorboard": True}},
                tables={"exponents": (["family", "value"], [["a|b", value], ["c", None]])},
                images=[tmp_path / "curve.png"],
                summary={"exponent/a/power/alpha": value, "verdict": "a is better"},
                files=[],
            )
        )
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    scalars = found.Scalars("summary/exponent/a/power/alpha")
    assert [(event.step, event.value) for event in scalars] == [(0, 1.5), (1, 2.5)]
    tables = [event.tensor_proto.string_val[0].decode() for event in found.Tensors("tables/exponents/text_summary")]
    assert tables[1] == "| family | value |\n| --- | --- |\n| a\\|b | 2.5 |\n| c |  |"
    assert found.Tensors("summary/verdict/text_summary")[0].tensor_proto.string_val == [b"a is better"]
    image = found.Images("figures/curve")[0]
    (tmp_path / "shown.png").write_bytes(image.encoded_image_string)
    shown = matplotlib.image.imread(tmp_path / "shown.png")[..., :3]
    np.testing.assert_allclose(shown * 255, picture, atol=1)
