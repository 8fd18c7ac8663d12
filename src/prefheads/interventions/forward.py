"""Answering the forward calls of a model in place of its own ``forward``."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from prefheads.errors import SteeringError
from prefheads.interventions.hooks import attention_backend, attribute_set_to


@dataclass(frozen=True)
class Generation:
    """One run of ``generate()``, as its arguments describe it; None is unknown."""

    n_rows: int | None  # prompts, before beams or several answers repeat them
    n_prompt: int | None  # tokens of a prompt, padding included


_running: ContextVar[Generation | None] = ContextVar("prefheads_generation", default=None)

# Arguments about text: its tokens, their positions, and which of them are seen.
_OF_EACH_TOKEN = {"input_ids", "mm_token_type_ids", "position_ids", "token_type_ids"}
TEXT = {"attention_mask", "cache_position", "inputs_embeds", *_OF_EACH_TOKEN}


class ForwardCall:
    """The arguments of one forward call by name, and what they say about its tokens.

    Attributes:
        arguments: The arguments for the model's own forward.
        inputs: Token ids ``(n_rows, length)``, or embeddings in their place.
        n_rows: Rows of the batch.
        length: Tokens in a row of this call.
        past: Tokens that the cache holds already.
        keep: How many of the last positions are asked for logits; 0 for all.
        predicting: How many of the last positions predict new tokens: one, or more where assisted
            generation (or scoring) gives tokens after the one to predict from.
        generation: The run of ``generate()`` that the call belongs to, if any.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        if arguments.get("labels") is not None:
            raise SteeringError("a steered model computes no loss; use prefheads.response_nll")
        keep = arguments.get("logits_to_keep")
        if isinstance(keep, Tensor):
            raise SteeringError("logits_to_keep must be a number under steering")
        self.arguments = arguments
        ids = arguments.get("input_ids")
        inputs = arguments.get("inputs_embeds") if ids is None else ids
        if not isinstance(inputs, Tensor) or inputs.dim() < 2:
            raise SteeringError("give a steered model input_ids (B, n) or inputs_embeds (B, n, d)")
        self.inputs: Tensor = inputs
        self.n_rows: int = self.inputs.shape[0]
        self.length: int = self.inputs.shape[1]
        self.past = 0 if self.cache is None else int(self.cache.get_seq_length())
        self.keep = int(keep or 0)
        self.predicting: int = min(max(1, self.keep), self.length)
        self.generation = _running.get()

    @property
    def cache(self) -> Any:
        """The cache of the call, if it has one."""
        return self.arguments.get("past_key_values")

    def begin_cache(self, model: PreTrainedModel) -> None:
        """Give a call without a cache one, as the model itself would."""
        wanted = self.arguments.get("use_cache")
        if wanted is None:
            wanted = getattr(model.config.get_text_config(), "use_cache", True)
        if self.cache is None and wanted:
            self.arguments["past_key_values"] = DynamicCache(config=model.config)

    @property
    def has_more_than_text(self) -> bool:
        """Whether the call holds more than text, such as pictures."""
        return any(
            isinstance(value, Tensor | dict) and name not in TEXT
            for name, value in self.arguments.items()
        )

    def tail(self, start: int, cache: Any) -> dict[str, Any]:
        """The arguments of a call with the tokens from ``start`` on, which is after all pictures,
        for their logits alone; ``cache`` is that of the tokens before."""
        given, part = self.arguments, {}
        for name, value in given.items():
            if name in _OF_EACH_TOKEN:
                part[name] = None if value is None else value[..., start:]
            elif name == "inputs_embeds":
                part[name] = None if value is None else value[:, start:]
            elif not isinstance(value, Tensor | dict) and not name.startswith("output_"):
                part[name] = value
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:  # of which some models make positions
            part["attention_mask"] = mask
        part |= {"past_key_values": cache, "use_cache": True}
        part["logits_to_keep"] = min(self.keep, self.length - start)
        return part


Forward = Callable[..., Any]


class StepHandler(Protocol):
    """Answers steps of a generation around the model's own forward, maybe a compiled graph."""

    def begin_step(self, call: ForwardCall) -> bool:
        """Prepare for ``call`` if it is such a step; returns whether it is."""

    def end_step(self, call: ForwardCall, out: Any) -> Any:
        """Turn the output of the model's own forward into the answer."""


