"""What the scripts' configs are, composed as Hydra does for the scripts."""

from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from slm.composition.resolvers import register
from tests.running import ROOT

# name: layers, hidden, FFN, heads, KV heads, parameters, non-embedding (MobileLLM, table 10; the models' cards)
PUBLISHED = {
    "mobilellm_125m": (30, 576, 1536, 9, 3, 124_635_456, 106_203_456),
    "mobilellm_350m": (32, 960, 2560, 15, 5, 345_355_200, 314_635_200),
    "mobilellm_600m": (40, 1152, 3072, 18, 6, 603_188_352, 566_324_352),
    "mobilellm_1b": (54, 1280, 3584, 20, 5, 1_005_461_760, 964_501_760),
    "mobilellm_1.5b": (54, 1600, 4352, 25, 5, 1_511_188_800, 1_459_988_800),
    "mobilellm_ls_125m": (30, 576, 1536, 9, 3, 124_635_456, 106_203_456),
    "mobilellm_ls_350m": (32, 960, 2560, 15, 5, 345_355_200, 314_635_200),
    "smollm2_135m": (30, 576, 1536, 9, 3, 134_515_008, 106_203_456),
}


def composed(*overrides: str, script: str = "train") -> dict:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(script, overrides=list(overrides))
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def choice(group: str, name: str, /, **changes: Any) -> dict[str, Any]:
    """conf/GROUP/NAME.yaml, above the files of the group from which it starts, with changes."""
    own: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / group / f"{name}.yaml"))
    for parent in own.pop("defaults", []):
        if parent != "_self_":
            own = choice(group, parent) | own
    return own | changes


def choices(group: str) -> list[str]:
    return sorted(path.stem if path.suffix == ".yaml" else path.name for path in (ROOT / "conf" / group).glob("*.yaml"))
