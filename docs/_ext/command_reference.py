"""The directive `command-reference`: every command with its arguments and options, from the app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer import Context
from typer.main import get_command

from prefheads.cli.main import app

PLAIN = {int: "number", float: "number", str: "text", Path: "path"}


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by the words that call it, in the order of `prefheads --help`."""

    def walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "list_commands"):
            yield words, command
            return
        context = Context(command)  # commands may be loaded only when they are asked for
        for name in command.list_commands(context):
            _, each, _ = command.resolve_command(context, [name])
            yield from walk(f"{words} {name}", each)

    yield from walk("prefheads", get_command(app))


def value_of(parameter: Any) -> str:
    """What a parameter takes: its choices, or the kind of value; nothing for a switch."""
    kind = parameter.type_descriptor.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(k for k in get_args(kind) if k is not NoneType)
    if get_origin(kind) is list:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return "" if kind is bool else PLAIN.get(kind, "text")


def default_of(parameter: Any) -> str:
    """Its default in words; nothing where there is none."""
    default = parameter.default
    if parameter.required:
        return "required"
    return "" if default in (None, False, ()) or callable(default) else str(default)


class CommandReference(SphinxDirective):
    """Writes a section for each command, with a table of what it takes."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        return [self._section(words, command) for words, command in commands()]

    def _section(self, words: str, command: Any) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(words)], names=[words])
        section += nodes.title("", "", nodes.literal("", words))
        for paragraph in (command.help or "").split("\n\n"):
            said, _ = self.parse_inline(" ".join(paragraph.split()))
            section += nodes.paragraph("", "", *said)
        section += self._table(command.params)
        return section

    def _table(self, parameters: list[Any]) -> nodes.table:
        table, group = nodes.table(), nodes.tgroup(cols=4)
        table += group
        for width in (20, 22, 14, 44):
            group += nodes.colspec(colwidth=width)
        head, body = nodes.thead(), nodes.tbody()
        group += [head, body]
        head += self._row([nodes.Text(t) for t in ("Option", "Value", "Default", "Meaning")])
        for parameter in parameters:
            if "--help" in parameter.opts:
                continue
            is_option = parameter.opts[0].startswith("-")
            name = ", ".join(parameter.opts) if is_option else parameter.metavar or parameter.name
            default = default_of(parameter)
            body += self._row(
                [
                    nodes.literal("", name.strip("{}.")),
                    nodes.Text(value_of(parameter)),
                    nodes.literal("", default)
                    if default not in ("", "required")
                    else nodes.Text(default),
                    *self.parse_inline(" ".join((parameter.help or "").split()))[0][:1],
                ]
            )
        return table

    @staticmethod
    def _row(cells: list[nodes.Node]) -> nodes.row:
        row = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            entry += nodes.paragraph("", "", cell)
            row += entry
        return row


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("command-reference", CommandReference)
    return {"parallel_read_safe": True}
