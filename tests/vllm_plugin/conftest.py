"""Tests of the vLLM plugin: they need vLLM, which has an environment of its own."""

from __future__ import annotations

import os
from importlib.util import find_spec

# This folder's name is not that of the package, which a folder beside tests would pass for.
_vllm = find_spec("vllm")
_installed = _vllm is not None and _vllm.origin is not None

collect_ignore_glob = [] if _installed else ["test_*.py"]

if _installed:
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, within tests' reach
    }
    from support.engines import configured, maps, saved
    from support.served_by_vllm import fitted, twin

    __all__ = ["configured", "fitted", "maps", "saved", "twin"]  # fixtures
