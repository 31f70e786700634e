"""Train a small language model from scratch: `python train.py`. `--help` lists every choice; the README explains."""

if __name__ == "__main__":  # before the imports below, which take half a second
    from slm.runtime.interrupts import end_at_interrupt, end_at_warning

    end_at_interrupt()
    end_at_warning()

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from slm.composition.help import register_help
from slm.composition.keys import explain_unknown_keys
from slm.composition.resolvers import in_multirun, register
from slm.composition.settings import KINDS, OPTIONAL_KINDS
from slm.runtime.command_line import MISTAKES, quick_imports, report, run_script
from slm.training.multirun import print_results

exit_codes: list[int] = []  # one for each run so far


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    """Train one config; Hydra calls this once for each combination of a multirun."""
    try:
        exit_codes.append(run(config))
    except KeyboardInterrupt:
        print("\ninterrupted: the same command and output_dir continue from the newest checkpoint", file=sys.stderr)
        exit_codes.append(130)
    except MISTAKES as error:
        exit_codes.append(report(error))
    if exit_codes[-1] > 128:  # a signal ends the whole multirun
        sys.exit(exit_codes[-1])
    if exit_codes[-1] and runs_in_another_process():  # the first process has no access to `exit_codes` of this one
        raise ValueError(f"a run of this multirun ended with exit code {exit_codes[-1]}: {config.output_dir}")


def runs_in_another_process() -> bool:
    """Return whether one of Hydra's launchers (joblib, ...) started this run of a multirun in another process."""
    return in_multirun() and not HydraConfig.get().launcher["_target_"].endswith(".BasicLauncher")


def run(config: DictConfig) -> int:
    """Train one config; returns the exit code."""
    from slm.training.setup import checked_settings, set_up

    overrides, is_multirun = HydraConfig.get().overrides.task, in_multirun()
    if is_multirun and any(item.startswith("output_dir=") for item in overrides):
        raise ValueError(f"all runs of -m would write to output_dir={config.output_dir}: set hydra.sweep.dir instead")
    settings = checked_settings(config, overrides)
    if not is_multirun:
        # Lightning would start further processes from Hydra's own files, which a single run does not write here.
        # Without Hydra's state, Lightning repeats this command line instead.
        HydraConfig.instance().cfg = None
    with quick_imports():
        plan = set_up(settings, is_multirun=is_multirun)
        if settings["dry_run"] == "plan":
            return 0
        import slm.training.imports  # noqa: F401
        from slm.training.run import exit_code, train

    result = train(plan)
    if is_multirun and result.get("signal"):  # ends the multirun, even if this run completed
        return 128 + result["signal"]
    return exit_code(result)


def start() -> None:
    """Start Hydra; for a key that does not exist, print our own message instead of Hydra's.

    At its end, however it ends, a multirun prints the results that it has.
    """
    try:
        with explain_unknown_keys("train"):
            main()
    finally:
        print_results()


if __name__ == "__main__":
    register()
    register_help("train")
    run_script(start, exit_codes, {**KINDS, **OPTIONAL_KINDS})
