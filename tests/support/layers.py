"""DoLa the slow way."""

from __future__ import annotations

import copy
import functools

import torch
from torch.distributions import Categorical, kl_divergence

# Asked for hidden states, transformers leaves hooks of its own on a model.
twin = functools.cache(copy.deepcopy)


def reference(model, ids, layers, plausibility=0.1):
    """DoLa's scores (vocab,) of the next token, and the layer that was chosen."""
    model = twin(model)
    with torch.no_grad():
        out = model(input_ids=ids[None], output_hidden_states=True, use_cache=False)
        final = out.logits[0, -1].log_softmax(-1)
        best, chosen, early = -1.0, None, None
        for layer in layers:
            logits = model.get_output_embeddings()(out.hidden_states[layer][0, -1])
            p, q = Categorical(logits=final), Categorical(logits=logits)
            middle = Categorical(probs=(p.probs + q.probs) / 2)
            distance = float(kl_divergence(middle, p) + kl_divergence(middle, q)) / 2
            if distance > best:
                best, chosen, early = distance, layer, logits.log_softmax(-1)
    scores = final - early
    if plausibility is not None:
        scores[final.exp() < plausibility * final.exp().max()] = float("-inf")
    return scores, chosen
