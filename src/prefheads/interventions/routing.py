"""Reaching the attention of a model, where its modules look up their attention function.

Modules of transformers ask an ``AttentionInterface`` at every call for the function that their
config names. While a model is reached, what they find there shows itself to an observer first
(:mod:`prefheads.interventions.hooks`). The config keeps its words: models look at the name of
their attention
to decide on other things, such as which mask to make. No other model is acted on: without an
observer, which belongs to the pass of one thread, the function is the one it was.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from transformers import AttentionInterface, PreTrainedModel

from prefheads.interventions.hooks import AttentionFunction, observe

lock = threading.RLock()  # held while a model's attention is probed, reached or let go
_users: dict[tuple[int, str], int] = {}  # how many models reach a function now
_eager: dict[int, Callable[..., AttentionFunction]] = {}


def attention_backend(model: PreTrainedModel) -> str:
    """The attention implementation of a model, such as ``"sdpa"`` or ``"eager"``."""
    return str(model.config.get_text_config()._attn_implementation)


@contextmanager
def reached(model: PreTrainedModel) -> Iterator[None]:
    """Let observers see the attention of a model inside the block."""
    name = attention_backend(model)
    with ExitStack() as stack:
        for interface in _interfaces(model):
            if name == "eager" or name in interface:
                stack.enter_context(_routed(interface, name))
        yield


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


def _interfaces(model: PreTrainedModel) -> list[AttentionInterface]:
    """Where the modules of a model look: transformers' interface, or one of their own file."""
    files = {cls.__module__ for module in model.modules() for cls in type(module).__mro__}
    found = (getattr(sys.modules.get(f), "ALL_ATTENTION_FUNCTIONS", None) for f in files)
    return list({id(x): x for x in found if isinstance(x, AttentionInterface)}.values())


@contextmanager
def _routed(interface: AttentionInterface, name: str) -> Iterator[None]:
    key = id(interface), name
    with lock:
        _users[key] = _users.get(key, 0) + 1
        if _users[key] == 1:
            _route(interface, name)
    try:
        yield
    finally:
        with lock:
            _users[key] -= 1
            if not _users[key]:
                del _users[key]
                _restore(interface, name)


_originals: dict[tuple[int, str], AttentionFunction] = {}


def _route(interface: AttentionInterface, name: str) -> None:
    if name != "eager":
        _originals[id(interface), name] = interface[name]
        interface[name] = observe(interface[name])
        return
    # Eager attention has no entry: each file asks with a function of its own as the default.
    if id(interface) not in _eager:
        own = interface.get_interface

        def get_interface(
            attn_implementation: str, default: AttentionFunction
        ) -> AttentionFunction:
            found: AttentionFunction = own(attn_implementation, default)
            return observe(found) if attn_implementation == "eager" else found

        _eager[id(interface)] = get_interface
    vars(interface)["get_interface"] = _eager[id(interface)]


def _restore(interface: AttentionInterface, name: str) -> None:
    if name == "eager":
        del vars(interface)["get_interface"]
        return
    del interface[name]  # of this instance; what all instances share is as it was
    original = _originals.pop((id(interface), name))
    if interface.get(name) is not original:
        interface[name] = original
