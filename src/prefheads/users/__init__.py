"""Users with different preferences (section 5): embed profiles, cluster them, route to clusters.

Embedding and clustering need the extra ``cluster``; routing needs numpy alone.
"""

from prefheads.users.cluster import Clusters, cluster_heads, fit_clusters
from prefheads.users.embed import ProfileEncoder
from prefheads.users.route import mix, route

__all__ = ["Clusters", "ProfileEncoder", "cluster_heads", "fit_clusters", "mix", "route"]
