"""Finding the heads that matter: the Preference Contribution Score of every head."""

from prefheads.discovery.exact import Reference, discover

__all__ = ["Reference", "discover"]
