"""Tokens to text: whole characters, and stop strings."""

from __future__ import annotations

import pytest
import torch
from support.saved import byte_tokenizer
from support.templates import TOKENIZERS

from prefheads.serve.text import Detokenizer, Stops


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_bytes_are_the_text_of_all(seed: int) -> None:
    tokenizer = byte_tokenizer()
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 259, (40,), generator=draw).tolist()
    decoder = Detokenizer(tokenizer)
    pieces = [decoder.add(i) for i in ids] + [decoder.rest()]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_characters_come_whole() -> None:
    tokenizer = byte_tokenizer()
    whole = "Tea 🍵, 緑茶, café 👩‍👩‍👧."
    decoder = Detokenizer(tokenizer)
    pieces = [decoder.add(i) for i in tokenizer(whole)["input_ids"]]
    assert "".join(pieces) == whole and decoder.rest() == ""
    assert not any("\ufffd" in piece for piece in pieces)
    assert {"🍵", "緑", "é"} <= set(pieces)


def test_a_tokenizer_with_its_own_spaces() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    for whole in ("I love green tea", " a  b ", "緑茶 is tea"):
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        decoder = Detokenizer(tokenizer)
        assert "".join([*map(decoder.add, ids), decoder.rest()]) == tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_make_no_character_stop_nothing(seed: int) -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, len(tokenizer), (40,), generator=draw).tolist()
    decoder = Detokenizer(tokenizer)
    told = "".join(map(decoder.add, ids))
    more = tokenizer(" green tea", add_special_tokens=False)["input_ids"]
    told += "".join([*map(decoder.add, more), decoder.rest()])
    assert told.endswith("green tea")


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("whole", "stops", "shown"),
    [
        ("hello END more", ["END"], "hello "),
        ("hello EN more", ["END"], "hello EN more"),
        ("aab", ["ab"], "a"),
        ("aaab", ["aab"], "a"),
        ("one two", ["two", "one"], ""),
        ("x\n\ny", ["\n\n"], "x"),
        ("ends with E", ["END"], "ends with E"),
        ("abcd", ["cd", "bcd"], "a"),
        ("nothing", [], "nothing"),
    ],
)
def test_stop_strings(whole, stops, shown, size) -> None:
    held = Stops(stops)
    told = ""
    for i in range(0, len(whole), size):
        told += held.add(whole[i : i + size])
        assert shown.startswith(told)
        if held.hit:
            break
    told += "" if held.hit else held.rest()
    assert told == shown and held.hit == (shown != whole)
