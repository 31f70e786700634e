"""Do activations stay where they are when a model grows? The check that a parametrisation does what it says.

A few steps of training at each of several shapes, then the root mean square of what blocks put out, in the manner of
Tensor Programs V (arXiv:2203.03466, appendix D.1). Where it grows or vanishes with the width or the depth, one learning
rate cannot serve all sizes. `benchmarks/coord_check.py` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slm.model.config import ModelConfig
from slm.model.decoder import Decoder
from slm.training.optim import OPTIMIZERS
from slm.training.parametrization import make_rules, scale_initial_weights, with_multipliers

PLACES = {"quarter": 1 / 4, "half": 1 / 2, "last": 1.0}
"""Where in the depth block outputs are looked at, as a share of the uses of blocks."""


def shape_at(shape: ModelConfig, width: int, depth: int) -> ModelConfig:
    """`shape` at another width and depth: heads of the same size, all inner widths in proportion."""
    scaled: dict[str, int] = {}
    for name in ("num_heads", "num_kv_heads", "intermediate_size"):
        size, rest = divmod(getattr(shape, name) * width, shape.hidden_size)
        if rest or not size:
            raise ValueError(
                f"width {width} gives {getattr(shape, name) * width / shape.hidden_size:g} {name} for "
                f"{getattr(shape, name)} at model.hidden_size={shape.hidden_size}: take widths that give whole numbers"
            )
        scaled[name] = size
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
        tokens = _tokens(shape.vocab_size, seed + 1000 * step)
        decoder.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    outputs = _block_outputs(decoder, _tokens(shape.vocab_size, seed + 1000 * steps)[:, :-1])
    return {place: outputs[round(share * len(outputs)) - 1] for place, share in PLACES.items()}


def _tokens(vocab_size: int, seed: int, *, sequences: int = 8, length: int = 33) -> Tensor:
    """A language of a few likely successors a token, so that there is something to learn within ten steps."""
    rng = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(vocab_size, (sequences,), generator=rng)]
    for _ in range(length - 1):
        tokens.append((5 * tokens[-1] + torch.randint(4, (sequences,), generator=rng)) % vocab_size)
    return torch.stack(tokens, dim=1)


@torch.no_grad()
def _block_outputs(decoder: Decoder, tokens: Tensor) -> list[float]:
    """Root mean square of the output of each use of a block, in order."""
    found: list[float] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(output.square().mean().sqrt().item())

    handles = [block.register_forward_hook(note) for block in decoder.layers]
    decoder(tokens)
    for handle in handles:
        handle.remove()
    return found
