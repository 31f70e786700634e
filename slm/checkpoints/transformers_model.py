"""A model of transformers behind the interface that evaluation uses (`slm.model.interface.CausalLM`).

Notable: nothing here knows an architecture. The body of the model gives the states. Its head is the model's own
forward pass around a copy of the body that returns given states, so a scale or a soft cap of the logits stays in place.
Before a model is measured, `check` compares head, causality and cache with the model's forward pass on a few tokens.

Legend: B batch, T tokens, D hidden, N tokens flattened, V vocabulary.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slm.checkpoints.foreign import ForeignShape, empty_model, quiet_transformers
from slm.checkpoints.weights import refuse_faults
from slm.data.readers import first_line
from slm.model.counts import Counts
from slm.model.loss import losses_by_chunk

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference of logits that rounding explains, as a share of their range; 0.05 for types of 16 bits."""
PROBE_TOKENS = 8


class TransformersCache:
    """The cache that the model itself fills, in the classes of transformers. It grows with the tokens."""

    def __init__(self, config: Any) -> None:
        from transformers import DynamicCache

        self.inner: Any = DynamicCache(config=config)
        self.length = 0

    def select(self, source: "TransformersCache", rows: Tensor) -> None:
        """Become a copy of `source` in which sequence r is its sequence `rows[r]`."""
        self.inner, self.length = copy.deepcopy(source.inner), source.length
        if self.length:
            self.inner.reorder_cache(rows)


