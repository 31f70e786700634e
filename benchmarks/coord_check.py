"""Block outputs against width and depth under each parametrisation, as a table and a picture:

    python benchmarks/coord_check.py                          docs/coord_check.{csv,png}
    python benchmarks/coord_check.py --out DIR/NAME optim=muon model.layer_sharing=immediate model.num_repeats=2
    python benchmarks/coord_check.py --out DIR/NAME family=ssd

What follows the options are overrides of conf/train.yaml. Shapes are those of the family's rule, if one is given; else
`model` is the shape at the base width, and all its widths grow in proportion.
"""

import argparse
import time
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import pandas as pd
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from slm.composition.budget import model_config
from slm.composition.resolvers import register
from slm.model import ModelConfig
from slm.training.coord_check import shape_at, trained_activations

ROOT = Path(__file__).parents[1]
# Colour and thickness: where two agree, the thinner one lies on the other.
STYLES = {"standard": ("tab:red", 4.0), "mup": ("tab:blue", 2.2), "completep": ("black", 0.9)}
# Few ids: what is looked at are the blocks. There is no warm-up, so the rate is lower than that of a run.
SMALL = ["model.vocab_size=256", "optim.lr=1e-3"]
BASE = ["model.hidden_size=64", "model.num_heads=2", "model.num_kv_heads=1", "model.intermediate_size=192"]
BASE += ["model.num_layers=4"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "coord_check")
    options, overrides = parser.parse_known_args()
    table = measure(options, overrides)
    table.to_csv(options.out.with_suffix(".csv"), index=False, float_format="%.6g")
    draw(table, options, overrides)
    print(spread(table).to_string())


def measure(options: argparse.Namespace, overrides: list[str]) -> pd.DataFrame:
    register()
    base_width, base_depth = options.widths[0], options.depths[0]
    cells = [("width", width, base_depth) for width in options.widths]
    cells += [("depth", base_width, depth) for depth in options.depths]
    rows = []
    for name in STYLES:
        for along, width, depth in cells:
            settings, shape = composed(name, width, depth, overrides)
            base = {"base_width": base_width, "base_depth": base_depth, "base_head_dim": shape.head_width}
            start = time.perf_counter()
            for seed in range(options.seeds):
                rms = trained_activations(
                    shape, {"name": name, **base}, settings["optim"], steps=options.steps, seed=seed
                )
                common = {"parametrization": name, "along": along, "width": width, "depth": depth, "seed": seed}
                rows += [{**common, "place": place, "rms": value} for place, value in rms.items()]
            print(f"{name} {width} x {depth}: {time.perf_counter() - start:.1f} s", flush=True)
    return pd.DataFrame(rows)


def composed(parametrization: str, width: int, depth: int, overrides: list[str]) -> tuple[dict[str, Any], ModelConfig]:
    """The settings and the shape of a cell."""
    of_family = any(item.startswith("family=") for item in overrides)
    size = [f"width={width}", f"depth={depth}"] if of_family else BASE
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=[f"parametrization={parametrization}", *SMALL, *size, *overrides])
    settings = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
    shape = model_config(settings["model"])
    return settings, shape if of_family else shape_at(shape, width, depth)


def means(table: pd.DataFrame) -> pd.DataFrame:
    return table.groupby(["parametrization", "along", "place", "width", "depth"])["rms"].mean().reset_index()


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """Largest over smallest mean, along the width and along the depth."""
    ratio = means(table).groupby(["parametrization", "along", "place"])["rms"].agg(lambda rms: rms.max() / rms.min())
    return ratio.unstack(["along", "place"]).loc[list(STYLES)].round(2)


def draw(table: pd.DataFrame, options: argparse.Namespace, overrides: list[str]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained", sharey=True)
    styles = {"quarter": ":", "half": "--", "last": "-"}
    averages = means(table)
    for axis, along in zip(axes, ("width", "depth"), strict=True):
        for name, (color, thickness) in STYLES.items():
            for place, style in styles.items():
                line = averages.query("along == @along and parametrization == @name and place == @place")
                label = name if place == "last" else None
                axis.plot(line[along], line["rms"], style, color=color, linewidth=thickness, label=label)
        axis.set_xscale("log", base=2)
        axis.set_xticks(getattr(options, along + "s"), [str(size) for size in getattr(options, along + "s")])
        axis.set_yscale("log")
        axis.set_xlabel(f"{along} (base {getattr(options, along + 's')[0]})")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("RMS of block outputs")
    axes[0].legend(frameon=False)
    what = " ".join(overrides) or "default config"
    figure.suptitle(
        f"after {options.steps} steps, {what}: last block (solid), half (dashed) and quarter of the depth (dotted)",
        fontsize=9,
    )
    figure.savefig(options.out.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
