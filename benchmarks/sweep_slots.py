"""Gain of a second slot, and overhead of a job.

    python benchmarks/sweep_slots.py [ROUNDS] [OVERRIDES]

Trains one small sweep on CPUs with launcher.slots=1 and 2 in turn, one thread per job, ROUNDS times (3 by default),
each in a fresh directory. OVERRIDES are those of sweep.py, such as `launcher.warm_start=false`. Needs two idle cores.

A job's seconds outside training are the time that it occupies a slot, `slots x wall / jobs`, minus the time of training
steps (`tokens_trained / tokens_per_second` of result.json). This includes everything else: the process that forks the
jobs, their start, corpus, validation, checkpoint, export, W&B's files, the master's polling, and a slot that is idle at
the end.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from slm.composition.resolvers import register
from slm.sweep.design import check_design
from slm.sweep.execute import execute
from slm.sweep.grid import make_plan

CONF = str(Path(__file__).parents[1] / "conf")
SMALL = ["sweep=quick", "sweep.grid.sizes=[2e5,3e5,4e5,6e5]", "sweep.budget.tokens=100_000"]


def main() -> None:
    rounds = int(sys.argv.pop(1)) if sys.argv[1:] and sys.argv[1].isdecimal() else 3
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("sweep", overrides=[*SMALL, "launcher.threads=1", "launcher.gpus_per_job=0", *sys.argv[1:]])
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    cells = make_plan(check_design(settings["sweep"])).cells

    def sweep(slots: int, count: int) -> tuple[float, float]:
        """Wall seconds of the first `count` cells, and seconds per job outside training."""
        with tempfile.TemporaryDirectory() as place:
            start = time.perf_counter()
            outcomes = execute(cells[:count], Path(place), settings["launcher"] | {"slots": slots})
            wall = time.perf_counter() - start
            wrong = [f"{name}: {outcome.why}" for name, outcome in outcomes.items() if outcome.status != "completed"]
            if wrong:
                sys.exit("\n".join(wrong))
            results = [json.loads((Path(place) / cell.name / "result.json").read_text()) for cell in cells[:count]]
        training = sum(result["tokens_trained"] / result["tokens_per_second"] for result in results)
        return wall, (slots * wall - training) / count

    sweep(1, 1)  # prepares the corpus and measures the peak
    found = [{slots: sweep(slots, len(cells)) for slots in (1, 2)} for _ in range(rounds)]
    for slots in (1, 2):
        walls, outside = zip(*(each[slots] for each in found), strict=True)
        range_of_walls = (
            f"{statistics.median(walls):.1f} s for {len(cells)} jobs ({min(walls):.1f} to {max(walls):.1f})"
        )
        print(f"slots={slots}  {range_of_walls}, {statistics.median(outside):.2f} s of a job outside training")
    ratios = [each[1][0] / each[2][0] for each in found]
    print(f"two slots are {statistics.median(ratios):.2f}x as fast ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
