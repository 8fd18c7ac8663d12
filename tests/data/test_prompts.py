"""The prompts, letter by letter, and the rule that cuts profiles."""

import random
import re

import pytest
from support.models import character_tokenizer
from tokenizers.processors import TemplateProcessing

from prefheads.data.encoding import shorten_prompt
from prefheads.data.example import Example, without_profile
from prefheads.data.prompts import build_prompt, shorten, shorten_to
from prefheads.errors import DataError

CITATION = 'For an author who has written the paper with the title "A", which? [1]: "B" [2]: "C"'
ITEMS = (
    {"title": "T1", "text": "x one", "abstract": "a one", "description": "d one", "tag": "action"}
    | {"score": "5", "id": "1"},
    {"title": "T2", "text": "x two", "abstract": "a two", "description": "d two", "tag": "comedy"}
    | {"score": "1", "id": "2"},
)
# (task, input, before, profile, after); spaces as in the benchmark's own prompts.
EXPECTED = [
    (
        "LaMP-1",
        CITATION,
        "For an author who has written the paper with the title, and ",
        '"T1", and "T2"',
        ' "A", which? [1]: "B" [2]: "C"',
    ),
    (
        "LaMP-2",
        "Which tag? description: q",
        "",
        'the tag for the movie: "d one" is "action" , and '
        'the tag for the movie: "d two" is "comedy"',
        " . Which tag? description: q",
    ),
    (
        "LaMP-3",
        "Score? review: q",
        "",
        '5 is the score for "x one" , and 1 is the score for "x two"',
        " . Score? review: q",
    ),
    (
        "LaMP-4",
        "Headline for the article: q",
        "",
        '"T1" is the title for "x one" , and "T2" is the title for "x two"',
        " . Headline for the article: q",
    ),
    (
        "LaMP-5",
        "Title for the paper: q",
        "",
        '"T1" is a title for "a one" , and "T2" is a title for "a two"',
        " . Following the given patterns Title for the paper: q",
    ),
    (
        "LaMP-6",
        "Subject for the email: q",
        "",
        '"T1" is the title for "x one" , and "T2" is the title for "x two"',
        " . Subject for the email: q",
    ),
    (
        "LaMP-7",
        "Paraphrase: q",
        "",
        '"x one" , and "x two"',
        "  are written by a person. Following the given patterns Paraphrase: q",
    ),
    (None, "Write: q", "", '"x one", and "x two"', " are written by a person. Write: q"),
]


def example(task: str | None, input: str, profile=ITEMS) -> Example:
    return Example("e1", "u1", tuple(profile), input, "out", task)


@pytest.mark.parametrize(("task", "input", "before", "profile", "after"), EXPECTED)
def test_prompt_is_the_expected_text(task, input, before, profile, after):
    prompt = build_prompt(example(task, input))
    assert (prompt.before, prompt.profile, prompt.after) == (before, profile, after)
    assert prompt.text == before + profile + after


@pytest.mark.parametrize(("task", "input"), [case[:2] for case in EXPECTED])
def test_without_profile_the_prompt_is_the_input_alone(task, input):
    prompt = build_prompt(without_profile(example(task, input)))
    assert (prompt.text, prompt.profile) == (input, "")


def test_space_at_the_edge_of_the_block_goes_outside_it():
    prompt = build_prompt(example("LaMP-3", "in", [{"score": " 5", "text": "t"}]))
    assert (prompt.before, prompt.profile) == (" ", '5 is the score for "t"')
    assert prompt.text == ' 5 is the score for "t" . in'


def test_braces_in_texts_are_left_alone():
    assert build_prompt(example(None, "{in}", [{"text": "{text}"}])).text.startswith('"{text}" are')


def test_missing_field_is_named():
    broken = example("LaMP-4", "in", [ITEMS[0], {"text": "no title"}])
    message = "example 'e1': profile[1] lacks the field \"title\""
    with pytest.raises(DataError, match=re.escape(message)):
        build_prompt(broken)


def test_citation_input_without_a_title_is_refused():
    with pytest.raises(DataError, match=r"'e1': the input has no .title."):
        build_prompt(example("LaMP-1", "which one?"))


def words(n: int) -> str:
    return " ".join(f"w{i}" for i in range(n))


def count(text: str) -> int:
    return len(text.split())


def cut(text: str, n: int) -> str:
    return " ".join(text.split()[:n])


def lengths(shortened: Example, field: str = "text") -> list[int]:
    return [count(item[field]) for item in shortened.profile]


def test_budget_is_split_evenly_and_what_is_unused_is_carried_on():
    # Two joiners of 2 words: shares of (40 - 4) / 3 = 12, of which the quotes take 1; the first
    # item leaves 6 of its 11 to the second.
    long = example(None, "in", [{"text": words(5)}, {"text": words(30)}, {"text": words(30)}])
    assert lengths(shorten(long, 40, count=count, cut=cut)) == [5, 17, 11]


def test_items_are_dropped_from_the_end_when_too_little_of_each_would_stay():
    # Three shares of 5 leave 4 words each: too few; two shares of 9 leave 8 each.
    long = example(None, "in", [{"text": words(30)}] * 3)
    assert lengths(shorten(long, 20, count=count, cut=cut)) == [8, 8]


