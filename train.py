"""Train a small language model from scratch: `python train.py`. `--help` shows every choice; the README explains."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from slm.command_line import MISTAKES, report, run_script
from slm.composition.resolvers import register

exit_codes: list[int] = []


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    """Train once; in a multirun, once per combination, each on its own."""
    try:
        exit_codes.append(run(config))
    except KeyboardInterrupt:
        print(
            "\ninterrupted: the same command and output_dir go on from the newest checkpoint, if any", file=sys.stderr
        )
        exit_codes.append(130)
    except MISTAKES as error:
        exit_codes.append(report(error))
    if exit_codes[-1] > 128:  # a signal is meant for all of a multirun
        sys.exit(exit_codes[-1])


def run(config: DictConfig) -> int:
    """Train one config; returns the exit code."""
    from slm.training.run import exit_code, train

    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    if multirun and any(item.startswith("output_dir=") for item in HydraConfig.get().overrides.task):
        raise ValueError(
            f"output_dir={config.output_dir} would be shared by all runs of -m: set hydra.sweep.dir instead"
        )
    OmegaConf.resolve(config)
    if multirun:
        result = train(config, alone=False)
        return 128 + result["signal"] if result.get("signal") else exit_code(result)
    # Lightning would start further processes from Hydra's own files, which a single run here does not write; with
    # Hydra's state gone it repeats this command line.
    HydraConfig.instance().cfg = None
    return exit_code(train(config))


if __name__ == "__main__":
    register()
    run_script(main, exit_codes)
