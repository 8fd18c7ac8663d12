"""Evaluation of texts by people and by language models, in blinded pairs (paper, section 6.7)."""
