"""Benchmarks: several methods on several tasks, resumable, with intervals and paired tests."""
