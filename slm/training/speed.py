"""Measurements before a run: the speed of the model on this machine, and the matmul peak for computing MFU."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from slm.model.decoder import Decoder
from slm.runtime.files import read_json_object, write_json
from slm.runtime.machine import peak_memory_bytes, reset_peak_memory, synchronize
from slm.runtime.words import duration
from slm.training.distillation import Teacher
from slm.training.hardware import Hardware, autocast
from slm.training.journal import Journal
from slm.training.module import LanguageModel
from slm.training.plan import Plan, with_smaller_passes
from slm.training.process import is_first_process, say

MIN_PASSES = 300
"""An uncompiled run with fewer passes is not measured, because measuring takes two or three passes. A compiled run is
always measured, so that its clock starts after compilation."""
MAX_FIRST_PASS_SECONDS = 120.0
"""If the first pass takes longer, it is the only one measured, although its time includes compilation."""
SHORT_PASS_SECONDS = 0.3
"""A pass after the first that takes less time is measured twice, because a short one is easily disturbed."""
LONG_RUN_SECONDS = 3600
PEAK_SECONDS = 0.5
"""How long the matmuls of one size are measured."""
TEST_SECONDS = 0.1
"""How long a stored peak is tested."""
MAX_MATMUL_SECONDS = 1.0
"""A size is not measured if a single matmul would take longer than this."""

DATASHEET_TFLOPS = {
    "B200": 2250.0, "H200 NVL": 835.5, "H200": 989.4, "H100 PCIe": 756.5, "H100 NVL": 835.5, "H100": 989.4,
    "A100": 311.9, "L40S": 362.1, "L4": 121.0, "A10": 125.0, "A6000": 154.8, "RTX 3090": 71.0, "RTX 4090": 165.2,
    "RTX 5090": 209.5, "V100-PCIE": 112.0, "V100": 125.0, "T4": 65.0,
}  # fmt: skip
"""Part of a GPU's name -> its dense 16-bit matmul peak with float32 accumulation in TFLOP/s, from NVIDIA's data sheets.
The first entry that matches counts. "H100" and "V100" without a suffix are the GPUs on SXM boards."""


def datasheet_peak(hardware: Hardware) -> float | None:
    """Return the peak FLOP/s of a GPU from its data sheet; None if it is not in the table or matmuls are not 16-bit."""
    if hardware.accelerator != "cuda" or hardware.matmul_dtype.itemsize != 2:
        return None
    for name, tflops in DATASHEET_TFLOPS.items():  # another suffix, as in A10G or RTX 3090 Ti, is another GPU
        if re.search(rf"\b{name}(?!\w)(?! Ti| D\b| Laptop)", hardware.device_name):
            return 1e12 * tflops
    return None


def measure_run(
    plan: Plan, decoder: Decoder, teacher: Teacher | None, start_step: int, strategy: Strategy | None = None
) -> tuple[Plan, float]:
    """Print the speed of the run and how long it will take from `start_step` on.

    Returns the plan, with smaller passes if the planned passes did not fit the device, and the matmul peak of one
    device in FLOP/s. If `strategy` is given, all processes of the run call this, and each measures its own device. The
    peak is then the mean over the devices, and the slowest device sets the speed.
    """
    hardware = plan.hardware
    peak = matmul_peak(hardware, plan.cache_dir) if strategy is None else _mean_peak(plan, strategy)
    num_passes = (plan.steps - start_step) * plan.accumulation
    should_measure = plan.settings["dry_run"] or hardware.compile or num_passes >= MIN_PASSES
    should_test_memory = hardware.accelerator == "cuda"  # so far, the memory of a pass is only an estimate
    if not (should_measure or should_test_memory):
        return plan, peak
    say("speed        measuring ...")
    # Tokens per second and bytes of one device.
    plan, (speed, memory) = _measure_fitting(decoder, plan, teacher, strategy)
    if strategy is None:
        peak = matmul_peak(hardware, plan.cache_dir, above=speed * plan.token_flops)
    # Speeds of GPUs, or of processes that measure at the same time, add up. A lone process on a CPU uses all cores, so
    # it is as fast as all processes together.
    num_devices = hardware.world_size if hardware.accelerator == "cuda" or strategy is not None else 1
    if strategy is not None:
        own_numbers = torch.tensor([-speed, memory or 0], dtype=torch.float64, device=strategy.root_device)
        negative_speed, memory = strategy.reduce(own_numbers, reduce_op="max").tolist()
        speed = -negative_speed  # of the slowest device
    padded_tokens = (plan.batch_size + plan.padding) * plan.sequence_length
    seconds = (plan.steps - start_step) * padded_tokens / (speed * num_devices)
    gpu_peak = datasheet_peak(hardware)
    share_text = f" ({speed * plan.token_flops / gpu_peak:.0%} of the data sheet peak)" if gpu_peak else ""
    memory_text = f", {memory / 1e9:.2f} GB of memory held" if memory else ""
    say(
        f"speed        {speed * num_devices:,.0f} tokens/s measured here, MFU {speed * plan.token_flops / peak:.0%} of "
        f"{peak * num_devices / 1e9:,.0f} GFLOP/s{share_text}{memory_text}",
        f"duration     about {duration(seconds)} of training",
    )
    if seconds > LONG_RUN_SECONDS:
        say(
            "             that is over an hour: Ctrl-C saves a checkpoint, and the same command with output_dir "
            f"continues from it; train.tokens={plan.batch_tokens * 20} would be a short trial"
        )
    return plan, peak


class RankSpeeds(L.Callback):
    """Measures a run of several processes as soon as they exist and hold their parts of the model."""

    def __init__(self, journal: Journal, start_step: int) -> None:
        self.journal, self.start_step = journal, start_step

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print speed and duration; set the journal's peak. Raises `ValueError` if processes have different passes."""
        assert isinstance(pl_module, LanguageModel)
        plan, strategy = self.journal.plan, trainer.strategy
        _check_equal_passes(plan, strategy)
        _, self.journal.peak_flops_per_second = measure_run(
            plan, pl_module.decoder, pl_module.teacher, self.start_step, strategy
        )


