"""One training run: from a config to a finished run directory. Start reading at `setup.py`, then `run.py`."""
