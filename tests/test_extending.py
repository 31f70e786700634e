"""The files of docs/extending, added from outside the package as docs/extending.md says."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from slm.model import Decoder, KVCache, ModelConfig, mixers
from slm.model.counts import flops_per_token, num_params, state_bytes
from slm.model.decoding import compiled_logits
from slm.runtime import extensions
from tests.model.shapes import EXACT, randomized, small, tokens_of, uncompiled
from tests.running import ROOT, run_script
from tests.sweep.small import OVERRIDES

EXTENDING = ROOT / "docs" / "extending"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], list[str]]]:
    """Loads an extension into this process, until the test ends."""
    monkeypatch.setattr(extensions, "_loaded", [])
    with patch.dict(mixers.MIXERS):
        yield lambda path: extensions.load_extensions({"extensions": [str(path)]})


@pytest.fixture
def decoder(load: Callable) -> Decoder:
    load(EXTENDING / "convolution.py")
    return randomized(small(mixer_pattern="CCF", conv_kernel=3), torch.float64)


def test_the_mixer_is_lfm2s_as_transformers_computes_it(decoder: Decoder) -> None:
    ours = decoder.layers[0].self_attn.float()
    theirs = Lfm2ShortConv(Lfm2Config(hidden_size=48, conv_L_cache=3, num_hidden_layers=1, layer_types=["conv"]), 0)
    weights = ours.state_dict()
    taps = weights.pop("taps")
    theirs.load_state_dict(weights | {"conv.weight": taps.T[:, None]})
    x = torch.randn(2, 21, 48)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, None), theirs(x), rtol=1e-5, atol=1e-5)


def test_decoding_and_packed_documents_equal_the_forward_pass(decoder: Decoder) -> None:
    tokens, documents = tokens_of(decoder.config, 23, batch=1), torch.tensor([[0] * 2 + [1] * 12 + [2] * 9])
    cache = KVCache(decoder.config, batch_size=1, max_length=23, dtype=torch.float64)
    with torch.inference_mode(), uncompiled():
        expected = decoder(tokens)[0]
        next_logits = compiled_logits(decoder)
        found = [next_logits(piece, cache) for piece in tokens.split([4, *[1] * 15, 4], dim=1)]
        torch.testing.assert_close(torch.stack(found), expected[[*range(3, 19), 22]], **EXACT)
        alone = torch.cat([decoder(piece)[0] for piece in tokens.split([2, 12, 9], dim=1)])
        torch.testing.assert_close(decoder(tokens, documents_BT=documents)[0], alone, **EXACT)


def test_counts_are_those_of_the_module(decoder: Decoder) -> None:
    config = decoder.config
    assert num_params(config) == sum(parameter.numel() for parameter in decoder.parameters())
    assert state_bytes(config) == KVCache(config, batch_size=1, max_length=9).nbytes - 2 * 9 * 2 * 8 * 4
    convolutions = small(mixer_pattern="C")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Decoder(convolutions)(tokens_of(convolutions, 20, batch=1))
    assert 3 * counter.get_total_flops() == 20 * flops_per_token(convolutions, 20)


def test_mixer_family_and_data_source_are_swept_and_measured(text_file: Path, cache_dir: Path, tmp_path: Path) -> None:
    ours = ["--config-dir", str(EXTENDING)]
    mixer, source = EXTENDING / "convolution.py", EXTENDING / "lines.py"
    overrides = [item for item in OVERRIDES if item != "data=local"]
    overrides += ["data=lines", f"data.file={text_file}", f"cache_dir={cache_dir}"]
    sweep = [
        *("sweep.families=[convolution]", "sweep.grid.sizes=null", "sweep.grid.shapes=[32x3,64x3,96x3]"),
        *("sweep.budget.tokens=5120", "logger=csv", "analysis=quick", "analysis.laws=[power]", "analysis.bootstrap=0"),
        "sweep.overrides=[" + ",".join(f"'{item}'" for item in overrides) + "]",
        f"output_dir={tmp_path / 'sweep'}",
        f"extensions=[{mixer},{source}]",
    ]
    swept = run_script([sys.executable, str(ROOT / "sweep.py"), *ours, *sweep], timeout=240)
    assert swept.returncode == 0, swept.stderr
    table = pd.read_csv(tmp_path / "sweep" / "runs.csv")
    assert list(table["family"]) == ["convolution"] * 3
    assert {fit["law"] for fit in json.loads((tmp_path / "sweep" / "fits.json").read_text())} == {"power"}

    run = tmp_path / "sweep" / "runs" / table["run_id"][0]
    config = OmegaConf.load(run / "config.yaml")
    assert config.extensions == [str(mixer), str(source)]
    assert config.model.mixer_pattern == "CCF"
    command = [sys.executable, str(ROOT / "evaluate.py"), f"checkpoint={run}", "logger=csv", "speed.enabled=false"]
    command += [f"output_dir={tmp_path / 'evaluation'}", f"cache_dir={cache_dir}"]
    refused = run_script(command)
    assert refused.returncode == 1
    assert "those of mixers in extensions=[FILE.py]" in refused.stderr
    measured = run_script([*command, f"extensions=[{mixer},{source}]"])
    assert measured.returncode == 0, measured.stderr
    (entry,) = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert entry["perplexity_results"][-1]["loss"] == pytest.approx(table["loss"][0], rel=1e-3)


def test_a_law_of_ones_own_recovers_the_parameters_that_made_the_table(tmp_path: Path) -> None:
    truth = {"E": 1.7, "A": 300.0, "B": 4.0, "a": 0.35, "b": 0.8}
    N, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e9, 5), [2, 4, 8, 16, 32]))
    rows = {"family": "mine", "params_total": N, "tokens": 1e9, "depth": d}
    loss = truth["E"] + truth["A"] / N ** truth["a"] + truth["B"] / d ** truth["b"]
    pd.DataFrame(rows | {"loss": loss}).to_csv(tmp_path / "table.csv", index=False)
    settings = [f"extensions=[{EXTENDING / 'depth_law.py'}]", "analysis=quick", "analysis.laws=[size_depth]"]
    settings += [f"runs={tmp_path}/table.csv", "analysis.bootstrap=0", "logger=csv", f"output_dir={tmp_path}/out"]
    done = run_script([sys.executable, str(ROOT / "sweep.py"), *settings])
    assert done.returncode == 0, done.stderr
    fits = [fit for fit in json.loads((tmp_path / "out" / "fits.json").read_text()) if fit["target"] == "loss"]
    assert fits[0]["law"] == "size_depth"
    assert fits[0]["params"] == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", r"^extensions: .*broken\.py cannot be imported: ZeroDivisionError: division by zero$"),
        (
            "from slm.model.mixers import register_mixer\nregister_mixer('F', type('Mine', (), {}))",
            r"ValueError: register_mixer\('F', Mine\): give one letter, none of F, S, P, L, G$",
        ),
        (
            "from slm.model.mixers import register_mixer\nregister_mixer('X', dict)",
            r"register_mixer\('X', dict\): a mixer is a subclass of slm\.model\.mixers\.base\.Mixer$",
        ),
        (
            "from slm.model.mixers import register_mixer\nfrom slm.model.mixers.base import Mixer\n"
            "class Mine(Mixer):\n    def forward(self, x): return x\nregister_mixer('X', Mine)",
            r"has no step, num_params, mixing_flops, state_shapes or make_memory of its own; docs/extending\.md says",
        ),
        (
            "from slm.data.sources import register_source\nregister_source('hub', None)",
            r"register_source\('hub'\): give another name than those of slm, pydocs, local, hub, chat$",
        ),
    ],
)
def test_an_extension_that_does_not_load_is_named(text: str, message: str, load: Callable, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "broken.py")


def test_an_unknown_letter_says_where_it_may_come_from() -> None:
    with pytest.raises(ValueError, match=r"mixer_pattern='CF' must be .* those of mixers in extensions=\[FILE\.py\]$"):
        ModelConfig(**small().to_dict() | {"mixer_pattern": "CF"})
