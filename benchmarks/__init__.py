"""Side-by-side measurements of speed, each in one run: ``python -m benchmarks.discovery``."""
