"""The step of decoding as a CUDA graph. On a CPU a stand-in launches what was recorded, as blindly as a graph does."""

import copy
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slm.model import Decoder, KVCache, ModelConfig, decoding, generate
from slm.model.decoding import allows_graphs, compiled_logits
from slm.model.mixers.base import Memory, State
from slm.model.mixers.sliding import WindowRing
from slm.model.mixers.softmax import KeysAndValues
from slm.model.mixers.sparse import ColumnsAndBlock
from tests.model.shapes import EXACT, MIXED, randomized, shape, small, tokens_of

CAPTURED = {name: config for name, config in MIXED.items() if "alibi" not in config.layer_positions}


class Recording(TorchDispatchMode):
    """Kernels with the tensors that they read and wrote. Playing it runs them on the same memory, and no other code."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Sequence[Any], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    def play(self) -> None:
        for func, args, kwargs, outputs in self.calls:
            for output, found in zip(tree_leaves(outputs), tree_leaves(func(*args, **kwargs)), strict=True):
                output.copy_(found)

    @property
    def waits(self) -> list[Any]:
        """Kernels after which the host waits for a GPU, or whose shapes depend on values."""
        tags = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
        return [func for func, *_ in self.calls if set(tags) & set(func.tags)]


@pytest.fixture
def recordings() -> Iterator[list[Recording]]:
    """Makes this CPU capture. Blocks run uncompiled, so that what they do is seen."""
    made: list[Recording] = []

    def capture(step: Callable[[], Tensor], changed: Sequence[Tensor]) -> Callable[[], Tensor]:
        before = [tensor.clone() for tensor in changed]
        made.append(Recording())
        with made[-1] as recording:
            logits_V = step()
        for tensor, values in zip(changed, before, strict=True):
            tensor.copy_(values)

        def replay() -> Tensor:
            recording.play()
            return logits_V

        return replay

    with (
        patch.object(decoding, "can_capture", lambda decoder, cache: True),
        patch.object(decoding, "_capture", capture),
        torch.compiler.set_stance("force_eager"),
        torch.inference_mode(),
    ):
        yield made


def decode(decoder: Decoder, pieces: Sequence[Tensor]) -> Tensor:
    """Logits (n, V) after each piece of a sequence."""
    dtype, length = decoder.head_weight.dtype, sum(piece.shape[1] for piece in pieces)
    cache, next_logits = KVCache(decoder.config, batch_size=1, max_length=length, dtype=dtype), compiled_logits(decoder)
    return torch.stack([next_logits(piece, cache) for piece in pieces])


@pytest.mark.parametrize("config", CAPTURED.values(), ids=list(CAPTURED))
@pytest.mark.parametrize("sizes", [[1] * 29, [7, 1, 1, 1, 9, *[1] * 8, 2]], ids=["from the first token", "in pieces"])
def test_a_recorded_step_decodes_every_token_as_the_forward_pass_does(
    config: ModelConfig, sizes: list[int], recordings: list[Recording]
) -> None:
    decoder, tokens_1T = randomized(config, torch.float64), tokens_of(config, sum(sizes), batch=1)
    found = decode(decoder, tokens_1T.split(sizes, dim=1))
    ends = torch.tensor(sizes).cumsum(0) - 1
    torch.testing.assert_close(found, decoder(tokens_1T)[0, ends], **EXACT)
    assert len(recordings) == 1
    assert not recordings[0].waits


def test_caches_have_graphs_of_their_own_which_go_with_them(
    recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: weakref.WeakSet[Any] = weakref.WeakSet()

    class Counted(decoding._CapturedStep):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            steps.add(self)

    monkeypatch.setattr(decoding, "_CapturedStep", Counted)
    decoder, tokens_1T = randomized(shape("FSG"), torch.float64), tokens_of(shape("FSG"), 12, batch=1)
    expected, next_logits = decoder(tokens_1T)[0], compiled_logits(decoder)
    caches = [KVCache(decoder.config, batch_size=1, max_length=12, dtype=torch.float64) for _ in range(2)]
    for cache, length in zip(caches, [3, 2], strict=True):  # the second sequence is one token behind
        next_logits(tokens_1T[:, :length], cache)
    for step in range(9):
        found = [next_logits(tokens_1T[:, cache.length : cache.length + 1], cache) for cache in caches]
        torch.testing.assert_close(torch.stack(found), expected[[3 + step, 2 + step]], **EXACT)
    assert len(steps) == len(recordings) == 2
    del cache, caches[1]
    assert len(steps) == 1


def test_the_host_launches_three_kernels_and_one_graph_a_token_however_many_blocks(recordings: list[Recording]) -> None:
    config = small(num_layers=30)
    decoder, tokens_1T = randomized(config), tokens_of(config, 6, batch=1)
    cache, next_logits = KVCache(config, batch_size=1, max_length=6), compiled_logits(decoder)
    prompt, *pieces = tokens_1T.split([3, 1, 1, 1], dim=1)
    next_logits(prompt, cache)
    next_logits(pieces[0], cache)
    with Recording() as token, patch.object(Recording, "play", lambda self: None):
        next_logits(pieces[1], cache)
    assert [func.overloadpacket.__name__ for func, *_ in token.calls] == ["copy_", "fill_", "clone"]
    assert len(recordings[0].calls) > 1000


class Shifted(State):
    """A user's, which knows nothing of graphs."""

    def past(self) -> tuple[Tensor, ...]:
        return tuple(tensor + 1 for tensor in self.tensors)


