"""Algorithm 1 from end to end: clusters of users, their heads, and how to steer with them."""
