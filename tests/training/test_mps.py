"""The GPU of an Apple chip, which this was not tested on: fake tensors there, and the choices that lead there."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slm.data.loader import Batch
from slm.evaluation import measure
from slm.model import generate
from slm.model.mixers import sliding, softmax
from slm.runtime.machine import has_mps
from slm.training import hardware, optim, run, validation
from slm.training.hardware import resolve_hardware
from slm.training.module import LanguageModel
from slm.training.optim import OPTIMIZERS, skip_if
from slm.training.parametrization import STANDARD
from slm.training.plan import make_plan
from slm.training.validation import score
from tests.composing import composed
from tests.training.small import CONFIG, CPU, OPTIM, losses, random_decoder, set_random_gradients

MPS = torch.device("mps", 0)
SHORT = ("train.sequence_length=32", "train.batch_tokens=64", "train.tokens=640", "train.document_masking=true")


def trainer(**changes: Any) -> dict[str, Any]:
    return CONFIG["trainer"] | {"accelerator": "mps"} | changes


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_mps", lambda: True)
    monkeypatch.setattr(measure, "has_mps", lambda: True)


def test_mps_trains_one_process_in_float32_uncompiled_unless_asked(mac: None) -> None:
    hardware = resolve_hardware(trainer())
    assert (hardware.accelerator, hardware.world_size, hardware.precision) == ("mps", 1, "32-true")
    assert not hardware.compile
    asked = resolve_hardware(trainer(precision="bf16-mixed"))
    assert (asked.precision, asked.matmul_dtype) == ("bf16-mixed", torch.bfloat16)
    assert resolve_hardware(trainer(accelerator="auto")).accelerator != "mps"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "64-true"}, "trainer.precision=64-true does not work on mps: give 32-true or"),
        ({"devices": 2}, "trainer.devices=2 must be auto or between 1 and 1"),
    ],
)
def test_what_mps_lacks_is_refused(changes: dict[str, Any], said: str, mac: None) -> None:
    with pytest.raises(ValueError, match=said):
        resolve_hardware(trainer(**changes))


@pytest.mark.skipif(has_mps(), reason="there is such a GPU here")
def test_without_an_apple_gpu_mps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.accelerator=mps, but torch sees no Apple GPU here"):
        resolve_hardware(trainer())
    with pytest.raises(ValueError, match="device=mps, but torch sees no Apple GPU here"):
        measure.resolve_precision({"device": "mps", "dtype": "auto"}, SimpleNamespace(result={}, checkpoint="m"))  # type: ignore[arg-type]


def test_mps_measures_a_run_in_float32_and_refuses_float64(mac: None) -> None:
    def resolve(dtype: str, trained: str) -> measure.Precision:
        provenance: Any = SimpleNamespace(result={"precision": trained}, checkpoint="m")
        return measure.resolve_precision({"device": "mps", "dtype": dtype}, provenance)

    found = resolve("auto", "bf16-mixed")
    assert (found.device, found.dtype, found.autocast) == ("mps", torch.float32, None)
    assert "bf16-mixed" in found.notes[0]
    for dtype, trained in (("float64", "32-true"), ("auto", "64-true")):
        with pytest.raises(ValueError, match="device=mps has no float64"):
            resolve(dtype, trained)


class RefuseFloat64(TorchDispatchMode):
    """Raises `TypeError` for a float64 tensor on a `device`, as torch does on MPS."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device and tensor.dtype == torch.float64:
                raise TypeError(f"{func} makes float64 on {self.device}")
        return made


