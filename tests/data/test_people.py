"""The example people that come with the package."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from prefheads.data.example import Example, load_examples
from prefheads.models.bundled import people_path

KINDS = {"trail": "note", "kitchen": "headline", "lab": "notice", "fan": "post"}


@pytest.fixture(scope="module")
def people() -> dict[str, list[Example]]:
    by_user = defaultdict(list)
    for example in load_examples(people_path()):
        by_user[example.user_id].append(example)
    return by_user


def test_six_people_of_each_of_four_kinds_with_ten_samples_each(people):
    assert Counter(user.split("-")[0] for user in people) == dict.fromkeys(KINDS, 6)
    assert {len(samples) for samples in people.values()} == {10}


def test_profiles_hold_10_to_14_short_texts_and_do_not_change_between_samples(people):
    for samples in people.values():
        assert len({e.profile for e in map(_frozen, samples)}) == 1
        texts = [item["text"] for item in samples[0].profile]
        assert 10 <= len(texts) <= 14
        assert all(4 <= len(text.split()) <= 32 and text == text.strip() for text in texts)


def _frozen(example: Example) -> Example:
    return example.with_profile(tuple(tuple(item.items()) for item in example.profile))


def test_inputs_are_plain_requests_and_outputs_are_not_in_the_profile(people):
    for user, samples in people.items():
        kind = KINDS[user.split("-")[0]]
        for e in samples:
            assert e.input.startswith(f"Write this person's next {kind} about the following: ")
            assert e.output and 4 <= len(e.output.split()) <= 32
            assert all(e.output not in item["text"] for item in e.profile)


def test_nothing_occurs_twice(people):
    samples = [e for own in people.values() for e in own]
    texts = [item["text"] for own in people.values() for item in own[0].profile]
    texts += [e.output or "" for e in samples]
    assert len(set(texts)) == len(texts)
    assert len({e.input for e in samples}) == len(samples)
    assert len({e.id for e in samples}) == len(samples)
