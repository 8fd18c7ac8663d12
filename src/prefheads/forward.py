"""Replacing the ``forward`` of a model or of its layers for a while."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from prefheads.attention import HeadLayout
from prefheads.errors import SteeringError


class Call:
    """The arguments of one forward call by name, and what they say about its tokens.

    Attributes:
        arguments: What the model's own forward is to be called with.
        inputs: Token ids ``(n_rows, length)``, or embeddings in their place.
        n_rows: Rows of the batch.
        length: Tokens a row of this call.
        past: Tokens that the cache holds already.
        keep: Last positions whose logits are asked for; 0 for all.
        predicting: Last positions that predict new tokens: one, or more where assisted generation
            (or scoring) gives tokens after the one to predict from.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        if arguments.get("labels") is not None:
            raise SteeringError("a steered model computes no loss; use prefheads.response_nll")
        keep = arguments.get("logits_to_keep", 0)
        if isinstance(keep, Tensor):
            raise SteeringError("logits_to_keep must be a number under steering")
        self.arguments = arguments
        ids = arguments.get("input_ids")
        self.inputs: Tensor = arguments["inputs_embeds"] if ids is None else ids
        self.n_rows: int = self.inputs.shape[0]
        self.length: int = self.inputs.shape[1]
        self.past = 0 if self.cache is None else int(self.cache.get_seq_length())
        self.keep = int(keep)
        self.predicting: int = min(max(1, self.keep), self.length)

    @property
    def cache(self) -> Any:
        """The cache of the call, if it has one."""
        return self.arguments.get("past_key_values")

    def begin_cache(self, model: PreTrainedModel) -> None:
        """Give a call without a cache one, as the model itself would."""
        if self.cache is None:
            self.arguments["past_key_values"] = DynamicCache(config=model.config)


Forward = Callable[..., Any]


class Steps(Protocol):
    """What makes steps of a generation out of the model's own, which may be a compiled graph."""

    def begin_step(self, call: Call) -> bool:
        """Whether ``call`` is such a step; prepares for it."""

    def end_step(self, call: Call, out: Any) -> Any:
        """The answer, from what the model's own forward answered."""


@contextmanager
def forward_set_to(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's ``forward`` inside the block."""
    own = module.__dict__.get("forward")  # set where a library (accelerate) has wrapped it already
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def skipped(layout: HeadLayout, n: int) -> Iterator[None]:
    """Let the first ``n`` decoder layers return what enters them."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden,) if layout.tuples else hidden

    with ExitStack() as stack:
        for layer in layout.layers[:n]:
            stack.enter_context(forward_set_to(layer, forward))
        yield


@contextmanager
def replaced_forward(
    model: PreTrainedModel, handle: Callable[[Forward, Call], Any], steps: Steps | None = None
) -> Iterator[None]:
    """Let ``handle(forward, call)`` answer the calls of a model inside the block.

    ``forward`` is the model's own; the answer is an output with logits, as ``forward`` gives it.
    To be used inside :func:`prefheads.attention.intercept`, which lets in one at a time.

    Args:
        steps: Where the model is compiled (``generate()`` does so for static caches on a GPU),
            steps that it takes run as a graph; all other calls run as they are.
    """
    forward = model.forward
    signature = inspect.signature(forward)

    def begin(compiling: bool, args: Any, kwargs: Any) -> tuple[Call, bool, bool]:
        arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name, {}))
        as_tuple = arguments.pop("return_dict", True) is False
        call = Call(arguments)
        is_step = compiling and steps is not None and steps.begin_step(call)
        return call, is_step, as_tuple

    def end(call: Call, out: Any, as_tuple: bool) -> Any:
        if out is None:
            out = handle(forward, call)
        else:
            assert steps is not None
            out = steps.end_step(call, out)
        return out.to_tuple() if as_tuple else out

    begin, end = torch.compiler.disable(begin), torch.compiler.disable(end)

    @functools.wraps(forward)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        call, is_step, as_tuple = begin(torch.compiler.is_compiling(), args, kwargs)
        return end(call, forward(**call.arguments) if is_step else None, as_tuple)

    with forward_set_to(model, replaced):
        yield
