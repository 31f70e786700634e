"""Measure checkpoints: `python evaluate.py checkpoint=RUN`. `--help` shows every option; the README explains them."""

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
from slm.evaluation.config import KINDS, check_paths, check_settings, register
from slm.runtime.command_line import MISTAKES, report, run_script
from slm.runtime.extensions import load_extensions

exit_codes: list[int] = []  # filled by `main`, because Hydra drops what `main` returns


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Measure, sample from, talk with, or export the checkpoints."""
    try:
        exit_codes.append(run(config))
    except KeyboardInterrupt:
        hint = ""
        if config.prompt is None and config.prompt_file is None and config.export is None and not config.chat:
            hint = f": the same command with output_dir={config.output_dir} continues where it stopped"
        print(f"\ninterrupted{hint}", file=sys.stderr)
        exit_codes.append(130)
    except MISTAKES as error:
        exit_codes.append(report(error))


def run(config: DictConfig) -> int:
    """Check the settings and evaluate; return the exit code."""
    plain_config = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
    check_keys(plain_config, "evaluate", HydraConfig.get().overrides.task)
    load_extensions(plain_config)
    settings = check_settings(plain_config)
    check_paths(settings)
    if settings["chat"] or settings["prompt"] is not None or settings["prompt_file"] is not None:
        from slm.evaluation.chat import talk

        return talk(settings)
    from slm.evaluation.run import evaluate

    return evaluate(settings)


def start() -> None:
    """Run Hydra. Raises `ValueError` for a multirun here, because Hydra would write files before it called `main`."""
    if {"-m", "--multirun"} & set(sys.argv[1:]):
        raise ValueError("evaluate.py has no -m: give several checkpoints as checkpoints=[a,b]")
    with explain_unknown_keys("evaluate"):
        main()


if __name__ == "__main__":
    register()
    register_help("evaluate")
    run_script(start, exit_codes, KINDS)