def _check_equal_passes(plan: Plan, strategy: Strategy) -> None:
    """Raise `ValueError` if processes have different passes, because they would wait for each other forever."""
    own_choice = [plan.micro_batch_size, int(plan.passes.activation_checkpointing)]
    own_tensor = torch.tensor(own_choice, device=strategy.root_device)
    max_size, max_checkpointing = strategy.reduce(own_tensor.clone(), reduce_op="max").tolist()
    min_size, min_checkpointing = strategy.reduce(own_tensor.clone(), reduce_op="min").tolist()
    if min_size != max_size or min_checkpointing != max_checkpointing:
        raise ValueError(
            f"the processes chose passes of {min_size} to {max_size} sequences for devices with different memory: "
            f"give trainer.micro_batch_tokens={min_size * plan.sequence_length} and trainer.activation_checkpointing"
        )


def _mean_peak(plan: Plan, strategy: Strategy) -> float:
    """Return the mean peak over all devices. Processes that share a CPU wait for the first one to measure it alone."""
    is_shared = plan.hardware.accelerator == "cpu"
    if is_shared and not is_first_process():
        strategy.barrier()
    peak = matmul_peak(plan.hardware, plan.cache_dir)
    if is_shared and is_first_process():
        strategy.barrier()  # the others now read the peak from the cache
    own_peak = torch.tensor(peak, dtype=torch.float64, device=strategy.root_device)
    return strategy.reduce(own_peak, reduce_op="mean").item()


def _measure_fitting(
    decoder: Decoder, plan: Plan, teacher: Teacher | None = None, strategy: Strategy | None = None
) -> tuple[Plan, tuple[float, int | None]]:
    """Call `measure_speed` with smaller passes until they fit. Returns the plan with these passes, and the result."""
    while True:
        try:
            return plan, measure_speed(decoder, plan, teacher, strategy)
        except torch.OutOfMemoryError:
            smaller = with_smaller_passes(plan)
            if smaller is None:
                raise
        plan = smaller
        decoder.activation_checkpointing = plan.passes.activation_checkpointing
        decoder.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        reset_peak_memory()  # the pass that did not fit is no part of the run
        say(f"memory       out of memory: trying {plan.passes.text(plan.sequence_length)}")


