"""A model under test: its prompts, and what it says of them by itself."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, STATIC_LAYER_TYPE_MAPPING
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefheads.data.encoding import Batch, Encoded, encode, pad_batch
from prefheads.data.example import Example
from prefheads.interventions.branching import BranchedForward
from prefheads.interventions.hooks import LAYER, STEP, forward_hooks, hooked
from prefheads.interventions.intercept import head_layout, intercept, masked_backend
from prefheads.interventions.layout import input_device, positions
from prefheads.interventions.plan import ActivePositions, without_branches
from prefheads.scoring.scorer import token_nll
from prefheads.steering.context import active_steering
from prefheads.types import Target

N_NEW = 4  # tokens
ONE, BATCH = "one text", "padded batch of different users"
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
}
PEOPLE = [
    Example("a", "a", ({"text": "Rain again. Splendid."},), "Say how it was today: ", "Wet."),
    Example(
        "b",
        "b",
        ({"text": "WOW what a goal!!!"}, {"text": "Unreal scenes, UNREAL."}),
        "Write a line about the match you saw last night: ",
        "SCENES! What a night!!!",
    ),
    Example("c", "c", ({"text": "Soup needs salt, then patience."},), "Name a dish: ", "Leek soup"),
]


class Subject:
    """A model, the prompts, and what the model says of them by itself.

    Attributes:
        plain: Tokens and logits of stock generation by batch and cache, or why there are none.
        noise: How far these are from the model's own full passes, relative to the largest logit, by
            batch.
        noise_nats: How far the NLL of a response's token after a cached prompt is from that of a
            full pass.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.layout = model, head_layout(model)
        self.encoded = [encode(tokenizer, example) for example in PEOPLE]
        self.pad = tokenizer.pad_token_id or 0
        texts = {ONE: self.encoded[1:2], BATCH: self.encoded}
        self.batches = {name: pad_batch(each, self.pad) for name, each in texts.items()}
        self.plain: dict[tuple[str, str], tuple[Tensor, Tensor] | str] = {}
        self.noise = dict.fromkeys(self.batches, 0.0)
        for batch, cache in itertools.product(self.batches, CACHES):
            try:
                new, logits = self.generate(self.batches[batch], **CACHES[cache])
            except Exception as error:  # whatever transformers says of a cache it has not got
                self.plain[batch, cache] = str(error).partition("\n")[0] or type(error).__name__
                continue
            self.plain[batch, cache] = new, logits
            own = [self.full(*row) for row in self.texts(batch, new)]
            self.noise[batch] = max(self.noise[batch], *map(gap, logits, own))
        gaps = ((self._nll_in_parts(e) - self.nll(e)).abs().max() for e in self.encoded)
        self.noise_nats = float(max(gaps))

    def full(
        self, encoded: Encoded, new: Tensor, gains: Tensor | None = None, target: Target = "head"
    ) -> Tensor:
        """Logits ``(n_new, vocab)`` after a prompt and its new tokens, by one full pass with gains
        from the last prompt token on."""
        device = input_device(self.model)
        ids = torch.cat([encoded.prompt_ids.to(device), new[:-1].to(device)])
        n, start = len(ids), len(encoded.prompt_ids) - 1
        profile = nn.functional.pad(encoded.profile_mask, (0, n - start - 1))[None]
        gains = torch.ones(self.layout.shape) if gains is None else gains
        plan, active = without_branches(gains[None], target), ActivePositions(start)
        branched = BranchedForward(plan, n, profile, active=active)
        backend = masked_backend(self.model) if target == "profile" else None
        with intercept(self.model, backend, entries=False), hooked(branched):
            places = positions(self.model, 0, n)
            out = self.model(input_ids=ids[None], use_cache=False, **places)
        return out.logits[0, start:].float()  # type: ignore[no-any-return]

    def generate(self, batch: Batch, **options: Any) -> tuple[Tensor, Tensor]:
        """Greedy tokens ``(B, n)``, and their logits ``(B, n, vocab)``."""
        out = self._run(batch, output_logits=True, **options)
        new = out.sequences[:, batch.prompt_ids.shape[1] :]
        return new, torch.stack(out.logits, 1).float()

    def search(self, batch: Batch) -> Any:
        """Scores of the best beams ``(B,)``."""
        return self._run(batch, num_beams=3, output_scores=True).sequences_scores

    def _run(self, batch: Batch, **options: Any) -> Any:
        generator: Any = self.model
        device = input_device(self.model)
        return generator.generate(
            input_ids=batch.prompt_ids.to(device),
            attention_mask=batch.prompt_mask.long().to(device),
            max_new_tokens=N_NEW,
            min_new_tokens=N_NEW,
            do_sample=False,
            return_dict_in_generate=True,
            pad_token_id=self.pad,
            **options,
        )

    def maps(self, n: int) -> Tensor:
        """Maps of users ``(n, L, H)``, no two alike; that of the last begins in the middle."""
        weights = torch.rand(n, *self.layout.shape, generator=torch.Generator().manual_seed(0))
        weights[-1, : self.layout.shape[0] // 2] = 0
        return weights

    def texts(self, batch: str, new: Tensor) -> list[tuple[Encoded, Tensor]]:
        encoded = self.encoded[1:2] if batch == ONE else self.encoded
        return list(zip(encoded, new, strict=True))

    def nll(self, encoded: Encoded, gains: Tensor | None = None, target: Target = "head") -> Tensor:
        """NLL of a response's tokens ``(T,)`` in nats, by one full pass."""
        response = encoded.response_ids.to(input_device(self.model))
        return token_nll(self.full(encoded, response, gains, target), response).cpu()

    def _nll_in_parts(self, encoded: Encoded) -> Tensor:
        """The same with the model's cache, and nothing of ours."""
        device, n = input_device(self.model), len(encoded.prompt_ids)
        prompt, response = encoded.prompt_ids.to(device)[None], encoded.response_ids.to(device)
        first = self.model(input_ids=prompt, use_cache=True, **positions(self.model, 0, n))
        logits = first.logits[0, -1:]
        if len(response) > 1:
            rest = self.model(
                input_ids=response[None, :-1],
                past_key_values=first.past_key_values,
                **positions(self.model, n, n + len(response) - 1),
            )
            logits = torch.cat([logits, rest.logits[0]])
        return token_nll(logits, response).cpu()


def marks(model: PreTrainedModel) -> dict[str, Any]:
    """What an intervention could leave behind, by where."""
    functions = ALL_ATTENTION_FUNCTIONS
    found: dict[str, Any] = {
        "the config": str(model.config.to_dict()),
        "transformers' attention functions": [dict(functions), list(vars(functions))],
        "transformers' cache layers": [
            dict(layers) for layers in (DYNAMIC_LAYER_TYPE_MAPPING, STATIC_LAYER_TYPE_MAPPING)
        ],
        "a steering": active_steering(model),
    }
    for name, module in model.named_modules():
        hooks = list(forward_hooks(module).values())
        own = [k for k in ("forward", "generate", LAYER, STEP) if k in vars(module)]
        found[name or "the model"] = (hooks, own, module.training)
    return found


def gap(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest number wanted."""
    return float((found - wanted).abs().max() / wanted.abs().max())
