"""The benchmark tasks: their prompts, retrieval and metrics."""