def test_memories_that_change_how_a_token_is_read_or_added_are_not_captured_by_the_rules_of_their_parents() -> None:
    assert all(map(allows_graphs, [State, KeysAndValues, WindowRing, ColumnsAndBlock]))
    assert not any(map(allows_graphs, [Memory, Shifted]))


def test_steps_are_traced_once_for_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph holds one compilation, so no length may want another."""
    monkeypatch.setattr(decoding, "can_capture", lambda decoder, cache: True)
    monkeypatch.setattr(decoding, "_capture", lambda step, changed: step)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    decoder, tokens_1T = randomized(shape("FSPG", num_layers=4), torch.float64), tokens_of(shape(), 20, batch=1)
    cache = KVCache(decoder.config, batch_size=1, max_length=20, dtype=torch.float64)
    with torch.inference_mode():
        next_logits, pieces = compiled_logits(decoder), tokens_1T.split(1, dim=1)
        found = [next_logits(pieces[0], cache)]
        with torch.compiler.set_stance("fail_on_recompile"):
            found += [next_logits(piece, cache) for piece in pieces[1:]]
        with torch.compiler.set_stance("force_eager"):
            torch.testing.assert_close(torch.stack(found), decoder(tokens_1T)[0], **EXACT)


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", ["F", "SFPLG"])
def test_a_gpu_captures_the_step_and_decodes_the_tokens_of_a_cpu(pattern: str) -> None:
    host = randomized(shape(pattern, num_layers=len(pattern)))
    device = copy.deepcopy(host).cuda()
    with torch.inference_mode():
        expected = list(generate(host, [1, 2, 3], max_new_tokens=40, temperature=0))
        found = list(generate(device, [1, 2, 3], max_new_tokens=40, temperature=0, next_logits=compiled_logits(device)))
    assert found == expected


@pytest.mark.gpu
def test_the_host_of_a_gpu_takes_less_than_a_tenth_of_a_millisecond_a_token() -> None:
    decoder = Decoder(small(num_layers=30)).cuda()
    token_11, seconds = torch.zeros(1, 1, dtype=torch.long, device="cuda"), []
    with torch.inference_mode():
        cache = KVCache(decoder.config, batch_size=1, max_length=100, device="cuda")
        next_logits = compiled_logits(decoder)
        next_logits(token_11, cache)
        for _ in range(50):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            next_logits(token_11, cache)
            seconds.append(time.perf_counter() - begin)
    assert sorted(seconds)[25] < 1e-4
