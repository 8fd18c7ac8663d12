"""Tensor parallelism: each process has its part of the heads, and of the gains."""

from __future__ import annotations

from support.engines import assert_as_transformers, engine, loaded, mixed


def test_two_processes_give_the_tokens_of_one(saved) -> None:
    with engine(saved("llama"), tensor_parallel_size=2) as llm:
        assert_as_transformers(llm, loaded("llama"), mixed(12))