def measure_speed(
    decoder: Decoder, plan: Plan, teacher: Teacher | None = None, strategy: Strategy | None = None
) -> tuple[float, int | None]:
    """Measure forward and backward passes on random tokens; returns tokens per second of one device and peak memory.

    Memory is in bytes, or None if the system does not report it. On a GPU it includes the optimizer's moments. If the
    run is compiled, the first pass compiles the blocks. Weights, gradients and random state stay unchanged. The
    processes of a `strategy` take equally many passes, as sharded weights require. Raises `torch.OutOfMemoryError` if
    the device has too little memory.
    """
    hardware = plan.hardware
    device = torch.device(hardware.accelerator)
    decoder.to(device)
    rng = torch.Generator().manual_seed(0)
    shape = (plan.micro_batch_size, plan.sequence_length + 1)
    tokens = torch.randint(plan.model.vocab_size, shape, generator=rng).to(device)
    # Masked as in training, so that blocks are compiled only once. The time does not depend on where documents begin.
    documents = torch.zeros_like(tokens[:, :-1]) if plan.document_masking else None
    scale = torch.ones((), device=device) if hardware.precision == "16-mixed" else None
    moment_bytes = 0
    if device.type == "cuda":
        num_shards = hardware.world_size if hardware.strategy == "fsdp" else 1
        weight_and_gradient_bytes = sum(2 * p.nbytes for p in decoder.parameters())
        moment_bytes = max(0, (plan.state_bytes - weight_and_gradient_bytes) // num_shards)
    moments_placeholder = torch.empty(moment_bytes, dtype=torch.uint8, device=device)

    def time_pass() -> float:
        start = time.perf_counter()
        with autocast(device.type, hardware.autocast_dtype):
            soft = teacher.soft_targets(tokens[:, :-1], documents) if teacher else None
            loss = decoder.loss(tokens[:, :-1], tokens[:, 1:], documents, scale, soft)
        loss.flatten()[0].backward()
        synchronize(device.type)
        return time.perf_counter() - start

    def slowest(seconds: float) -> float:
        if strategy is None:
            return seconds
        own_seconds = torch.tensor(seconds, dtype=torch.float64, device=strategy.root_device)
        return float(strategy.reduce(own_seconds, reduce_op="max"))

    seconds = time_pass()
    if slowest(seconds) < MAX_FIRST_PASS_SECONDS:
        seconds = time_pass()
        if slowest(seconds) < SHORT_PASS_SECONDS:
            seconds = min(seconds, time_pass())
    del moments_placeholder
    decoder.zero_grad(set_to_none=True)
    return plan.micro_batch_size * plan.sequence_length / seconds, peak_memory_bytes()


def training_step(plan: Plan, module: LanguageModel | None = None) -> Callable[[], Tensor]:
    """Return a function that takes one optimizer step of the run, on random tokens and without Lightning.

    That function returns the loss of the last micro-batch, on the device, and does not wait for the device. If a model
    of the plan's shape exists already, give it as `module`; it is moved to the device.
    """
    hardware, device = plan.hardware, torch.device(plan.hardware.accelerator)
    # Token 0 begins a document. With a large vocabulary, about every thousandth of the tokens below is 0.
    module = (module or LanguageModel(plan, separator=0 if plan.document_masking else None)).to(device)
    module.plan = plan
    optimizer: Any = module.configure_optimizers()["optimizer"]
    shape = (plan.micro_batch_size, plan.sequence_length + 1)
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(min(1000, plan.model.vocab_size), shape, generator=rng).to(device)

    def take_step() -> Tensor:
        for _ in range(plan.accumulation):
            with autocast(device.type, hardware.autocast_dtype):
                loss = module.training_step(tokens, 0)
            (loss / plan.accumulation).backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        if module.average is not None:
            module.average.update(module.decoder, skipped=module.guard.in_a_row > 0)
        return loss.detach()

    return take_step


def process_bytes(accelerator: str) -> int:
    """Return the peak memory of this process: what torch reserved on a GPU, else resident memory; 0 if unknown."""
    return torch.cuda.max_memory_reserved() if accelerator == "cuda" else (peak_memory_bytes() or 0)


def matmul_peak(hardware: Hardware, cache_dir: Path, above: float = 0.0) -> float:
    """Return the FLOP/s of large square matmuls on one device, measured once and kept in `cache_dir`/peaks.json.

    A peak that is not `above` what a model reached, or that a short test exceeds, was measured while the machine was
    busy: it is measured again.
    """
    # The name of a CPU includes its number of threads.
    key = f"{hardware.device_name} {hardware.matmul_dtype} torch {torch.__version__}"
    path = cache_dir / "peaks.json"
    peaks = read_json_object(path)
    known = peaks.get(key, 0.0)
    if known <= above or (above == 0.0 and _is_exceeded(known, hardware)):
        peaks[key] = max(known, measure_matmul(hardware.accelerator, hardware.matmul_dtype))
        write_json(path, peaks, indent=2)
    return peaks[key]


def _is_exceeded(peak: float, hardware: Hardware) -> bool:
    """Whether matmuls of one size are faster than a peak by a tenth. Takes a tenth of a second, or is left out."""
    size = 1024 if hardware.accelerator == "cpu" else 4096
    if 2 * size**3 / peak > TEST_SECONDS:
        return False
    return _matmul_rate(size, hardware.accelerator, hardware.matmul_dtype, TEST_SECONDS) > 1.1 * peak


def measure_matmul(device: str, dtype: torch.dtype) -> float:
    """Return the best FLOP/s over a few square sizes. Each is measured for `PEAK_SECONDS`, or for one matmul."""
    best_rate = 0.0
    sizes = (512, 1024, 2048) if device == "cpu" else (4096, 8192)
    for size in sizes:
        # If the dtype is emulated, a larger size would take minutes and give the same rate.
        if best_rate > 0 and 2 * size**3 / best_rate > MAX_MATMUL_SECONDS:
            break
        best_rate = max(best_rate, _matmul_rate(size, device, dtype))
    return best_rate


def _matmul_rate(size: int, device: str, dtype: torch.dtype, seconds: float = PEAK_SECONDS) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    best_rate = 0.0
    stop = time.perf_counter() + seconds
    num_matmuls = 1  # in the first round, because one matmul may take longer than `seconds`
    while best_rate == 0.0 or time.perf_counter() < stop:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(num_matmuls):
            torch.mm(a, b, out=out)
        synchronize(device)
        best_rate = max(best_rate, num_matmuls * 2 * size**3 / (time.perf_counter() - start))
        num_matmuls = 4
    return best_rate
