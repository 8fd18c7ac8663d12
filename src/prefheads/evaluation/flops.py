"""FLOPs of generating, steering and discovering: the paper's estimate, and an exact count.

The exact count is that of the matrix products which the model's own code performs: 2 FLOPs for
each multiplication with its addition, as ``torch.utils.flop_counter`` counts. It is taken from the
model itself, run without weights (device ``meta``) on one and on two tokens, so grouped queries,
gated MLPs, experts and the like need no formula of their own. Attention is dense: a query is
multiplied with every key that its layer holds, masked or not.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from prefheads.errors import ModelError
from prefheads.models.limits import Budget
from prefheads.types import Scope

# The model of the paper's Table 3, here because the hub gives its config to registered users only.
LLAMA_3_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)


def paper_estimate(config: PreTrainedConfig, prompt: int, new: int) -> tuple[int, int] | None:
    """The estimate that the paper's Table 3 (section 6.6) holds, in FLOPs.

    With L layers, width d and MLP width f::

        per token  P = L * (8 d^2 + 4 d f)
        prompt         n * P + 4 L d n^2
        decoding       T * (P + 4 L d n)
        DPS            prompt + 2 * decoding

    It gives all nine figures of the table as printed. It takes as many key as query heads and an
    MLP of two matrices, where LLaMA-3 has a quarter of the key heads and three matrices; it leaves
    out the vocabulary projection; and it holds the context at n while decoding (were it to grow,
    one figure would differ: 13.44 instead of 13.43).

    Args:
        prompt, new: Tokens of the prompt, n, and generated ones, T.

    Returns:
        Baseline and DPS; None for a config that does not name its MLP's width.
    """
    config = config.get_text_config()
    d, layers = config.hidden_size, config.num_hidden_layers
    mlp = getattr(config, "intermediate_size", None)
    if not isinstance(mlp, int):
        return None
    per_token = layers * (8 * d * d + 4 * d * mlp)
    per_pair = 4 * layers * d
    prefill = prompt * per_token + per_pair * prompt**2
    decoding = new * (per_token + per_pair * prompt)
    return prefill + decoding, prefill + 2 * decoding


@dataclass(frozen=True)
class LayerCost:
    """FLOPs of one layer: for each token, for each pair of a query and a key in all heads, and the
    tokens that sliding attention sees (None: all)."""

    per_token: int
    per_pair: int
    window: int | None

    def forward(self, rows: int, new: int, past: int) -> int:
        """``rows`` rows of ``new`` tokens after ``past`` ones in the cache."""
        held = past if self.window is None else min(past, self.window - 1)
        return rows * new * (self.per_token + (held + new) * self.per_pair)


@dataclass(frozen=True)
class ModelCost:
    """FLOPs of a model, and from them those of whole procedures. Batch size 1, in FLOPs.

    Attributes:
        n_heads: Attention heads in a layer.
        outside: For each token outside the layers, but for the vocabulary (projected embeddings).
        vocabulary: The vocabulary projection of one position.
    """

    layers: tuple[LayerCost, ...]
    n_heads: int
    outside: int
    vocabulary: int

    def forward(
        self,
        new: int,
        past: int = 0,
        *,
        logits: int = 1,
        rows: Sequence[int] | None = None,
        folded: bool = False,
    ) -> int:
        """One pass of ``new`` tokens a row after ``past`` ones; logits of ``logits`` positions.

        Args:
            rows: Rows in each layer, where branches join on the way; one if None.
            folded: The rows lie side by side in the query axis, sharing the cached keys; the
                products with each other's keys are computed and masked.
        """
        rows = rows or [1] * len(self.layers)
        inside = sum(
            layer.forward(1, n * new, past) if folded else layer.forward(n, new, past)
            for layer, n in zip(self.layers, rows, strict=True)
        )
        return inside + new * self.outside + rows[-1] * logits * self.vocabulary

    # -- decoding: ``new`` tokens after a prompt of ``prompt`` --

    def plain(self, prompt: int, new: int) -> int:
        """Stock ``generate()``: the last token is never fed back."""
        steps = (self.forward(1, prompt + i) for i in range(new - 1))
        return self.forward(prompt) + sum(steps)

    def amplify(self, prompt: int, new: int) -> int:
        """Steering with one branch costs what plain decoding does."""
        return self.plain(prompt, new)

    def contrast(self, prompt: int, new: int, fork: int = 0) -> int:
        """DPS: the prompt as it is, its last token once more with both branches from layer ``fork``
        on, the first that holds a suppressed head, then token by token with a second row there."""
        above = [2] * (len(self.layers) - fork)
        steps = (self.forward(1, prompt + i, rows=[1] * fork + above) for i in range(new - 1))
        rows = [0] * fork + above
        first = self.forward(1, prompt - 1, rows=rows if prompt > 1 else [1] * fork + above)
        return (self.forward(prompt) if prompt > 1 else 0) + first + sum(steps)

    def cad(self, prompt: int, new: int, bare: int) -> int:
        """Context-aware decoding: all of it again for a prompt of ``bare`` tokens."""
        return self.plain(prompt, new) + self.plain(bare, new)

    def dola(self, prompt: int, new: int, early: int) -> int:
        """Contrasting layers: ``early`` more vocabulary projections a token."""
        return self.plain(prompt, new) + new * early * self.vocabulary

    # -- discovery: PCS of all heads on one example --

    def naive_discovery(self, prompt: int, response: int, *, all_logits: bool = False) -> int:
        """One full pass for each head, and one without ablation, with logits where the response is
        predicted, or at every position (``all_logits``)."""
        tokens = prompt + response - 1
        passes = 1 + len(self.layers) * self.n_heads
        return passes * self.forward(tokens, logits=tokens if all_logits else response)

    def discovery(
        self,
        prompt: int,
        response: int,
        scope: Scope = "response",
        *,
        tokens_per_pass: int = Budget().tokens,
    ) -> int:
        """:func:`prefheads.discover`: passes in which the row of each head joins at its layer.

        With scope ``"response"`` the whole text runs once, and then its response alone; with
        ``"all"`` each row holds all of it.
        Eager attention multiplies each row's queries with the other rows' keys too, which are
        masked; sdpa's on a CPU, which the count does not see, leaves them out.
        """
        if scope == "all" or prompt == 1:
            return self._ablations(prompt + response - 1, 0, response, False, tokens_per_pass)
        whole = self.forward(prompt + response - 1)
        return whole + self._ablations(response, prompt - 1, response, True, tokens_per_pass)

    def _ablations(self, new: int, past: int, logits: int, folded: bool, budget: int) -> int:
        n_layers = len(self.layers)
        n, a_pass = n_layers * self.n_heads, max(1, budget // new)
        total = self.forward(new, past, logits=logits)  # unchanged; the rows branch off
        for begin in range(0, n, a_pass):
            end = min(n, begin + a_pass)
            joined = (min(end, (i + 1) * self.n_heads) - begin for i in range(n_layers))
            rows = [max(0, heads) for heads in joined]
            total += self.forward(new, past, logits=logits, rows=rows, folded=folded)
        return total


def model_cost(config: PreTrainedConfig) -> ModelCost:
    """Count a model's FLOPs without its weights.

    Each layer is run on one and on two tokens, which tells its cost a token from its cost a
    query-key pair; a run on three must confirm both.

    Raises:
        ModelError: The model cannot be run without weights, or is no stack of attention layers.
    """
    model = _without_weights(config)
    kind = f"{type(model).__name__} ({config.model_type})"
    try:
        counts = [_count(model, n) for n in (1, 2, 3)]
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"cannot count the FLOPs of {kind} without weights: {reason}") from None
    text = config.get_text_config()
    windows = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=text).layers]
    runs, (_, outside, vocabulary) = [layers for layers, _, _ in counts], counts[0]
    found = (len(runs[0]), len(windows))
    if found != (text.num_hidden_layers,) * 2:
        raise ModelError(
            f"cannot count the FLOPs of {kind}: {found[0]} decoder layers and {found[1]} caches "
            f"were found, its config says {text.num_hidden_layers}"
        )
    layers = []
    for i, window in enumerate(windows):
        one, two, three = (run[i] for run in runs)
        per_pair = (two - 2 * one) // 2
        layer = LayerCost(one - per_pair, per_pair, window)
        if per_pair <= 0 or [layer.forward(1, n, 0) for n in (2, 3)] != [two, three]:
            raise ModelError(f"cannot count the FLOPs of {kind}: layer {i} is not plain attention")
        layers.append(layer)
    return ModelCost(tuple(layers), text.num_attention_heads, outside, vocabulary)


def _without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                copy.deepcopy(config),
                trust_remote_code=False,
                # Matrix products that the counter sees, and experts without a look at the data.
                attn_implementation="eager",
                experts_implementation="batched_mm",
            )
    except Exception as error:  # anything can be wrong with foreign configs
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"cannot build a {config.model_type} model: {reason}") from None
    if model.get_output_embeddings() is None:
        raise ModelError(f"{type(model).__name__} has no output embeddings")
    model.eval()
    return model


def _count(model: PreTrainedModel, n: int) -> tuple[list[int], int, int]:
    """FLOPs of ``n`` tokens and the last one's logits: of each layer, of a token outside of them,
    and of the vocabulary projection."""
    ids = torch.ones((1, n), dtype=torch.long, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        # Without a mask, transformers looks into the positions for packed sequences.
        model(input_ids=ids, attention_mask=ids, use_cache=False, logits_to_keep=1)
    by_name = counter.get_flop_counts()
    names = {module: f"{type(model).__name__}.{name}" for name, module in model.named_modules()}

    def spent(module: torch.nn.Module) -> int:
        return sum(by_name.get(names[module], {}).values())

    modules = model.get_decoder().modules()
    layers = [spent(m) for m in modules if isinstance(m, GradientCheckpointingLayer)]
    vocabulary = spent(model.get_output_embeddings())
    rest = counter.get_total_flops() - sum(layers) - vocabulary
    return layers, rest // n, vocabulary
