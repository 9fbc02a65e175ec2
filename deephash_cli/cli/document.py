"""Write ``docs/commands.md`` from the help texts, so that the page and the command line cannot differ."""

from deephash_cli.cli import verbs
from deephash_cli.cli.main import verb_help

_HEAD = """\
# Commands

This page is made from the help texts by `make docs`; `deephash <command> --help` prints each part of it.

| command | what it does |
| --- | --- |
"""


def document() -> str:
    """Return the page: a table of all commands, then the help of each."""
    rows = "".join(f"| [`deephash {verb}`](#deephash-{verb}) | {verbs.summary(verb)} |\n" for verb in verbs.names())
    parts = (f"\n## deephash {verb}\n\n```text\n{verb_help(verb)}\n```\n" for verb in verbs.names())
    return f"{_HEAD}{rows}{''.join(parts)}"
