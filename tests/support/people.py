"""People made up for tests."""

from __future__ import annotations

from prefheads.data.example import Example

TOPICS = {
    "cook": ["onions in butter", "bread and salt", "a stew of beans"],
    "sail": ["wind from the west", "a reef in the sail", "the tide turns"],
}


def people(per_topic: int = 6) -> list[Example]:
    return [
        Example(
            f"{topic}{i}-{j}",
            f"{topic}{i}",
            tuple({"text": f"{text} {i}"} for text in texts),
            f"note {j}",
            texts[j],
        )
        for topic, texts in TOPICS.items()
        for i in range(per_topic)
        for j in range(2)
    ]
