"""Block outputs against width and depth under each parametrization, as a table and a picture:

    python benchmarks/coord_check.py                          docs/coord_check.{csv,png}
    python benchmarks/coord_check.py --out DIR/NAME optim=muon model.layer_sharing=immediate model.num_repeats=2
    python benchmarks/coord_check.py --out DIR/NAME family=ssd

Arguments after the options are overrides of conf/train.yaml. If a family is given, shapes follow its rule; else `model`
is the shape at the base width, and all its widths grow in proportion.

The coordinate check of Tensor Programs V (arXiv:2203.03466, appendix D.1): a few steps of training at each shape, then
the root mean square of the blocks' outputs. If it grows or vanishes with the size, one learning rate cannot serve all
sizes. tests/training/test_parametrization.py asserts what this script draws.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from slm.composition.budget import model_config
from slm.composition.resolvers import register
from slm.model import Decoder, ModelConfig
from slm.report.style import DPI, INK, PALETTE, log_axis, panels, style
from slm.training.optim import OPTIMIZERS
from slm.training.parametrization import make_rules, scale_initial_weights, with_multipliers

ROOT = Path(__file__).parents[1]
# Colour and line width: where two lines agree, the thinner one is drawn over the thicker one.
STYLES = {"standard": (PALETTE[1], 4.0), "mup": (PALETTE[0], 2.2), "completep": (INK, 0.9)}
# Few ids, since only blocks are measured. The rate is lower than that of a run, since there is no warm-up.
SMALL = ["model.vocab_size=256", "optim.lr=1e-3"]
BASE = ["model.hidden_size=64", "model.num_heads=2", "model.num_kv_heads=1", "model.intermediate_size=192"]
BASE += ["model.num_layers=4"]
# Depths at which block outputs are measured, as a share of the uses of blocks.
PLACES = {"quarter": 1 / 4, "half": 1 / 2, "last": 1.0}


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
    """Settings and shape of a cell."""
    of_family = any(item.startswith("family=") for item in overrides)
    size = [f"width={width}", f"depth={depth}"] if of_family else BASE
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=[f"parametrization={parametrization}", *SMALL, *size, *overrides])
    settings = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
    shape = model_config(settings["model"])
    return settings, shape if of_family else shape_at(shape, width, depth)


def shape_at(shape: ModelConfig, width: int, depth: int) -> ModelConfig:
    """`shape` at another width and depth, with heads of the same size and all inner widths in proportion."""
    scaled: dict[str, int] = {}
    for name in ("num_heads", "num_kv_heads", "intermediate_size"):
        scaled[name], rest = divmod(getattr(shape, name) * width, shape.hidden_size)
        if rest or not scaled[name]:
            raise ValueError(f"width {width} gives no whole number of {name}")
    sizes = {"hidden_size": width, "num_layers": depth, "head_dim": shape.head_width, **scaled}
    return ModelConfig.from_dict(shape.to_dict() | sizes)


def trained_activations(
    shape: ModelConfig, parametrization: Mapping[str, Any], optim: Mapping[str, Any], *, steps: int, seed: int
) -> dict[str, float]:
    """Root mean square of block outputs at `PLACES` after `steps` steps at the full learning rate."""
    rules = make_rules(parametrization, shape)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = Decoder(with_multipliers(parametrization, shape))
    scale_initial_weights(decoder, rules)
    optimizer = OPTIMIZERS[optim["name"]](decoder, optim, rules)
    for step in range(steps):
        tokens = make_tokens(shape.vocab_size, seed + 1000 * step)
        decoder.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    outputs = block_outputs(decoder, make_tokens(shape.vocab_size, seed + 1000 * steps)[:, :-1])
    return {place: outputs[round(share * len(outputs)) - 1] for place, share in PLACES.items()}


def make_tokens(vocab_size: int, seed: int, *, sequences: int = 8, length: int = 33) -> Tensor:
    """Sequences in which each token has few likely successors, so that ten steps suffice to learn something."""
    rng = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(vocab_size, (sequences,), generator=rng)]
    for _ in range(length - 1):
        tokens.append((5 * tokens[-1] + torch.randint(4, (sequences,), generator=rng)) % vocab_size)
    return torch.stack(tokens, dim=1)


@torch.no_grad()
def block_outputs(decoder: Decoder, tokens: Tensor) -> list[float]:
    """Root mean square of the output of each use of a block, in order."""
    outputs: list[float] = []

    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs.append(output.square().mean().sqrt().item())

    handles = [block.register_forward_hook(record) for block in decoder.layers]
    decoder(tokens)
    for handle in handles:
        handle.remove()
    return outputs


def means(table: pd.DataFrame) -> pd.DataFrame:
    return table.groupby(["parametrization", "along", "place", "width", "depth"])["rms"].mean().reset_index()


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """Ratio of the largest to the smallest mean, over widths and over depths."""
    ratio = means(table).groupby(["parametrization", "along", "place"])["rms"].agg(lambda rms: rms.max() / rms.min())
    return ratio.unstack(["along", "place"]).loc[list(STYLES)].round(2)


def draw(table: pd.DataFrame, options: argparse.Namespace, overrides: list[str]) -> None:
    what = " ".join(overrides) or "default config"
    title = f"RMS of block outputs after {options.steps} steps, {what}: "
    title += "last block (solid), half (dashed) and quarter of the depth (dotted)"
    dashes = {"quarter": ":", "half": "--", "last": "-"}
    averages = means(table)
    with style():
        figure, axes = panels(2, title, ncols=2, width=4.4, height=3.2)
        for axis, along in zip(axes, ("width", "depth"), strict=True):
            for name, (colour, thickness) in STYLES.items():
                for place, dash in dashes.items():
                    line = averages.query("along == @along and parametrization == @name and place == @place")
                    label = name if place == "last" else None
                    axis.plot(line[along], line["rms"], dash, color=colour, lw=thickness, label=label)
            sizes = getattr(options, along + "s")
            log_axis(axis.yaxis, averages["rms"].min() / 1.2, averages["rms"].max() * 1.2, as_counts=False)
            axis.set_xscale("log", base=2)
            axis.set_xticks(sizes, labels=list(map(str, sizes)))
            axis.set_xticks([], minor=True)
            axis.set_xlabel(f"{along} (base {sizes[0]})")
        axes[0].set_ylabel("RMS of block outputs")
        axes[0].legend(frameon=False)
        figure.savefig(options.out.with_suffix(".png"), dpi=DPI)


if __name__ == "__main__":
    main()
