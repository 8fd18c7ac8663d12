"""Steered generation from vLLM: each request with its own heads, mode and strength.

vLLM finds this package through its entry points. It does nothing unless the environment variable
``PREFHEADS_MAPS`` lists head maps: files written by :meth:`prefheads.HeadWeights.save`, run folders
of ``prefheads discover`` or ``fit``, or folders of these, separated as in ``PATH``.

    PREFHEADS_MAPS=runs/ vllm serve MODEL --scheduler-cls prefheads.vllm.SteeringScheduler

A request is steered by its ``extra_args`` (``vllm_xargs`` over HTTP, there as JSON text)::

    SamplingParams(extra_args={"prefheads": {"map": "run/3", "gamma": 0.5, "mode": "contrast"}})

``map`` is the id of a map (:mod:`prefheads.vllm.library` says which there are), or a mixture such
as ``{"run/0": 0.3, "run/1": 0.7}``. ``mode`` is ``"contrast"`` (default) or ``"amplify"``;
``suppression`` is that of :func:`prefheads.steer`. The target is the head's output, the scope the
response: prompt tokens are encoded once, as they are, and the last of them is the first that is
steered. What cannot be honoured is refused when the request comes in.

Amplification multiplies heads in the only pass there is. Contrast runs the tokens that predict the
response a second time from the lowest layer that any map reaches (the fork; set it by
``PREFHEADS_FORK``), with heads suppressed and keys and values of their own. That needs a second
cache above the fork, for all requests, since blocks of vLLM's cache are alike: of L layers with the
fork at F, a token takes ``(2L - F) / L`` of the usual memory. ``PREFHEADS_CONTRAST=0`` does without
it. The prompt's keys and values in the second cache are those of the first, written twice.

Everything a step depends on is in persistent buffers. With compilation or CUDA graphs the second
branch has as many rows as the first, so that no shape depends on data; without them
(``--enforce-eager``) it has just the rows that need it. Only the latter, and the former's
arithmetic without its compilation, have been tested, on CPUs.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefheads.vllm.scheduler import SteeringScheduler as SteeringScheduler

SERVER = "PREFHEADS_SERVER"  # process id of `prefheads serve`, for its vLLM
ARCHITECTURES = ("Gemma3", "Llama", "Mistral", "Qwen2", "Qwen3")


def register() -> None:
    """Entry point of ``vllm.general_plugins``: put the steerable models in place of vLLM's own."""
    if not os.environ.get("PREFHEADS_MAPS"):
        return
    _end_with_server()
    from vllm import ModelRegistry

    for name in ARCHITECTURES:
        ModelRegistry.register_model(
            f"{name}ForCausalLM", f"prefheads.vllm.models:Steered{name}ForCausalLM"
        )


def _end_with_server() -> None:
    """In vLLM's process: end it when its server is no more, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is None or os.environ.get(SERVER) != str(parent.pid):
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="server-watch", daemon=True).start()


def __getattr__(name: str) -> Any:
    # vLLM takes the scheduler by its dotted name; importing it here would import vLLM for nothing.
    if name == "SteeringScheduler":
        from prefheads.vllm.scheduler import SteeringScheduler

        return SteeringScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
