"""Muon for hidden matrices and AdamW for everything else, as one optimizer.

Muon (K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): the update of a matrix is its Nesterov momentum
with all singular values brought near 1, by five Newton-Schulz iterations of a quintic instead of an SVD. The update is
scaled by 0.2 sqrt(max(rows, columns)) (arXiv:2502.16982, eq. 4). It then has the root mean square of an AdamW update,
so one learning rate and one weight decay serve Muon and AdamW.

Notable: matrices of one shape are orthogonalized in one batched product. A bad step (`found_inf`) is undone on the
device. Sharded matrices (DTensor) are gathered for the iterations, and each process keeps its own part of the result.
`torch.optim.Muon` (torch 2.9 and later) does none of these; the tests compare with it. The AdamW step is torch's.

Legend: N matrices of one shape, R rows, C columns.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim.adamw import adamw

from slm.runtime.machine import native_bfloat16

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c in x -> a x + b x^3 + c x^5 (Jordan et al. 2024). Five iterations take singular values from 0.002 to 1 into
[0.68, 1.21]. A polynomial that converges to 1 would need more iterations for small singular values."""
ADAMW_RMS = 0.2
"""Typical root mean square of an AdamW update at learning rate 1 (arXiv:2502.16982, section 2.2)."""
MAX_BATCH_NUMBERS = 2**26
"""Maximum count of matrix elements in one batched product, to limit the memory of the iterations."""


@torch.no_grad()
def orthogonalize(x_NRC: Tensor, iterations: int) -> Tensor:
    """Replace each matrix's SVD U S V^T by U S' V^T with S' near 1, in the precision of the machine's fast matmuls."""
    is_tall = x_NRC.shape[1] > x_NRC.shape[2]
    x = x_NRC.mT if is_tall else x_NRC  # the Gram matrix of the shorter side is the smaller one
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # makes every singular value at most 1
    if x.dtype == torch.float32 and native_bfloat16(x.device.type):
        x = x.bfloat16()
    a, b, c = QUINTIC
    for _ in range(iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a X + (b G + c G^2) X
    return (x.mT if is_tall else x).to(x_NRC.dtype)


class Muon(torch.optim.Optimizer):
    """Takes Muon's step in groups marked `orthogonal`, AdamW's step in others. Both steps decay the weights.

    Each group has `lr`, `weight_decay`, `eps` (AdamW's) and `orthogonal`. Orthogonal groups hold matrices only.
    """

    found_inf: Tensor | None = None
    """A scalar on the device: 1 if the next step must change nothing (see `slm.training.optim.skip_if`)."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, betas: tuple[float, float], momentum: float, iterations: int
    ) -> None:
        # `fused` makes torch keep step counts on the device when it loads a state.
        super().__init__(groups, {"betas": betas, "momentum": momentum, "iterations": iterations, "fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all groups. The closure, if any, computes gradients and sets `found_inf`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.found_inf is not None and self.found_inf.device.type == "cpu" and self.found_inf > 0:
            return loss
        for group in self.param_groups:
            group_with_grads = {**group, "params": [p for p in group["params"] if p.grad is not None]}
            if group["orthogonal"]:
                self._step_muon(group_with_grads)
            else:
                self._step_adamw(group_with_grads)
        return loss

    def _step_muon(self, group: dict[str, Any]) -> None:
        matrices_by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in group["params"]:
            matrices_by_shape.setdefault(p.shape, []).append(p)
        for shape, matrices in matrices_by_shape.items():
            batch_size = max(1, MAX_BATCH_NUMBERS // shape.numel())
            for start in range(0, len(matrices), batch_size):
                self._step_batch(group, matrices[start : start + batch_size])

    def _step_batch(self, group: dict[str, Any], matrices: list[Tensor]) -> None:
        """Update with decoupled decay: W <- (1 - lr wd) W - lr 0.2 sqrt(max(R, C)) orthogonalize(momentum)."""
        share = self._share_of_step(matrices[0].device)
        momenta = [self._advance_momentum(p, group["momentum"], share) for p in matrices]
        updates_NRC = orthogonalize(torch.stack(momenta), group["iterations"])
        updates_NRC *= group["lr"] * ADAMW_RMS * max(matrices[0].shape) ** 0.5 * share
        for p, update in zip(matrices, updates_NRC, strict=True):
            local_part(p).mul_(1 - group["lr"] * group["weight_decay"] * share).sub_(_shard_like(update, p))

    def _share_of_step(self, device: torch.device) -> Tensor | float:
        """1, or 0 if the step must change nothing; a tensor where the host would have to wait for the device."""
        if self.found_inf is None or device.type == "cpu":  # a bad step on a CPU does not get here
            return 1.0
        return 1.0 - (self.found_inf.to(device) > 0).float()

    def _advance_momentum(self, p: Tensor, momentum: float, share: Tensor | float) -> Tensor:
        """Advance the momentum buffer. Returns Nesterov's momentum, gathered from all shards."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        buffer, grad = local_part(state["momentum_buffer"]), local_part(p.grad)
        if isinstance(share, Tensor):  # a bad step may have a gradient that is not finite
            grad = torch.where(share > 0, grad, 0.0)
        buffer.lerp_(grad, (1 - momentum) * share)
        return _gather_like(grad.lerp(buffer, momentum), p)

    def _step_adamw(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if not self.state[p]:
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                exp_avg, exp_avg_sq = (torch.zeros_like(p, memory_format=torch.preserve_format) for _ in range(2))
                self.state[p] = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        states = [self.state[p] for p in group["params"]]
        beta1, beta2 = group["betas"]
        adamw(
            group["params"],
            [p.grad for p in group["params"]],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],  # the largest second moments, for AMSGrad only
            [state["step"] for state in states],
            fused=True,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def local_part(x: Tensor) -> Tensor:
    """Return this process's part of `x` if `x` is sharded, else `x`. Writing to the part writes to `x`."""
    return x.to_local() if isinstance(x, DTensor) else x


def _gather_like(part: Tensor, reference: Tensor) -> Tensor:
    """Return the full matrix from the parts of all processes, which are sharded like `reference`."""
    if not isinstance(reference, DTensor):
        return part
    mesh, placements = reference.device_mesh, reference.placements
    return DTensor.from_local(part, mesh, placements, shape=reference.shape, stride=reference.stride()).full_tensor()


def _shard_like(matrix: Tensor, reference: Tensor) -> Tensor:
    """Return this process's part of a full matrix, sharded like `reference`, without communication."""
    if not isinstance(reference, DTensor):
        return matrix
    mesh = reference.device_mesh
    replicated = DTensor.from_local(matrix, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=reference.placements).to_local()
