"""What the documentation says, in parts that tests can look at: code blocks, links, headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

_FENCE = re.compile(r"^(`{3,}|:{3,})(.*)$")
_LINK = re.compile(r"(?<!`)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_PROMPT = "$&|;"


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        page: Its file.
        line: Where its code begins, from 1.
        info: The words behind the fence, such as ``python no-run``.
        code: What is in it.
    """

    page: Path
    line: int
    info: str
    code: str


def name_of(page: Path) -> str:
    """A page as tests call it."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[Block]:
    """The code blocks of one language."""
    found = _parts(page)[0]
    return [b for b in found if b.info.split(" ")[0] == language]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _parts(page)[1]


def _parts(page: Path) -> tuple[list[Block], str]:
    found, text = [], []
    fence, info, first, code = "", "", 0, list[str]()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        match = _FENCE.match(line)
        if not fence and match:
            fence, info, first, code = match[1], match[2].strip(), number + 1, []
        elif fence and line.strip() == fence:
            found.append(Block(page, first, info, "\n".join(code) + "\n"))
            fence = ""
        elif fence:
            code.append(line)
        else:
            text.append(line)
    assert not fence, f"{name_of(page)}: the block at line {first} has no end"
    return found, "\n".join(text)


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Where the page's own links lead: a file, and an anchor in it or nothing."""
    for target in _LINK.findall(prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub and MyST call them."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} (.*)$", prose(page), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        found.add(re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-"))
    return found


def command_lines(block: Block) -> Iterator[list[str]]:
    """The words of each command of a shell block, comments and variables taken away."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        for sign in (w for w in words if w in ("|", "&&", ";", ">")):
            words = words[: words.index(sign)]
        if words:
            yield words
