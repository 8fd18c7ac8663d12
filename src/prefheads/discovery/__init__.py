"""Finding the heads that matter: the Preference Contribution Score of every head, and, for
comparison, which heads copy from the prompt.
"""

from prefheads.discovery.exact import discover
from prefheads.discovery.retrieval import retrieval_scores

__all__ = ["discover", "retrieval_scores"]
