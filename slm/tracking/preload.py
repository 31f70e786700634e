"""Import W&B in a process that forks others; each of them gets a folder of its own for W&B's temporary files.

Importing W&B makes this folder, and the first process to end would delete it for all.
"""

import os

import wandb.sdk.launch.inputs.internal  # noqa: F401  (`wandb.init` imports it)
from wandb.sdk.data_types._private import MEDIA_TMP


def _make_own_folder() -> None:
    MEDIA_TMP._finalizer.detach()  # type: ignore[attr-defined]
    MEDIA_TMP.__init__("wandb-media")  # type: ignore[misc]  # in place, because other modules hold this object


os.register_at_fork(after_in_child=_make_own_folder)
