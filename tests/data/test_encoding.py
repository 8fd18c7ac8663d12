"""Tokens of prompts and responses: the exact span of the profile above all."""

import warnings

import pytest
import torch
from support.templates import CHATML, INST, SYSTEM, TOKENIZERS, byte_level
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prefheads.data.encoding import Encoded, TruncationWarning, encode, pad_batch
from prefheads.data.example import Example, without_profile
from prefheads.data.prompts import build_prompt
from prefheads.errors import DataError, ModelError
from prefheads.models.bundled import model_dir


@pytest.fixture(params=TOKENIZERS)
def plain(request) -> PreTrainedTokenizerFast:
    tokenizer = TOKENIZERS[request.param]
    tokenizer.chat_template = None
    return tokenizer


@pytest.fixture(params=["none", "chatml", "inst"])
def tokenizer(request, plain) -> PreTrainedTokenizerFast:
    plain.chat_template = {"none": None, "chatml": CHATML, "inst": INST}[request.param]
    return plain


@pytest.fixture(scope="module")
def smollm():
    return AutoTokenizer.from_pretrained(model_dir())


TEXTS = {
    "ascii": ["I love green tea", "rain, and sun."],
    "emoji": ["tea 🍵👩‍👩‍👧 yes", "🇫🇷"],
    "accents": ["cafe\u0301 na\u00efve", "e\u0301"],
    "cjk": ["緑茶が好き。", "我喜欢茶"],
    "spaces": ["  two  spaces\n\nand lines ", " \t"],
    "recurs": ["are written by a person.", "I love green tea"],
    "template": ["assistant", "user\n", "[INST] x [/INST]"],
}
INPUT = 'I love green tea. "I love green tea", and "緑茶" are written by a person. Paraphrase: 🍵'


def example(
    texts: list[str], input: str = INPUT, output: str | None = "fine today", task: str | None = None
) -> Example:
    profile = tuple({"text": text, "title": f"T {text}", "abstract": "a"} for text in texts)
    return Example("e1", "u1", profile, input, output, task)


def profile_start(tokenizer, example: Example) -> int:
    """Where the profile must begin in the rendered text, known from how the templates are made."""
    before = {None: 0, CHATML: len(SYSTEM + "<|im_start|>user\n"), INST: len("<s>[INST] ")}
    return before[tokenizer.chat_template] + len(build_prompt(example).before)


@pytest.mark.parametrize("task", [None, "LaMP-1", "LaMP-4", "LaMP-7"])
@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS.keys())
def test_profile_mask_is_the_profile_block(tokenizer, texts, task):
    input = f'the title "{texts[0]}", which?' if task == "LaMP-1" else INPUT
    asked = example(texts, input, task=task)
    block = build_prompt(asked).profile
    encoded = encode(tokenizer, asked)
    start = profile_start(tokenizer, asked)
    assert encoded.text[start : start + len(block)] == block

    marked = encoded.profile_mask.nonzero().flatten().tolist()
    assert marked == list(range(marked[0], marked[-1] + 1))
    # A token may hold the space before the block, never a character after it.
    assert tokenizer.decode(encoded.prompt_ids[marked]).removeprefix(" ") == block
    after = tokenizer.decode(encoded.prompt_ids[marked[-1] + 1 :])
    assert after == encoded.text[start + len(block) :]


def test_leading_space_that_a_template_strips_is_accounted_for(plain):
    plain.chat_template = INST
    asked = Example("e", "u", ({"score": "  5", "text": "good"},), " in ", "out", "LaMP-3")
    encoded = encode(plain, asked)
    assert encoded.text == '<s>[INST] 5 is the score for "good" .  in [/INST]'
    span = plain.decode(encoded.prompt_ids[encoded.profile_mask])
    assert span.strip() == '5 is the score for "good"'


def test_without_profile_nothing_is_marked(tokenizer):
    encoded = encode(tokenizer, without_profile(example(["x"])))
    assert not encoded.profile_mask.any()
    assert encoded.profile_mask.shape == encoded.prompt_ids.shape


def test_bos_is_there_once(tokenizer):
    ids = encode(tokenizer, example(["x"])).prompt_ids
    expected = 0 if tokenizer.chat_template == CHATML else 1
    assert int((ids == tokenizer.bos_token_id).sum()) == expected


