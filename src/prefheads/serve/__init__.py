"""Personalised text over HTTP, in the form of OpenAI's API; needs the extra ``serve``."""
