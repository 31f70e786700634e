"""What documents change in the chunkwise form of a recurrence: who sees whom in a chunk, and what the state carries.

Legend: B batch, T tokens, n chunks of c tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slm.model.positions import starts_in_blocks


class ChunkDocuments(NamedTuple):
    """All bool; made by `documents_in_chunks`."""

    before_Bncc: Tensor
    """(query, key): whether the key is before the query's document."""
    reads_Bnc: Tensor
    """Whether the token's document began before the chunk, so that the state before the chunk is of it."""
    writes_Bnc: Tensor
    """Whether the token's document is still open at the chunk's end, so that the state after the chunk has it."""

    @property
    def carries_Bn(self) -> Tensor:
        """Whether the state before a chunk goes on into the state after it: one document spans all of the chunk."""
        return self.reads_Bnc[..., -1]


def documents_in_chunks(starts_BT: Tensor, n: int, c: int) -> ChunkDocuments:
    """Compares positions with where documents start; what fills up the last chunk belongs to the last document."""
    starts_Bnc = starts_in_blocks(starts_BT, n, c)
    at_nc = torch.arange(n * c, device=starts_BT.device).view(n, c)
    return ChunkDocuments(
        at_nc[:, None] < starts_Bnc[..., None], starts_Bnc < at_nc[:, :1], at_nc >= starts_Bnc[..., -1:]
    )