@contextmanager
def replaced_forward(
    model: PreTrainedModel,
    handle: Callable[[Forward, ForwardCall], Any],
    steps: StepHandler | None = None,
    admit: Callable[[Generation], None] | None = None,
) -> Iterator[None]:
    """Let ``handle(forward, call)`` answer the calls of a model inside the block.

    ``forward`` is the model's own. The answer is an output with logits, as ``forward`` returns it.
    Must be used inside :func:`prefheads.interventions.intercept.intercept`, which lets one in at a
    time.

    Args:
        steps: Handles steps that may run as a graph where the model is compiled, as ``generate()``
            does for static caches on a GPU. All other calls run eagerly.
        admit: Refuses a run of ``generate()``, by raising, before any work.

    Raises:
        SteeringError: The block ends while another thread generates; that generation is stopped.
    """
    forward, running = model.forward, _Generations(admit)
    signature, backend = inspect.signature(forward), attention_backend(model)

    def begin(compiling: bool, args: Any, kwargs: Any) -> tuple[ForwardCall, bool, bool]:
        running.require_open()
        if attention_backend(model) != backend:
            raise SteeringError("the model's attention was changed inside the block; do it before")
        if model.training and model.is_gradient_checkpointing:
            raise SteeringError("gradient checkpointing cannot be steered; call model.eval()")
        arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name, {}))
        as_tuple = arguments.pop("return_dict", True) is False
        call = ForwardCall(arguments)
        is_step = compiling and steps is not None and steps.begin_step(call)
        return call, is_step, as_tuple

    def end(call: ForwardCall, out: Any, as_tuple: bool) -> Any:
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

    with ExitStack() as stack:
        stack.enter_context(attribute_set_to(model, "generate", running.watch(model)))
        stack.enter_context(attribute_set_to(model, "__deepcopy__", _refuse_copy))
        for name in ("generate_batch", "init_continuous_batching"):
            if hasattr(model, name):
                stack.enter_context(attribute_set_to(model, name, _refuse_paged))
        stack.enter_context(attribute_set_to(model, "forward", replaced))
        try:
            yield
        except BaseException:
            running.close()
            raise
        if running.close():
            raise SteeringError(
                "another thread was still generating when the block ended; end it inside the block"
            )


def _refuse_copy(*args: Any) -> Any:
    raise SteeringError("a model cannot be copied while it is steered; copy it outside the block")


def _refuse_paged(*args: Any, **kwargs: Any) -> Any:
    raise SteeringError("continuous batching is not steered; use generate(), or the vLLM plugin")


class _Generations:
    """The runs of ``generate()`` inside a block, in any thread."""

    def __init__(self, admit: Callable[[Generation], None] | None) -> None:
        self._admit = admit
        self._threads: list[int] = []
        self._changed = threading.Condition()
        self._open = True

    def watch(self, model: PreTrainedModel) -> Callable[..., Any]:
        """The model's ``generate``, which registers its runs here."""
        own: Any = model.generate

        @functools.wraps(own)
        def generate(*args: Any, **kwargs: Any) -> Any:
            self.require_open()
            generation = _described(model, args, kwargs)
            if self._admit is not None:
                self._admit(generation)
            me, token = threading.get_ident(), _running.set(generation)
            with self._changed:
                self._threads.append(me)
            try:
                return own(*args, **kwargs)
            finally:
                _running.reset(token)
                with self._changed:
                    self._threads.remove(me)
                    self._changed.notify_all()

        return generate

    def require_open(self) -> None:
        if not self._open:
            raise SteeringError(
                "the block that steered this generation has ended; end it inside the block"
            )

    def close(self, patience: float = 60.0) -> bool:
        """End the block; runs of other threads stop at their next step, for which this waits.
        Returns whether there were any."""
        self._open = False
        me = threading.get_ident()
        with self._changed:
            left = set(self._threads) - {me}
            self._changed.wait_for(lambda: not set(self._threads) - {me}, patience)
        return bool(left)


def _described(model: PreTrainedModel, args: Any, kwargs: dict[str, Any]) -> Generation:
    config = kwargs.get("generation_config") or getattr(model, "generation_config", None)

    def option(name: str) -> Any:
        return kwargs.get(name, getattr(config, name, None))

    if option("guidance_scale") not in (None, 1, 1.0):
        raise SteeringError("guidance_scale asks for a second prompt, which is not steered")
    if option("assistant_early_exit") is not None:
        raise SteeringError("assistant_early_exit leaves out layers, which cannot be steered then")
    ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
    embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
    given = ids if embeds is None else embeds
    if not isinstance(given, Tensor) or given.dim() < 2 or not given.shape[1]:
        return Generation(None, None)
    n, n_prompt = given.shape[:2]
    if isinstance(mask, Tensor) and mask.dim() == 2:  # of the cached tokens too
        n_prompt = max(n_prompt, mask.shape[1])
    cache = kwargs.get("past_key_values")
    past = 0 if cache is None else int(cache.get_seq_length())
    # Tokens that the cache holds may be given again, or only those that come after them.
    return Generation(n, n_prompt if n_prompt > past else past + given.shape[1])