@pytest.mark.parametrize("family", ["mobilellm", "sliding", "ssd", "linear"])
def test_a_training_step_and_decoding_need_no_float64(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that a config can ask for, on a CPU that takes the attention of other devices."""
    for file in (softmax, sliding):
        monkeypatch.setattr(file, "CPU_BLOCKED_ATTENTION_MAX_TOKENS", 0)
    settings = composed(f"family={family}", "width=32", "depth=2", "optim=muon", "optim.ema_decay=0.9", *SHORT)
    module = LanguageModel(make_plan(settings, CPU), separator=1)
    tokens = torch.randint(50, (2, 33))
    with RefuseFloat64("cpu"):
        with pytest.raises(TypeError, match="makes float64 on cpu"):
            torch.zeros(3, dtype=torch.float64)
        optimizer = OPTIMIZERS["muon"](module.decoder, module.optim, module.plan.rules)
        module.training_step(tokens, 0).backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        assert module.average is not None
        module.average.update(module.decoder, skipped=module.guard.in_a_row > 0)
        assert list(generate(module.decoder, [2, 3, 4], max_new_tokens=2, top_p=0.9))


class Guesser:
    """A decoder whose losses are on MPS, without values."""

    device = MPS
    plan = SimpleNamespace(sequence_length=32, micro_batch_size=2)
    decoder: Any = property(lambda self: self)

    def __init__(self) -> None:
        self.reduced: list[Tensor] = []
        strategy = SimpleNamespace(reduce=self.reduce)
        plugin = SimpleNamespace(forward_context=nullcontext)
        self.trainer = SimpleNamespace(precision_plugin=plugin, strategy=strategy, global_rank=0, world_size=1)

    def reduce(self, sums: Tensor, reduce_op: str) -> Any:
        self.reduced.append(sums)
        return SimpleNamespace(tolist=lambda: [2.0, 1.0, 1.0])

    def documents(self, inputs: Tensor, given: None) -> None:
        """None is masked."""

    def token_losses(self, inputs: Tensor, targets: Tensor, documents: None) -> Tensor:
        assert inputs.device == targets.device == MPS
        return torch.ones(targets.shape, device=MPS)


def test_validation_sums_in_float64_where_there_is_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = torch.zeros(2, 32, dtype=torch.long)
    monkeypatch.setattr(validation, "val_batches", lambda stream, **how: iter([Batch(batch, batch)]))
    corpus: Any = SimpleNamespace(mixture=None, val=None, val_bytes=np.ones(100))
    guesser: Any = Guesser()
    with FakeTensorMode(allow_non_fake_inputs=True), RefuseFloat64("mps"):
        assert score(guesser, corpus).loss == 2.0
    assert [(sums.device.type, sums.dtype) for sums in guesser.reduced] == [("cpu", torch.float64)]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_the_host_skips_is_as_if_the_device_had_skipped_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On MPS fused AdamW ignores `found_inf` (pytorch/pytorch#186360)."""
    ours, other = random_decoder(), random_decoder()
    other.load_state_dict(ours.state_dict())
    runs = [(ours, ("cpu",)), (other, ())]
    optimizers = [OPTIMIZERS[name](decoder, OPTIM, STANDARD) for decoder, _ in runs]
    for step, is_bad in enumerate([False, True, False, True, True, False]):
        for (decoder, devices), optimizer in zip(runs, optimizers, strict=True):
            monkeypatch.setattr(optim, "DEVICES_IGNORING_FOUND_INF", devices)
            set_random_gradients(decoder, step)
            before = copy.deepcopy(decoder.state_dict())
            skip_if(optimizer, torch.tensor(float(is_bad)))
            optimizer.step()
            changed = any(not torch.equal(before[key], value) for key, value in decoder.state_dict().items())
            assert changed != is_bad
    for key, value in ours.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


@pytest.mark.parametrize(
    "words",
    [
        "MPS backend out of memory (MPS allocated: 18.10 GB, other allocations: 5.96 MB, max allowed: 18.13 GB)",
        "[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    ],
)
def test_out_of_memory_on_other_systems_says_what_to_change(words: str) -> None:
    planned = make_plan(composed("model=tiny", *SHORT), CPU)
    said = r"^out of memory with trainer\.micro_batch_tokens=64: lower it"
    with pytest.raises(ValueError, match=said), run._explain_failures(planned):
        raise RuntimeError(words)


@pytest.mark.skipif(not has_mps(), reason="needs the GPU of an Apple chip")
def test_an_apple_gpu_follows_the_loss_curve_of_a_cpu(result_of: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    for accelerator in ("cpu", "mps"):
        result_of("trainer.precision=32-true", f"trainer.accelerator={accelerator}", folder=accelerator, timeout=280)
    assert losses(tmp_path / "mps") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-2)
