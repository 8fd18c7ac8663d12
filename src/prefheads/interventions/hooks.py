"""Calls of attention functions, and the hooks that are shown them.

Modules of transformers ask an ``AttentionInterface`` at every call for the function that their
config names. While a model is routed (:func:`routed`), the function they find there shows its call
to the hook of the forward pass that is running. The config keeps its words, because models look at
the name of their attention to decide on other things, such as which mask to make. No other model is
acted on: a hook belongs to the passes of one thread, and without one the function is what it was.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from prefheads.errors import ModelError

AttentionOutput = tuple[Tensor, Tensor | None]
AttentionFunction = Callable[..., AttentionOutput]

LAYER = "prefheads_layer"  # attribute of an intercepted attention module: its layer's number
STEP = "prefheads_step"  # attribute of a module: the hook of the step that is running


@dataclasses.dataclass
class AttentionCall:
    """One call of a model's attention function.

    Attributes:
        function: The attention function.
        module: The attention module that calls it.
        query: ``(B, H, T, d)``.
        key: ``(B, kv_heads, n_keys, d)``; ``value`` alike.
        mask: Boolean or additive, ``(1 or B, 1 or H, T, n_keys)``, or None.
        kwargs: All other arguments.
    """

    function: AttentionFunction
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    kwargs: dict[str, Any]

    @property
    def layer(self) -> int:
        """Number of the decoder layer, while the model is intercepted."""
        return int(vars(self.module)[LAYER])

    def run(self) -> AttentionOutput:
        """Call the function: the heads' outputs ``(B, T, H, d)``, and its weights if it has any."""
        return self.function(
            self.module, self.query, self.key, self.value, self.mask, **self.kwargs
        )

    def replace(self, **changes: Any) -> AttentionCall:
        """The same call with other arguments."""
        return dataclasses.replace(self, **changes)


class AttentionHook:
    """What is shown the attention of a forward pass; the base class changes nothing.

    Attributes:
        everywhere: Whether it is shown all attention of the model, such as an image encoder's, or
            only that of the decoder layers.
    """

    everywhere = False

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        """Called with the input of each decoder layer; returns what the layer gets instead."""
        return hidden, rest

    def attend(self, call: AttentionCall) -> AttentionOutput:
        """Called in place of the attention function."""
        return call.run()


class AttentionRecorder(AttentionHook):
    """A hook that only looks at what attention is given and returns."""

    def attend(self, call: AttentionCall) -> AttentionOutput:
        """Run the call and :meth:`record` it."""
        out, weights = call.run()
        self.record(call, out, weights)
        return out, weights

    def record(self, call: AttentionCall, out: Tensor, weights: Tensor | None) -> None:
        """Called with the heads' outputs ``(B, T, H, d)`` and the weights, if any."""


def require_weights(call: AttentionCall, weights: Tensor | None) -> Tensor:
    """Attention weights ``(B, H, T, n_keys)`` of a backend that was asked for them."""
    if weights is None:
        raise ModelError(f"{type(call.module).__name__} does not show its attention weights")
    return weights


_current: ContextVar[AttentionHook | None] = ContextVar("prefheads_hook", default=None)


@contextmanager
def hooked(hook: AttentionHook) -> Iterator[None]:
    """Show a hook the forward passes of this thread inside the block."""
    token = _current.set(hook)
    try:
        yield
    finally:
        _current.reset(token)


def hook_of(module: nn.Module) -> AttentionHook | None:
    """The hook of a layer, or of its attention, in the pass that is running."""
    step: AttentionHook | None = getattr(module, STEP, None)
    return _current.get() if step is None else step


def set_step_hook(modules: Iterable[nn.Module], hook: AttentionHook | None) -> None:
    """Set the hook of layers and attention modules for a step that may be a compiled graph, which
    cannot ask for a context variable; None ends that."""
    for module in modules:
        if hook is None:
            vars(module).pop(STEP, None)
        else:
            vars(module)[STEP] = hook


_with_hook: dict[AttentionFunction, AttentionFunction] = {}


