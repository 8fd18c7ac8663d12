"""Writes docs/models.md: which families are right, and which are refused and why.

Run it as `make models-page`, after `make test-families` has passed with the same transformers.
"""

from __future__ import annotations

import sys
import textwrap
import warnings
from pathlib import Path

import torch
import transformers
from support.families import FAMILIES, UNBUILDABLE
from support.matrix import EXACT, Unavailable, default_attention, model_of, own_gap
from support.pictures import PICTURES
from support.pictures import REFUSED as REFUSED_PICTURES
from support.refused import REASON, REFUSED

from prefheads.interventions.intercept import intercept
from prefheads.interventions.probes import sharing_of

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
WHY = {
    "no attention heads behind the AttentionInterface": "Some or all layers have no attention "
    "heads, or attention that does not ask transformers' `AttentionInterface` for its function",
    "together before it projects them": "A norm over all heads stands between them and their "
    "projection, so the output of one head alone is not defined",
    "looks ahead": "Looks ahead: not a causal language model",
    "equally many heads": "Not one attention of equally many heads in each layer",
    "does not mark its decoder layers": "Does not mark its decoder layers; name them by "
    "`prefheads.set_layers`",
    "shares keys and values": "Layers share keys and values",
    "let rows join": "Rows cannot join a batch between two layers",
    "several attentions in one decoder layer": "Several attentions in one decoder layer",
}


def names(kinds) -> str:
    """Kinds in lines, as a paragraph or the end of an item of a list."""
    listed = ", ".join(f"`{kind}`" for kind in sorted(kinds))
    return textwrap.fill(listed, 98, break_on_hyphens=False).replace("\n", "\n  ")


def page() -> str:
    right = [kind for kind in FAMILIES if kind not in UNBUILDABLE and kind not in REASON]
    whole, own = [], []
    for kind in right:
        attention = default_attention(kind)
        model = model_of(kind, attention)
        with intercept(model):
            if not sharing_of(model).clean:
                whole.append(kind)
        try:
            if own_gap(kind, attention, "dynamic", True) > 1e-2:
                own.append(kind)
        except Unavailable:
            pass
    version = transformers.__version__
    refused = "\n\n".join(f"- {WHY[why]}:\n  {names(kinds)}" for why, kinds in REFUSED.items())
    cannot = "\n".join(f"- `{kind}`: {why}" for kind, why in UNBUILDABLE.items())
    pictures = [kind for kind in PICTURES if kind not in REFUSED_PICTURES]
    torch_version = torch.__version__.partition("+")[0]
    return f"""# Models

What follows was tried with transformers {version} and torch {torch_version} on a CPU, on a tiny
random model of each of the {len(FAMILIES)} causal language model families that transformers has.
Written by `make models-page`; tried by `make test-families`.

On your own model, device, precision and attention: `prefheads check --model MODEL`.

**{len(right)} families are right** in every way that transformers itself offers for them,
{len(REASON)} are refused before any work, in one line that says why, and {len(UNBUILDABLE)} could
not be tried. Right means: the logits of every step differ from those of slow full passes by at most
{EXACT:.0e} of the largest logit, in float32. The ways: sdpa and eager attention, dynamic and static
cache, contrast and amplification, target `head` and `profile`, scope `response` and `all`, one text
and a left-padded batch of different users. The NLL of a response under ablated heads is that of
full passes to 1e-4 nats.

## Right

{names(right)}

- These run whole texts for each branch, because they keep more than keys and values from token to
  token, or look at the text in other ways; a contrast's prompt and discovery take longer on them:
  {names(whole)}.
- The decoding of these, without any steering, differs from their full passes in a left-padded
  batch, most because they take no positions; there it was tried that steering by next to nothing
  is that decoding:
  {names(own)}.
- Target `profile` is refused where attention reads other keys than those of the text's tokens
  (`deepseek_v4`), and with kernels that take no biases (flash attention).

Prompts with pictures are right in all these ways, for
{names(pictures)}. Refused: {names(REFUSED_PICTURES)}.

## Refused

{refused}

Not tried:

{cannot}

## A model of your own

The attention modules are those that ask transformers' `AttentionInterface` for an attention
function; each needs a `layer_idx`, and each decoder layer is a `GradientCheckpointingLayer`, as in
transformers' own models. Layers that are not marked so are named by hand:

```python no-run
prefheads.set_layers(model, "transformer.h")  # the path of the list of layers, or the modules
```

Models with LoRA or other adapters of PEFT are taken as they are.
"""


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    PAGE.write_text(page())
    print(PAGE, file=sys.stderr)
