"""W&B imported before a fork: each process has its own folder for temporary files."""

import subprocess
import sys
from pathlib import Path

CODE = """
import os
import slm.tracking.preload
from wandb.sdk.data_types._private import MEDIA_TMP

own = MEDIA_TMP.name
if (child := os.fork()) == 0:
    assert MEDIA_TMP.name != own and os.path.isdir(MEDIA_TMP.name)
    MEDIA_TMP.cleanup()
    os._exit(os.path.isdir(MEDIA_TMP.name))
assert os.waitpid(child, 0)[1] == 0
assert os.path.isdir(own)
print(own)
"""


def test_a_forked_process_deletes_only_its_own_folder() -> None:
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    assert not Path(run.stdout.strip()).exists()  # the first process has deleted its own at its end
