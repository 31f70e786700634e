"""One run: config -> corpus -> model -> fit -> run directory. `train` is the whole of it."""
