"""A user's profile as one vector (5.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefheads.errors import DataError, ModelError
from prefheads.models import bundled
from prefheads.models.network import no_hub
from prefheads.optional import require

Profile = Sequence[Mapping[str, Any]]

# Benchmark files give every item an id and a date: text by type, but nothing the user wrote.
_NOT_TEXT = frozenset({"id", "date"})


class ProfileEncoder:
    """Embeds profiles with a pretrained sentence encoder.

    Args:
        name: "bundled" (all-MiniLM-L6-v2), a local folder, or a hub id of sentence-transformers.

    Raises:
        PrefheadsError: the extra ``cluster`` is not installed.
        ModelError: the encoder cannot be found or read.
    """

    def __init__(self, name: str = "bundled") -> None:
        library = require("sentence_transformers", "cluster")
        self.name = name
        source = str(bundled.encoder_dir()) if name == "bundled" else name
        why = no_hub(source)
        try:
            self._model = library.SentenceTransformer(
                source, model_kwargs={"use_safetensors": True}, local_files_only=bool(why)
            )
        except Exception as error:  # the library raises whatever its parts raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if why:
                reason = f"no such folder, none downloaded before, and no hub ({why})"
            raise ModelError(f"sentence encoder {name!r} cannot be loaded: {reason}") from error

    def embed(self, profiles: Sequence[Profile]) -> NDArray[np.float32]:
        """Embed each profile: the mean of its items' unit embeddings, scaled to length 1.

        Args:
            profiles: one list of items per user, e.g. ``[{"text": "..."}]``. All of an item's text
                fields are joined.

        Returns:
            ``(n_users, d)`` float32, unit rows.

        Raises:
            DataError: no profiles, or one without text.
        """
        if not profiles:
            raise DataError("no profiles to embed")
        texts = [[text for item in profile if (text := item_text(item))] for profile in profiles]
        for index, own in enumerate(texts):
            if not own:
                raise DataError(f"profile {index} has no text; it cannot be embedded")
        items = self._model.encode(
            [text for own in texts for text in own],
            batch_size=64,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        ends = np.cumsum([len(own) for own in texts])
        means = [part.mean(axis=0) for part in np.split(np.asarray(items), ends[:-1])]
        return unit_rows(np.stack(means)).astype(np.float32)


def item_text(item: Mapping[str, Any]) -> str:
    """All text fields of a profile's item in one string; ids and dates are no text."""
    values = (value for key, value in item.items() if key not in _NOT_TEXT)
    return " ".join(value.strip() for value in values if isinstance(value, str) and value.strip())


def unit_rows(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Scale vectors ``(..., d)`` to length 1; a zero vector stays zero."""
    exact = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(exact, axis=-1, keepdims=True)
    return np.asarray(exact / np.where(length > 0, length, 1.0))


def require_extra() -> None:
    """Raise unless the extra ``cluster`` is installed, so that a lack shows before a long run."""
    for name in ("sentence_transformers", "sklearn.cluster"):
        require(name, "cluster")
