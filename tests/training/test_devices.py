"""Two processes on CPUs (gloo), and one GPU, train the run that one process on a CPU trains."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from slm.data import train_loader
from slm.model.mixers import base
from slm.training import run
from slm.training.module import LanguageModel
from slm.training.plan import make_plan
from slm.training.process import RUN_DIR
from slm.training.trainer import make_trainer
from tests.running import MUON, TWO_PROCESSES, run_two
from tests.seeds import seeded
from tests.training.small import CPU, assert_same_run, config, losses, random_decoder

Result = Callable[..., dict[str, Any]]


COUNT_COLLECTIVES = """
import json, os
import lightning as L
from torch.utils._python_dispatch import TorchDispatchMode

class Count(TorchDispatchMode):
    found = []
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            sent = args[0][0] if isinstance(args[0], list) else args[0]
            self.found.append([function._opname, getattr(sent, "numel", lambda: 0)()])
        return function(*args, **kwargs or {})

def counted(trainer, *args, fit=L.Trainer.fit, **kwargs):
    with Count():
        fit(trainer, *args, **kwargs)
    with open(f"{trainer.default_root_dir}/collectives-{trainer.global_rank}.json", "w") as file:
        json.dump(Count.found, file)

L.Trainer.fit = counted
"""
"""An extension that writes, for each process of a run, the name and size of every collective of its training."""


@pytest.mark.parametrize(("optim", "strategy"), TWO_PROCESSES)
def test_two_processes_train_as_one_does_and_reduce_gradients_once_a_step(
    optim: list[str], strategy: str, result_of: Result, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Of three passes a step, with a block called twice, and one used twice in a call.

    FSDP reduces each block and the rest, DDP all.
    """
    (tmp_path / "count.py").write_text(COUNT_COLLECTIVES)
    same = [
        "trainer.precision=32-true",
        "train.tokens=1920",
        "train.batch_tokens=192",
        "model.layer_sharing=reverse",
        "model.num_repeats=2",
    ]
    same += ["trainer.micro_batch_tokens=32", "train.log_every=2", "train.eval_every=5", "train.val_tokens=512", *optim]
    questions = [{"query": "so " * n, "choices": ["a b", "c"], "gold": 0} for n in range(1, 8)]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    same.append(f"train.eval_tasks={{quiz: {tmp_path}/quiz.jsonl}}")
    two = [f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2", f"extensions=[{tmp_path}/count.py]"]
    steps = result_of(*same, folder="one", timeout=240)["steps"]
    if strategy == "ddp":  # started by Lightning, as for a user
        result_of(*same, *two, folder="two", timeout=240)
    else:
        run_two(train_command(*same, *two, f"output_dir={tmp_path}/two")).check_returncode()
    for column in ("train/loss", "val/loss", "tasks/quiz/bits_per_byte"):
        one, both = losses(tmp_path / "one", column), losses(tmp_path / "two", column)
        assert len(one) == len(both) > 1
        assert one == pytest.approx(both, abs=1e-4 if optim else 1e-5)  # Muon's iterations are in bfloat16
    blocks, in_all = 9280, 26912  # parameters, of which a process sends all or reduces half
    expected = {"ddp": {("allreduce_", in_all): 1}, "fsdp": {("_reduce_scatter_base_", blocks // 2): 2}}[strategy]
    for rank in (0, 1):
        found = Counter(map(tuple, json.loads((tmp_path / "two" / f"collectives-{rank}.json").read_text())))
        reductions = {of: count / steps for of, count in found.items() if "reduce" in of[0] and of[1] > 1000}
        assert reductions.items() >= expected.items()
        assert sum(reductions.values()) == {"ddp": 1, "fsdp": 3}[strategy]
        assert sum(count for (name, _), count in found.items() if name == "broadcast_") < steps
    assert (tmp_path / "two" / "model" / "model.safetensors").exists()


def test_ddp_cuts_no_graph_of_a_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By default it would, where its buckets end; the first process, which compiled before, would run other code."""
    monkeypatch.setenv(RUN_DIR, "")
    two = make_plan(config() | {"output_dir": str(tmp_path)}, replace(CPU, devices=2, strategy="ddp"))
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    decoder, tokens = random_decoder(hidden_size=256, intermediate_size=512), torch.zeros(1, 8, dtype=torch.long)
    for block in decoder.layers:
        block.compile(dynamic=False, backend=record)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with torch._dynamo.config.patch(optimize_ddp=True):
            make_trainer(two, [])
            model = torch.nn.parallel.DistributedDataParallel(decoder, bucket_cap_mb=1)
            model(tokens).sum().backward()
    finally:
        dist.destroy_process_group()
    assert len(graphs) == 1


@pytest.mark.parametrize("devices", [3, 11])
def test_devices_with_unequal_shares_have_the_loss_and_the_gradient_of_the_whole_batch(devices: int) -> None:
    """Which is computed in one pass, without the plan. The mean over devices is what DDP and FSDP reduce to."""
    settings = config(batch_tokens=64 * 32, sequence_length=32, tokens=64 * 32)
    plan = make_plan(settings, replace(CPU, devices=devices, micro_batch_tokens=5 * 32))
    assert plan.padding > 0
    module = LanguageModel(plan)
    batch = torch.randint(100, (64, 33), generator=torch.Generator().manual_seed(seeded()))
    stream = SimpleNamespace(num_windows=lambda length: 64, read=lambda start, stop: batch[start // 32].numpy())
    same = {"sequence_length": 32, "batch_size": 64, "seed": 1, "start_step": 0, "end_step": 1}
    for rank in range(devices):
        ours = {"micro_batch_size": plan.micro_batch_size, "rank": rank, "world_size": devices}
        passes = list(train_loader(stream, **same, **ours))
        assert len(passes) == plan.accumulation
        for number, micro_batch in enumerate(passes):
            (module.training_step(micro_batch, number) / (plan.accumulation * devices)).backward()
    found = torch.nn.utils.parameters_to_vector(p.grad for p in module.parameters())
    module.zero_grad()
    loss = module.decoder.loss(batch[:, :-1], batch[:, 1:])
    loss.backward()
    expected = torch.nn.utils.parameters_to_vector(p.grad for p in module.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert module.step_loss / module.step_count == pytest.approx(loss.item(), abs=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("optim", [[], MUON], ids=["adamw", "muon"])
def test_a_gpu_follows_the_loss_curve_of_a_cpu_in_float32(optim: list[str], result_of: Result, tmp_path: Path) -> None:
    for trainer in ("cpu", "gpu"):
        same = ["trainer.precision=32-true", "train.tokens=10240", *optim]
        result_of(*same, f"trainer={trainer}", folder=trainer, timeout=280)
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-2)


@pytest.mark.gpu
def test_compiled_bfloat16_on_a_gpu_learns_and_reports_its_memory(result_of: Result) -> None:
    result = result_of("trainer=gpu", "trainer.compile=true", "train.tokens=30720", timeout=280)
    assert result["precision"] == "bf16-mixed"
    assert result["val"]["loss"] < 5.0
    assert result["peak_memory_bytes"] > result["params_total"] * 16


@pytest.mark.parametrize(
    ("trainer", "pattern"),
    [("cpu", "F"), *(pytest.param("gpu", letters, marks=pytest.mark.gpu) for letters in ("F", "LG"))],
)
def test_two_deterministic_runs_are_equal_to_the_bit(
    trainer: str, pattern: str, result_of: Result, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        more = ["trainer.deterministic=true", "trainer.micro_batch_tokens=128", "train.tokens=2560"]
        more.append(f"model.mixer_pattern={pattern}")
        result_of(*more, f"trainer={trainer}", folder=name, timeout=280)
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_deterministic_forbids_other_operations_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure_run", lambda *_, **__: None)
    for is_on in (True, False):
        plan = make_plan(config() | {"dry_run": True}, replace(CPU, deterministic=is_on))
        run.train(plan)
        assert torch.are_deterministic_algorithms_enabled() == is_on


class RefuseNondeterministic(TorchDispatchMode):
    """Raises what torch raises for a GPU if operations must be deterministic, of those that a model might use."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, made = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        is_float_sum = name == "cumsum" and made.is_floating_point()
        if is_float_sum or name in ("put", "put_", "histc", "median", "nll_loss_forward"):
            raise RuntimeError(f"{name} does not have a deterministic implementation")
        return made


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("pattern", "FSPLG")
def test_no_mixer_needs_an_operation_that_a_deterministic_gpu_refuses(
    pattern: str, documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that takes the sums of a GPU."""
    with FakeTensorMode():
        assert [base.refuses_cumsum(torch.empty(3, device=device)) for device in ("cpu", "cuda")] == [False, True]
    monkeypatch.setattr(base, "refuses_cumsum", lambda x: True)
    decoder = random_decoder(mixer_pattern=pattern, sliding_window=8)
    tokens = torch.arange(48).view(2, 24) % 20
    with RefuseNondeterministic():
        decoder.loss(tokens, tokens, (tokens == 7).cumsum(1) if documents else None).backward()


def test_sums_are_those_of_cumsum_unless_a_run_is_deterministic() -> None:
    with FakeTensorMode():
        assert not base.refuses_cumsum(torch.empty(3, device="cuda"))
