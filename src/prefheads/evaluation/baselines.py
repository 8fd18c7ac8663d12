"""Decoding methods that do not work with heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from prefheads.data.encoding import Batch
from prefheads.evaluation.decoder import Decoder
from prefheads.evaluation.methods import Decoding, Method, Option
from prefheads.steering.cad import context_contrast
from prefheads.steering.combine import combine
from prefheads.steering.dola import layer_contrast
from prefheads.steering.setting import Setting


class Plain(Decoding):
    """The same prompt, greedy."""

    name = "plain"
    likelihood = "setting"

    def described(self, setting: Setting) -> str:
        return str(setting)


class ContextAware(Decoding):
    """Context-aware decoding (Shi et al.): against the prompt without the profile."""

    name = "cad"
    options: Mapping[str, Option] = {"gamma": Option(0.5)}
    likelihood = "logits"

    def acting(
        self,
        decoder: Decoder,
        model: PreTrainedModel,
        rows: slice,
        batch: Batch,
        bare: Callable[[], Batch],
    ) -> AbstractContextManager[Any]:
        without, gamma = bare(), decoder.method.options["gamma"]
        return context_contrast(model, without.prompt_ids, without.prompt_mask, gamma)

    def logits(self, method: Method, own: Tensor, bare: Tensor) -> Tensor:
        return combine(own, bare, method.options["gamma"])


class LayerContrast(Decoding):
    """DoLa, decoding by contrasting layers (Chuang et al.).

    It rules tokens out, so that what users wrote may have no likelihood at all under it.
    """

    name = "dola"
    options: Mapping[str, Option] = {
        "layers": Option("high", ("low", "high")),
        "plausibility": Option(0.1, highest=1, positive=True),
        "repetition_penalty": Option(1.2, positive=True),
    }

    def acting(
        self,
        decoder: Decoder,
        model: PreTrainedModel,
        rows: slice,
        batch: Batch,
        bare: Callable[[], Batch],
    ) -> AbstractContextManager[Any]:
        options = decoder.method.options
        return layer_contrast(model, options["layers"], plausibility=options["plausibility"])


BASELINES = (Plain(), ContextAware(), LayerContrast())