def _show_hook(function: AttentionFunction) -> AttentionFunction:
    """An attention function that shows its calls to the hook of the pass; the same one each time,
    so that a graph which holds it stays valid."""
    if function not in _with_hook:

        def attention(
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            **kwargs: Any,
        ) -> AttentionOutput:
            hook = hook_of(module)
            if hook is None or not (hook.everywhere or LAYER in module.__dict__):
                return function(module, query, key, value, attention_mask, **kwargs)
            return hook.attend(
                AttentionCall(function, module, query, key, value, attention_mask, kwargs)
            )

        _with_hook[function] = attention
    return _with_hook[function]


lock = threading.RLock()  # held while a model's attention is probed, routed or let go
# How many models have a function routed now, and what ends that.
_users: dict[tuple[int, str], tuple[int, Callable[[], object]]] = {}
_eager: dict[int, Callable[..., AttentionFunction]] = {}


def attention_backend(model: PreTrainedModel) -> str:
    """The attention implementation of a model, such as ``"sdpa"`` or ``"eager"``."""
    return str(model.config.get_text_config()._attn_implementation)


@contextmanager
def attention_set_to(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let a model compute its attention in another way inside the block."""
    configs = {"": model.config}
    configs |= {key: getattr(model.config, key) for key in model.config.sub_configs}
    old = {
        key: config._attn_implementation
        for key, config in configs.items()
        if config is not None and config._attn_implementation is not None
    }
    try:
        model.set_attn_implementation(dict.fromkeys(old, name))
        yield
    finally:
        model.set_attn_implementation(old)


@contextmanager
def routed(model: PreTrainedModel) -> Iterator[None]:
    """Show hooks the attention of a model inside the block."""
    name = attention_backend(model)
    with ExitStack() as stack:
        for interface in _interfaces(model):
            if name == "eager" or name in interface:
                stack.enter_context(_routed(interface, name))
        yield


def _interfaces(model: PreTrainedModel) -> list[AttentionInterface]:
    """Where the modules of a model look: transformers' interface, or one of their own file."""
    files = {cls.__module__ for module in model.modules() for cls in type(module).__mro__}
    found = (getattr(sys.modules.get(f), "ALL_ATTENTION_FUNCTIONS", None) for f in files)
    return list({id(x): x for x in found if isinstance(x, AttentionInterface)}.values())


@contextmanager
def _routed(interface: AttentionInterface, name: str) -> Iterator[None]:
    key = id(interface), name
    with lock:
        n_users, restore = _users.get(key) or (0, _route(interface, name))
        _users[key] = n_users + 1, restore
    try:
        yield
    finally:
        with lock:
            n_users, restore = _users.pop(key)
            if n_users > 1:
                _users[key] = n_users - 1, restore
            else:
                restore()


def _route(interface: AttentionInterface, name: str) -> Callable[[], object]:
    """Show hooks an attention function from now on; returns what ends that."""
    if name != "eager":
        original = interface[name]
        interface[name] = _show_hook(original)

        def restore() -> None:
            del interface[name]  # of this instance; what all instances share is as it was
            if interface.get(name) is not original:
                interface[name] = original

        return restore
    # Eager attention has no entry: each file asks with a function of its own as the default.
    if id(interface) not in _eager:
        own = interface.get_interface

        def get_interface(
            attn_implementation: str, default: AttentionFunction
        ) -> AttentionFunction:
            found: AttentionFunction = own(attn_implementation, default)
            return _show_hook(found) if attn_implementation == "eager" else found

        _eager[id(interface)] = get_interface
    vars(interface)["get_interface"] = _eager[id(interface)]
    return lambda: vars(interface).pop("get_interface")


def forward_hooks(module: nn.Module) -> dict[int, Any]:
    """The forward hooks that torch calls for a module, by a key each; torch names them only in
    private."""
    pre, post = "_forward_pre_hooks", "_forward_hooks"
    return {**getattr(module, pre, {}), **getattr(module, post, {})}


@contextmanager
def attribute_set_to(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Replace a method of a module inside the block."""
    own = vars(module).get(name)  # set where a library (accelerate) has wrapped it already
    setattr(module, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(module, name)
        else:
            setattr(module, name, own)
