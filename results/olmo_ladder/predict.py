"""Predict the accuracies of OLMo 2 7B and 13B from the ladder: `python results/olmo_ladder/predict.py [TASK ...]`

Prints one row per task and model: the accuracy by the two-step law and by one law of N and D, with intervals, and the
measured one. Measured: the last evaluations in the same folder of the same repository as ladder.csv.
"""

import sys
from pathlib import Path

from slm.scaling import Settings, analyse, read_table

CHANCE = {"hellaswag": 0.25, "arc_easy": 0.25, "arc_challenge": 0.25, "piqa": 0.5, "csqa": 0.2, "socialiqa": 1 / 3,
          "openbookqa": 0.25, "winogrande": 0.5}  # fmt: skip
MODELS = {
    "7B": ({"N": 6887575552, "D": 3945065873408}, "peteish7_eval_anneal.csv",
           {"hellaswag": 0.8135, "arc_easy": 0.8455, "arc_challenge": 0.6195, "piqa": 0.8205, "csqa": 0.7265,
            "socialiqa": 0.5993, "openbookqa": 0.4940, "winogrande": 0.7680}),
    "13B": ({"N": 13202396160, "D": 5000080130048}, "peteish13_eval_final.csv",
            {"hellaswag": 0.8337, "arc_easy": 0.8695, "arc_challenge": 0.6297, "piqa": 0.8292, "csqa": 0.7420,
             "socialiqa": 0.6269, "openbookqa": 0.4780, "winogrande": 0.7932}),
}  # fmt: skip
"""Model -> its point, the file of its evaluation, and its accuracies; the tokens of 13B are from the paper, 5T."""


def main() -> None:
    table = read_table(Path(__file__).parent / "ladder.csv")
    points = [point for point, _, _ in MODELS.values()]
    print("| task | model | two steps | one law in N and D | measured |\n|---|---|---|---|---|")
    for task in sys.argv[1:] or CHANCE:
        settings = Settings(
            laws=("chinchilla",), bootstrap=0, calibration=0, predict=tuple(points), target=f"{task}_acc",
            target_kind="accuracy", chance=CHANCE[task], task_loss=f"{task}_bpb",
        )  # fmt: skip
        found = analyse(table, settings)
        (family,) = found.comparison["two_step"]["families"]
        law = found.comparison["primary"]["law"]
        direct = next(fit for fit in found.fits if fit["law"] == law and fit["loss"] == "least_squares")
        for index, (model, (_, _, measured)) in enumerate(MODELS.items()):
            chain, row = family["predictions"][index]["accuracy"], direct["predictions"][index]
            error = [None if row[end] is None else 1 - row[end] for end in ("value", "high", "low")]
            cells = [_cell(chain["centre"], chain["low"], chain["high"], measured[task]), _cell(*error, measured[task])]
            print(f"| {task} | {model} | {cells[0]} | {cells[1]} | {measured[task]:.3f} |", flush=True)


def _cell(value: float, low: float | None, high: float | None, measured: float) -> str:
    """`0.813 [0.773, 0.846]`, with a `!` if the measured accuracy is outside."""
    is_outside = (low is not None and measured < low) or (high is not None and measured > high)
    ends = ", ".join("open" if end is None else f"{end:.3f}" for end in (low, high))
    return f"{value:.3f} [{ends}]" + (" !" if is_outside else "")


if __name__ == "__main__":
    main()