@pytest.mark.parametrize("around", ["$A </s>", "<s> $A </s>", "$A </s> </s>"])
def test_what_a_tokenizer_puts_after_a_text_is_in_neither_prompt_nor_response(around):
    tokenizer = byte_level(around)
    bos = [tokenizer.bos_token_id] if around.startswith("<s>") else []
    spelled = example(["x"], input="the </s> tag <|im_end|> and")  # which is cut to be read as text
    for asked in (example(["x"]), spelled):
        encoded = encode(tokenizer, asked, end_of_turn=True)
        text = tokenizer.decode(encoded.prompt_ids[len(bos) :])
        assert encoded.prompt_ids[: len(bos)].tolist() == bos
        assert text == encoded.text == build_prompt(asked).text
        assert tokenizer.eos_token_id not in encoded.prompt_ids
        response = tokenizer(" fine today", add_special_tokens=False)["input_ids"]
        assert encoded.response_ids.tolist() == [*response, tokenizer.eos_token_id]

    n = len(encoded.prompt_ids) + len(encoded.response_ids)
    assert not encode(tokenizer, spelled, end_of_turn=True, max_length=n).truncated


def test_a_prompt_of_the_end_alone_is_empty():
    bare = without_profile(example(["x"], input=""))
    with pytest.raises(DataError, match="the prompt has no tokens"):
        encode(byte_level("$A </s>"), bare)
    assert encode(byte_level("<s> $A </s>"), bare).prompt_ids.tolist() == [0]


def test_types_and_shapes(plain):
    encoded = encode(plain, example(["x"]))
    assert encoded.prompt_ids.dtype == encoded.response_ids.dtype == torch.long
    assert encoded.profile_mask.dtype == torch.bool
    assert (encoded.example_id, encoded.user_id, encoded.truncated) == ("e1", "u1", False)


def test_response_continues_the_prompt(tokenizer):
    encoded = encode(tokenizer, example(["x"], input="Paraphrase:"))
    whole = tokenizer.decode(torch.cat([encoded.prompt_ids, encoded.response_ids]))
    bos = "" if tokenizer.chat_template else "<s>"
    gap = "" if tokenizer.chat_template else " "
    assert whole.replace("<s> ", "<s>") == bos + encoded.text + gap + "fine today"


def test_response_is_its_own_tokens_with_a_byte_level_tokenizer():
    tokenizer = TOKENIZERS["byte-level"]
    for template, text in ((CHATML, "fine today"), (INST, "fine today"), (None, " fine today")):
        tokenizer.chat_template = template
        alone = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert encode(tokenizer, example(["x"])).response_ids.tolist() == alone


def test_response_does_not_depend_on_the_profile(tokenizer):
    one, other = (encode(tokenizer, example([text])) for text in ("I love", "緑茶🍵"))
    bare = encode(tokenizer, without_profile(example(["I love"])))
    assert one.response_ids.tolist() == other.response_ids.tolist() == bare.response_ids.tolist()


def test_end_of_turn_is_the_templates_own(tokenizer):
    plain = encode(tokenizer, example(["x"])).response_ids.tolist()
    ended = encode(tokenizer, example(["x"]), end_of_turn=True).response_ids.tolist()
    end = "<|im_end|>" if tokenizer.chat_template == CHATML else "</s>"
    assert ended == [*plain, tokenizer.convert_tokens_to_ids(end)]


def test_no_output_no_response(tokenizer):
    encoded = encode(tokenizer, example(["x"], output=None), end_of_turn=True)
    assert encoded.response_ids.shape == (0,)


def long_example() -> Example:
    return example(["I love", *["I love green tea and rain. " * 20] * 3])


def test_profile_is_cut_to_the_context_and_the_input_is_not(tokenizer):
    bare = encode(tokenizer, without_profile(long_example()))
    limit = len(bare.prompt_ids) + len(bare.response_ids) + 120
    with pytest.warns(TruncationWarning, match=f"'e1': the profile was cut to fit {limit} tokens"):
        encoded = encode(tokenizer, long_example(), max_length=limit)
    assert encoded.truncated
    assert INPUT in encoded.text
    assert encoded.response_ids.tolist() == bare.response_ids.tolist()
    used = len(encoded.prompt_ids) + len(encoded.response_ids)
    assert limit - 20 <= used <= limit
    span = tokenizer.decode(encoded.prompt_ids[encoded.profile_mask]).strip()
    short, *cut = [item.strip(' "') for item in span.split(", and ")]
    assert short == "I love" and len(cut) == 3
    assert all(0 < len(text) < len(long_example().profile[1]["text"]) for text in cut)


