"""Decoding methods that do not work with heads."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from prefheads.evaluation.decoder import Decoder
from prefheads.evaluation.methods import Method, Option, Prompts
from prefheads.steering.cad import context_contrast
from prefheads.steering.combine import combine
from prefheads.steering.dola import layer_contrast
from prefheads.steering.setting import Setting


class Plain(Method):
    """The same prompt, greedy."""

    kind = "plain"
    likelihood = "setting"

    def described(self, setting: Setting) -> str:
        return str(setting)


class ContextAware(Method):
    """Context-aware decoding (Shi et al.): against the prompt without the profile."""

    kind = "cad"
    accepts: Mapping[str, Option] = {"gamma": Option(0.5)}
    likelihood = "logits"

    def acting(self, decoder: Decoder, prompts: Prompts) -> AbstractContextManager[Any]:
        bare, gamma = prompts.bare(), self.options["gamma"]
        return context_contrast(prompts.model, bare.prompt_ids, bare.prompt_mask, gamma)

    def logits(self, own: Tensor, bare: Tensor) -> Tensor:
        return combine(own, bare, self.options["gamma"])


class LayerContrast(Method):
    """DoLa, decoding by contrasting layers (Chuang et al.).

    It rules tokens out, so that what users wrote may have no likelihood at all under it.
    """

    kind = "dola"
    accepts: Mapping[str, Option] = {
        "layers": Option("high", ("low", "high")),
        "plausibility": Option(0.1, highest=1, positive=True),
        "repetition_penalty": Option(1.2, positive=True),
    }

    def acting(self, decoder: Decoder, prompts: Prompts) -> AbstractContextManager[Any]:
        layers, plausibility = self.options["layers"], self.options["plausibility"]
        return layer_contrast(prompts.model, layers, plausibility=plausibility)


BASELINES = (Plain(), ContextAware(), LayerContrast())
