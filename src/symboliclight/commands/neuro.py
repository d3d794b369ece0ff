"""`symboliclight neuro`: exported graphs, run and read by others."""

from typing import Any

from symboliclight.commands import neuro_readers, neuro_run

SUBCOMMANDS = (neuro_run, neuro_readers)


def add(commands: Any) -> None:
    """Add the parser; each subcommand adds its own part."""
    p = commands.add_parser("neuro", help="run exported NIR graphs event by event, and compare other packages' readers")
    inner = p.add_subparsers(title="subcommands", metavar="SUBCOMMAND", required=True)
    for module in SUBCOMMANDS:
        module.add(inner)
