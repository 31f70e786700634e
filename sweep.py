"""Train a grid of families and analyse it: `python sweep.py`. `--help` lists the settings; the README explains them."""

if __name__ == "__main__":  # before the imports below, which take half a second
    from slm.runtime.interrupts import end_at_interrupt

    end_at_interrupt()

import sys
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from slm.composition.help import register_help
from slm.composition.keys import check_keys, explain_unknown_keys
from slm.composition.resolvers import register
from slm.runtime.command_line import MISTAKES, report, run_script
from slm.runtime.extensions import load_extensions
from slm.sweep.config import KINDS, check_settings
from slm.sweep.design import check_design
from slm.sweep.grid import make_plan

exit_codes: list[int] = []


@hydra.main(version_base="1.3", config_path="conf", config_name="sweep")
def main(config: DictConfig) -> None:
    """Train one sweep, or analyse one table of runs."""
    try:
        exit_codes.append(run(config))
    except KeyboardInterrupt as error:
        print(f"\n{str(error) or 'interrupted: the same command repeats the analysis'}", file=sys.stderr)
        exit_codes.append(130)
    except MISTAKES as error:
        exit_codes.append(report(error))


def run(config: DictConfig) -> int:
    """Check the settings, then train or analyse; returns the exit code."""
    resolved = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
    overrides = HydraConfig.get().overrides.task
    check_keys(resolved, "sweep", overrides)
    load_extensions(resolved)
    settings = check_settings(resolved, overrides)
    if settings["runs"] is None:
        plan = make_plan(check_design(settings["sweep"]))  # before the next import, which loads scipy in over a second
        from slm.sweep.run import run_sweep

        return run_sweep(settings, plan)
    from slm.analysis.run import analyse_runs
    from slm.sweep.device import with_device

    return analyse_runs(settings, with_device)


def start() -> None:
    """Run `main` with Hydra. Raises `ValueError` for Hydra's --multirun, which sweep.py does not support."""
    if {"-m", "--multirun"} & set(sys.argv[1:]):
        raise ValueError("sweep.py has no -m: start it once for each sweep, or once for each table that is analysed")
    with explain_unknown_keys("sweep"):
        main()


if __name__ == "__main__":
    register()
    register_help("sweep")
    run_script(start, exit_codes, KINDS)
