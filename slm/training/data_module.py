"""The corpus as Lightning wants it: a loader of all micro-batches that are left, from the step the run is at."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from slm.data import Corpus, train_loader
from slm.training.plan import Plan


class WholeRun:
    """Micro-batches that are left to train on, under the length of the whole run.

    Lightning counts batches from the start of the run, also in a continued one, so it must be told that length; without
    any it would fetch a batch ahead, and a continued run would lose it.
    """

    def __init__(self, loader: DataLoader[Tensor], length: int) -> None:
        self.loader, self.length = loader, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.loader)


class TokenData(L.LightningDataModule):
    """This process's share of each step's batch. `start_step` is the step of the checkpoint continued from, or 0."""

    def __init__(self, corpus: Corpus, plan: Plan, *, seed: int, start_step: int, num_workers: int) -> None:
        super().__init__()
        self.corpus, self.plan, self.seed = corpus, plan, seed
        self.start_step, self.num_workers = start_step, num_workers

    def train_dataloader(self) -> WholeRun:
        """Batches (micro_batch_size, sequence_length + 1) of token ids."""
        assert self.trainer is not None
        plan = self.plan
        loader = train_loader(
            self.corpus.train,
            sequence_length=plan.sequence_length,
            batch_size=plan.batch_size,
            seed=self.seed,
            start_step=self.start_step,
            num_steps=plan.steps,
            micro_batch_size=plan.micro_batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            num_workers=self.num_workers,
        )
        return WholeRun(loader, plan.steps * plan.accumulation)
