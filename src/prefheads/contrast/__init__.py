"""Second opinions about the next token: what steering combines, and the baselines CAD and DoLa."""

from prefheads.contrast.cad import context_contrast
from prefheads.contrast.combine import combine, contrast_layers, entropy_strength
from prefheads.contrast.dola import layer_contrast

__all__ = [
    "combine",
    "context_contrast",
    "contrast_layers",
    "entropy_strength",
    "layer_contrast",
]
