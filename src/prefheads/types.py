"""The words that options are given in, each set once."""

from __future__ import annotations

from typing import Literal

Mode = Literal["contrast", "amplify"]
"""Steer against a second branch without the heads (Eq. 8), or scale the heads in the only one."""
Target = Literal["head", "profile", "query"]
"""What a gain multiplies: a head's output, its unnormalised attention to the profile's tokens, or
its query."""
Scope = Literal["response", "all"]
"""Where gains act: at positions that predict the response, or at every position."""
Schedule = Literal["constant", "entropy"]
"""Strength of a contrast: gamma, or gamma times the entropy of the next token."""
Ablation = Literal["zero", "mean"]
"""What an ablated head hands on: nothing, or its mean output over the samples."""
Reference = Literal["no-profile", "other-profile"]
"""The prompt whose head effects discovery takes off: without a profile, or with another user's."""
DiscoveryMethod = Literal["exact", "screen"]
"""Ablate every head, or only those that attribution patching (a gradient) estimates highest."""
Retrieval = Literal["bm25", "dense", "recent", "random", "all"]
"""Which items of a profile go into the prompt."""
Routing = Literal["hard", "soft"]
"""A user has the map of the nearest cluster, or a mixture of all (section 5.3)."""
Objective = Literal["likelihood", "specificity"]
"""What calibration aims at: likelier responses, or a larger gain from the user's own profile."""
Weighting = Literal["binary", "soft"]
"""Chosen heads all count alike, or each by its score (section 5.2)."""
Control = Literal["heads", "mask"]
"""A random control puts the weights on other heads, or on any heads (section 6.4)."""
