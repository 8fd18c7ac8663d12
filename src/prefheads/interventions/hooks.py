"""Who sees the attention of a forward pass: what intervenes in it, and what only listens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from prefheads.errors import ModelError

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


class Observer:
    """What sees the attention of a forward pass; by itself it leaves all as it is.

    Attributes:
        everywhere: Whether it sees all attention of the model, that of an image encoder or of a
            draft head too, and not only the layers' that :func:`layer_index` knows.
    """

    everywhere = False

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        """Called with the input of each decoder layer; returns what the layer gets instead."""
        return hidden, rest

    def attend(
        self,
        inner: AttentionFunction,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Called in place of the attention function ``inner``."""
        return inner(module, query, key, value, mask, **kwargs)


LAYER = "prefheads_layer"  # attribute of an attention module that is reached: its layer's number


def layer_index(module: nn.Module) -> int:
    """The decoder layer that an attention module belongs to, while its model is intercepted."""
    return int(vars(module)[LAYER])


class Listener(Observer):
    """An observer that only looks at what attention returns."""

    def attend(
        self,
        inner: AttentionFunction,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Call ``inner``, and :meth:`hear` what it returns."""
        out, weights = inner(module, query, key, value, mask, **kwargs)
        self.hear(module, query, out, weights)
        return out, weights

    def hear(self, module: nn.Module, query: Tensor, out: Tensor, weights: Tensor | None) -> None:
        """Called with ``query`` (B, H, T, d), ``out`` (B, T, H, d) and the weights, if any."""


def shown(module: nn.Module, weights: Tensor | None) -> Tensor:
    """Attention weights ``(B, H, T, n_keys)`` of a backend that was asked for them."""
    if weights is None:
        raise ModelError(f"{type(module).__name__} does not show its attention weights")
    return weights


# What observes the forward pass of this thread; None for a pass that nothing intervenes in.
current: ContextVar[Observer | None] = ContextVar("prefheads_pass", default=None)
STEP = "prefheads_step"  # attribute of a module: what observes the step that is running


def observer_of(module: nn.Module) -> Observer | None:
    """What observes a layer, or its attention, in the pass that is running."""
    step: Observer | None = getattr(module, STEP, None)
    return current.get() if step is None else step


def set_step(modules: Iterable[nn.Module], observer: Observer | None) -> None:
    """Let an observer see the passes of layers and attention modules in steps that a compiler may
    have made a graph of, which cannot ask for a context variable; or end that."""
    for module in modules:
        if observer is None:
            vars(module).pop(STEP, None)
        else:
            vars(module)[STEP] = observer


def observe(inner: AttentionFunction) -> AttentionFunction:
    """The attention function ``inner``, shown to what observes the pass; the same one each time, so
    that a graph which holds it stays valid."""
    if inner not in _shown:

        def attention(
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            **kwargs: Any,
        ) -> tuple[Tensor, Tensor | None]:
            observer = observer_of(module)
            if observer is None or not (observer.everywhere or LAYER in module.__dict__):
                result: tuple[Tensor, Tensor | None] = inner(
                    module, query, key, value, attention_mask, **kwargs
                )
                return result
            return observer.attend(inner, module, query, key, value, attention_mask, kwargs)

        _shown[inner] = attention
    return _shown[inner]


_shown: dict[AttentionFunction, AttentionFunction] = {}


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Let an observer see the forward calls of this thread inside the block."""
    token = current.set(observer)
    try:
        yield
    finally:
        current.reset(token)