class TransformersModel:
    """A causal language model of transformers, in eval mode and without gradients."""

    def __init__(self, model: Any, shape: ForeignShape) -> None:
        self.model, self.config = model.eval().requires_grad_(False), shape
        self._body = _body(model)
        self._given = copy.copy(self._body)  # the same modules; its forward pass is replaced for each chunk of states
        path = next(name for name, module in model.named_modules() if module is self._body)
        self._head = _with_module(model, path.split("."), self._given)
        takes = inspect.signature(self._body.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in takes else "past_key_values"
        heads = [model.get_input_embeddings(), model.get_output_embeddings()]
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding) or module in heads]
        table_sizes = {parameter: parameter.numel() for table in tables for parameter in table.parameters()}
        self._num_table_params = sum(table_sizes.values())
        self._num_params = sum(parameter.numel() for parameter in model.parameters())  # before any is quantised
        self._steps_singly = False  # whether the model continues from a cache by one token at a time only

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def hidden(
        self, tokens_BT: Tensor, cache: TransformersCache | None = None, documents_BT: Tensor | None = None
    ) -> Tensor:
        """Return the input of the head, (B, T, D); see `CausalLM.hidden`."""
        if documents_BT is not None:
            raise ValueError("a model of transformers cannot separate the documents of a row")
        length = tokens_BT.shape[1] + (cache.length if cache else 0)
        if length > self.config.max_position_embeddings:
            raise ValueError(f"{length} tokens do not fit: the context ends at {self.config.max_position_embeddings}")
        if cache is None:
            return self._states(tokens_BT, use_cache=False)
        pieces = tokens_BT.split(1, dim=1) if self._steps_singly and cache.length else [tokens_BT]
        states = [self._states(piece, use_cache=True, **{self._cache_name: cache.inner}) for piece in pieces]
        cache.length = length
        return torch.cat(states, dim=1)

    def _states(self, tokens_BT: Tensor, **options: Any) -> Tensor:
        states_BTD: Tensor = self._body(input_ids=tokens_BT, **options)[0]
        return states_BTD

    def head(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits (..., V)."""
        output = _Output((hidden.reshape(1, -1, hidden.shape[-1]),))
        self._given.forward = lambda *_, **__: output
        tokens_1N = torch.zeros(output[0].shape[:2], dtype=torch.long, device=hidden.device)
        logits: Tensor = self._head(input_ids=tokens_1N, use_cache=False).logits
        return logits.view(*hidden.shape[:-1], -1)

    def losses(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Return the cross-entropy in nats of each target, (N,)."""
        return losses_by_chunk(hidden_ND, self.head, targets_N)

    def make_cache(self, batch_size: int, max_length: int, dtype: torch.dtype | None = None) -> TransformersCache:
        """Return an empty cache. It has no size: the model allocates what its tokens need."""
        return TransformersCache(self.model.config)

    def counts(self) -> Counts:
        """Count the parameters of the modules, and the bytes of a cache that has read one token, then two."""
        bytes_per_token, full, states = self._cache_bytes()
        return Counts(
            params_total=self._num_params,
            params_non_embedding=self._num_params - self._num_table_params,
            model_bytes=sum(parameter.nbytes for parameter in self.model.parameters()),
            kv_bytes_per_token=bytes_per_token,
            kv_cache_bytes=full,
            state_bytes=states,
        )

    @torch.inference_mode()
    def _cache_bytes(self) -> tuple[int, int, int]:
        """Return the bytes of one token, of a full context, and of what does not grow."""
        cache = self.make_cache(1, 2)
        token_11 = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        sizes = []
        for _ in range(2):
            self.hidden(token_11, cache)
            sizes.append([sum(tensor.nbytes for tensor in _tensors(vars(layer))) for layer in cache.inner.layers])
        context = self.config.max_position_embeddings
        growths = [second - first for first, second in zip(*sizes, strict=True)]
        windows = [getattr(layer, "sliding_window", None) or context for layer in cache.inner.layers]
        full = sum(growth * min(context, window) for growth, window in zip(growths, windows, strict=True))
        return sum(growths), full, sum(sizes[0]) - sum(growths)

    def check(self) -> None:
        """Raise `ValueError` unless head, causality and cache agree with the forward pass of the model."""
        try:
            problem = self._problem()
        except Exception as error:  # the class depends on the model type
            problem = first_line(error)
        if problem:
            raise ValueError(f"model_type {self.config.model_type!r} cannot be measured: {problem}")

    @torch.inference_mode()
    def _problem(self) -> str | None:
        length = min(PROBE_TOKENS, self.config.max_position_embeddings)
        half = length // 2
        generator = torch.Generator().manual_seed(0)
        tokens_BT = torch.randint(self.config.vocab_size, (2, length), generator=generator).to(self.device)
        expected = self.model(input_ids=tokens_BT, use_cache=False).logits
        if not expected.isfinite().all():
            return None  # a note says that the weights are not finite, and no loss will be
        tolerance = TOLERANCE.get(self.dtype, 0.05) * (expected.max() - expected.min()).item()

        def agree(hidden_BTD: Tensor, part: slice) -> bool:
            return (self.head(hidden_BTD) - expected[:, part]).abs().max().item() <= tolerance

        def continues() -> bool:
            cache = self.make_cache(2, length)
            self.hidden(tokens_BT[:, :half], cache)
            return agree(self.hidden(tokens_BT[:, half:], cache), slice(half, None))

        if not agree(self.hidden(tokens_BT), slice(None)):
            return "its logits depend on more than the last states of its body"
        if not agree(self.hidden(tokens_BT[:, :half]), slice(half)):
            return "it reads the tokens that it should predict, as an encoder does"
        self._steps_singly = not continues()
        if self._steps_singly and not continues():
            return "it does not continue from its cache as it continues the text"
        return None


class _Output(tuple[Tensor]):
    """The output of a body that computes only states. Everything else that a head may ask for is None."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        return self[0] if name == "last_hidden_state" else None


def load_transformers_model(
    folder: Path, shape: ForeignShape, tensors: Mapping[str, Tensor], *, dtype: torch.dtype, device: torch.device | str
) -> TransformersModel:
    """Build the model of a folder from the tensors of its files, which are copied.

    Raises `ValueError` if tensors are missing or mis-shaped, or if the model cannot be measured (`check`).
    """
    empty = empty_model(folder, {name: tensor.numel() for name, tensor in tensors.items()})
    with quiet_transformers():
        try:
            model, report = type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=dict(tensors),
                dtype=dtype,
                ignore_mismatched_sizes=True,  # they are in the report
                output_loading_info=True,
            )
        except Exception as error:  # the class depends on the model type
            raise ValueError(f"{folder}: transformers cannot load the weights ({first_line(error)})") from None
        mis_shaped = sorted(key[0] for key in report["mismatched_keys"])
        refuse_faults(folder, {"missing": sorted(report["missing_keys"]), "mis-shaped": mis_shaped})
        for parameter in model.parameters():  # not a view of a file, which may change or be deleted
            parameter.data = parameter.data.to(device, copy=True)
        loaded = TransformersModel(model.to(device), shape)
        loaded.check()
    return loaded


def _body(model: Any) -> Any:
    """Return the module that computes the input of the head."""
    from transformers import PreTrainedModel

    body = model.get_decoder()
    if body is model or body is None:
        body = next((module for module in model.children() if isinstance(module, PreTrainedModel)), None)
    if body is None:
        raise ValueError(f"{type(model).__name__} has no body that is separate from its head, so it cannot be measured")
    return body


def _with_module(model: Any, path: list[str], module: nn.Module) -> Any:
    """Return a copy of a model that shares everything with it but one module."""
    changed, (name, *rest) = copy.copy(model), path
    child = _with_module(model._modules[name], rest, module) if rest else module
    changed._modules = {**model._modules, name: child}
    return changed


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested containers but scalars, which count tokens."""
    if isinstance(value, Tensor):
        yield from [value] if value.ndim else []
    elif isinstance(value, Mapping):
        yield from (tensor for item in value.values() for tensor in _tensors(item))
    elif isinstance(value, list | tuple):
        yield from (tensor for item in value for tensor in _tensors(item))
