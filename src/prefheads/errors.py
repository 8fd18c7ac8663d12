"""Everything a user can get wrong, as one tree of exceptions with one-line messages.

The command line prints such a message and exits with code 2; from Python they are ordinary
exceptions.
"""


class PrefheadsError(ValueError):
    """Base of all errors that bad input causes. The message is one line and says what to do."""


class DataError(PrefheadsError):
    """Examples, profiles or files that cannot be used."""


class ModelError(PrefheadsError):
    """A model, tokenizer or attention backend that cannot be handled; says what is missing."""


class ArtifactError(PrefheadsError):
    """A saved file or folder that is damaged, foreign, or belongs to another model."""


class SteeringError(PrefheadsError):
    """Weights, strengths or calls that steering cannot honour."""