def test_cutting_within_an_emoji_still_fits(tokenizer):
    emoji = example(["🍵👩‍👩‍👧緑" * 40] * 3, input="Paraphrase: x")
    for limit in range(330, 345):
        with pytest.warns(TruncationWarning):
            encoded = encode(tokenizer, emoji, max_length=limit)
        assert len(encoded.prompt_ids) + len(encoded.response_ids) <= limit
        assert "\ufffd" not in encoded.text


def test_what_fits_exactly_is_not_cut(tokenizer):
    whole = encode(tokenizer, long_example())
    limit = len(whole.prompt_ids) + len(whole.response_ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode(tokenizer, long_example(), max_length=limit).text == whole.text


def test_context_of_the_tokenizer_is_the_default(plain, monkeypatch):
    assert not encode(plain, long_example()).truncated
    monkeypatch.setattr(plain, "model_max_length", 250)
    with pytest.warns(TruncationWarning):
        assert encode(plain, long_example()).truncated


def test_what_cannot_fit_is_told_apart(plain):
    def message(asked: Example, limit: int) -> str:
        with pytest.raises(DataError) as error:
            encode(plain, asked, max_length=limit)
        return str(error.value)

    long = "rain " * 200
    assert "'e1': the response alone (" in message(example(["x"], "in", output=long), 100)
    assert "'e1': the input alone (" in message(example(["x"], input=long), 100)
    asked = example(["x"], input="rain and tea" * 9, output="rain and tea" * 9)
    bare = encode(plain, without_profile(asked))
    n, t = len(bare.prompt_ids), len(bare.response_ids)
    assert f"input ({n} tokens) and response ({t} tokens) together" in message(asked, n + t - 1)
    assert "no profile item fits" in message(example(["x " * 50], "in", output="out"), 25)


class Slow:
    is_fast = False


def test_slow_tokenizer_is_refused():
    with pytest.raises(ModelError, match="must be a fast one"):
        encode(Slow(), example(["x"]))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content | upper }}", "changes the user's text"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "turn 2 times"),
        ("nothing", "turn 0 times"),
        ("{{ raise_exception('needs a system turn') }}", "cannot render.*needs a system turn"),
    ],
)
def test_template_that_cannot_be_followed_is_refused(plain, template, message):
    plain.chat_template = template
    with pytest.raises(ModelError, match=message):
        encode(plain, example(["x"]))


def test_empty_prompt_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(DataError, match="'e1': the prompt has no tokens"):
        encode(tokenizer, without_profile(example(["x"], input="")))


def encoded_of(prompt: list[int], response: list[int], profile: list[bool]) -> Encoded:
    tensors = torch.tensor(prompt), torch.tensor(response, dtype=torch.long), torch.tensor(profile)
    return Encoded(*tensors, text="", truncated=False, example_id="", user_id="")


def test_batch_is_padded_left_and_right():
    batch = pad_batch(
        [encoded_of([1, 2, 3], [4], [False, True, False]), encoded_of([5], [6, 7], [True])], 0
    )
    assert batch.prompt_ids.tolist() == [[1, 2, 3], [0, 0, 5]]
    assert batch.prompt_mask.tolist() == [[True] * 3, [False, False, True]]
    assert batch.profile_mask.tolist() == [[False, True, False], [False, False, True]]
    assert batch.response_ids.tolist() == [[4, 0], [6, 7]]
    assert batch.response_mask.tolist() == [[True, False], [True, True]]


def test_batch_without_responses_and_without_examples():
    assert pad_batch([encoded_of([1], [], [True])], 0).response_ids.shape == (1, 0)
    with pytest.raises(DataError, match="at least one"):
        pad_batch([], 0)


@pytest.mark.bundled
@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS.keys())
def test_bundled_tokenizer(smollm, texts):
    texts = [*texts, "You are a helpful AI assistant named SmolLM"]
    asked = example(texts)
    encoded = encode(smollm, asked, end_of_turn=True)
    span = smollm.decode(encoded.prompt_ids[encoded.profile_mask])
    assert span == build_prompt(asked).profile
    head = smollm.decode(encoded.prompt_ids[: int(encoded.profile_mask.nonzero()[0])])
    assert head.endswith("<|im_end|>\n<|im_start|>user\n")
    assert smollm.decode(encoded.response_ids) == "fine today<|im_end|>"
    assert smollm.decode(encoded.prompt_ids) == encoded.text
