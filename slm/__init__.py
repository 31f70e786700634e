"""slm: train small language models from scratch, and measure honestly how architecture families scale.

The rooms are `slm.model`, `slm.data`, `slm.training`, `slm.checkpoints` and `slm.tracking`; importing `slm` alone
imports none of them, and no torch.
"""

__version__ = "0.1.0"
