"""Side-by-side measurements of speed and memory: ``python -m benchmarks --help``."""
