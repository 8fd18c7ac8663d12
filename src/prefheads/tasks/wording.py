"""How near a text's wording is to its reference: ROUGE and METEOR, by the libraries of the official
evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from prefheads.optional import require
from prefheads.stats import Array
from prefheads.tasks import wordnet

# Punkt without its English model knows no abbreviations; these are the frequent ones.
_ABBREVIATIONS = (
    "a.m approx apr aug ave capt co col corp d.c dec dept dr e.g etc feb fig fr ft gen gov hon i.e "
    "inc jan jr lt ltd maj mr mrs ms mt nov oct p.m ph.d prof rep rev sen sept sgt sr st u.k "
    "u.n u.s v vol vs"
)
SEED = 0  # the official evaluation sets none, so that its figures differ a little by run


@cache
def rouge() -> Any:
    scorer = require("rouge_score.rouge_scorer", "eval")
    return scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=False)


def resampled(values: Array, seed: int = SEED) -> float:
    """The median of the means of 1,000 samples drawn anew from ``(n,)``, by ``rouge_score``.

    Its aggregator draws from numpy's global generator, which is left as it was.
    """
    scoring = require("rouge_score.scoring", "eval")
    aggregator = scoring.BootstrapAggregator()
    for value in np.asarray(values, dtype=np.float64).tolist():
        aggregator.add_scores({"f": scoring.Score(value, value, value)})
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        return float(aggregator.aggregate()["f"].mid.fmeasure)
    finally:
        np.random.set_state(state)


def meteor(prediction: str, reference: str) -> float:
    score = require("nltk.translate.meteor_score", "eval").single_meteor_score
    options = {"alpha": 0.9, "beta": 3.0, "gamma": 0.5, "wordnet": wordnet.load()}
    return float(score(_words(reference), _words(prediction), **options))


def _words(text: str) -> list[str]:
    """The words of ``word_tokenize``: Treebank words of each sentence."""
    tokenizer = require("nltk.tokenize", "eval").NLTKWordTokenizer()
    split, _ = sentence_splitter()
    return [word for sentence in split(text) for word in tokenizer.tokenize(sentence)]


@cache
def sentence_splitter() -> tuple[Callable[[str], list[str]], str]:
    """The sentence splitter of ``word_tokenize`` or its stand-in, and its name."""
    punkt = require("nltk.tokenize.punkt", "eval")
    try:
        return punkt.PunktTokenizer("english").tokenize, "punkt_tab"
    except LookupError:
        parameters = punkt.PunktParameters()
        parameters.abbrev_types = set(_ABBREVIATIONS.split())
        return punkt.PunktSentenceTokenizer(parameters).tokenize, "punkt without a trained model"