def test_only_the_long_text_is_cut():
    item = {"title": words(6), "text": words(50)}
    short = shorten(example("LaMP-4", words(99), [item]), 30, count=count, cut=cut)
    # '"w0 ... w5" is the title for ""' is 6 + 5 words.
    assert short.profile == ({"title": words(6), "text": words(19)},)
    assert short.input == words(99)


def test_profile_that_fits_is_left_as_it_is():
    fitting = example(None, "in", [{"text": words(3)}, {"text": ""}])
    assert shorten(fitting, 100, count=count, cut=cut) == fitting


def test_no_room_at_all_is_an_error():
    with pytest.raises(DataError, match="'e1': no profile item fits into the 5 tokens"):
        shorten(example(None, "in", [{"text": words(30)}]), 5, count=count, cut=cut)


# The benchmark's rule, written out: for each task what it counts as an item's frame, the field it
# cuts, and what it takes off the tokens of the profile before they are shared.
PATTERNS = "Following the given patterns"
RULES = {
    "LaMP-1": (None, "title", 0, None),
    "LaMP-2": ('the tag for the movie: " " is "{tag}" ', "description", 1, None),
    "LaMP-3": ('{score} is the score for " " ', "text", 1, None),
    "LaMP-4": ('"{title}" is the title for " " ', "text", 1, None),
    "LaMP-5": ('"{title}" is a title " " ', "abstract", 1, PATTERNS),
    "LaMP-6": ('"{title}" is the title for " " ', "text", 1, None),
    "LaMP-7": ('"" ', "text", 1, f"are written by user. {PATTERNS}"),
}


def benchmark(example: Example, max_tokens: int, size, begin) -> tuple[dict[str, str], ...]:
    """The items of the prompt that the benchmark builds; none where it gives up."""
    frame, long, stop, counted = RULES[example.task]
    items, factor = example.profile, 0.6
    while factor >= 0:
        rest = max_tokens - min(size(example.input), int(factor * max_tokens))
        if counted:
            rest -= size(counted)
        share = (rest - stop - 2 * (len(items) - 1)) // len(items)
        saved, made = 0, []
        for item in items:
            needed = 2 if frame is None else size(frame.format(**item))
            most = share + saved - needed
            if most < size(""):  # what the tokenizer adds to every text
                break
            text = begin(item[long], most)
            saved += share - size(text) - needed
            made.append(item | {long: text})
        else:
            return tuple(made)
        factor -= 0.1
    return ()


def random_example(rng: random.Random, task: str) -> Example:
    profile = [
        {f: words(rng.randint(0, 40)) for f in ("title", "text", "abstract", "description")}
        | {"tag": words(rng.randint(1, 3)), "score": "5"}
        for _ in range(rng.randint(1, 6))
    ]
    return Example("e", "u", tuple(profile), words(rng.randint(0, 90)), "out", task)


@pytest.mark.parametrize("task", RULES)
def test_benchmark_rule_on_random_profiles(task):
    rng, outcomes = random.Random(task), set()
    for _ in range(300):
        example = random_example(rng, task)
        max_tokens = rng.randint(1, 200)
        expected = benchmark(example, max_tokens, count, cut)
        got = shorten_to(example, max_tokens, count=count, cut=cut)
        assert got == example.with_profile(expected)
        outcomes.add("none" if not expected else "whole" if got == example else "cut")
    assert outcomes == {"none", "whole", "cut"}


def test_factor_falls_until_the_items_fit():
    # Share 0.6: 40 - 24 - 1 = 15 for a frame of 16; at 0.5 there are 19, so 3 words.
    item = {"title": words(11), "text": words(50)}
    tight = example("LaMP-4", words(60), [item])
    assert count(f'"{words(11)}" is the title for " " ') == 17
    assert lengths(shorten_to(tight, 40, count=count, cut=cut)) == [2]
    assert shorten_to(tight, 15, count=count, cut=cut).profile == ()


def test_short_input_leaves_its_share_to_the_profile():
    item = {"title": "t", "text": words(99)}
    short = shorten_to(example("LaMP-4", words(3), [item]), 50, count=count, cut=cut)
    assert lengths(short) == [50 - 3 - 1 - 7]  # '"t" is the title for " " ' has 7 words


@pytest.mark.parametrize("added", [0, 1])
@pytest.mark.parametrize("task", ["LaMP-1", "LaMP-4", "LaMP-7"])
def test_tokens_are_counted_with_those_the_tokenizer_adds(task, added):
    tokenizer = character_tokenizer()
    if added:
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 2)]
        )

    def begin(text: str, n: int) -> str:
        ids = tokenizer(text, max_length=n, truncation=True)["input_ids"] if n else []
        return text[: max(len(ids) - added, 0)]

    rng = random.Random(task)
    for _ in range(40):
        example = random_example(rng, task)
        max_tokens = rng.randint(100, 600)
        expected = benchmark(
            example, max_tokens, lambda text: len(tokenizer(text)["input_ids"]), begin
        )
        assert shorten_prompt(tokenizer, example, max_tokens).profile == expected


def test_prompt_without_profile_stays_and_nonsense_is_refused():
    bare = without_profile(example("LaMP-4", "in"))
    assert shorten_prompt(character_tokenizer(), bare, 5) == bare
    with pytest.raises(DataError, match="at least one token, not 0"):
        shorten_prompt(character_tokenizer(), bare, 0)
