"""`symboliclight neuro`: exported graphs, run and read by others, and what fits on neuromorphic hardware."""

from typing import Any

from symboliclight.commands import neuro_map, neuro_readers, neuro_run

SUBCOMMANDS = (neuro_run, neuro_readers, neuro_map)


def add(commands: Any) -> None:
    """Add the parser; each subcommand adds its own part."""
    p = commands.add_parser("neuro", help="NIR graphs: run them, compare readers; fit on neuromorphic hardware")
    inner = p.add_subparsers(title="subcommands", metavar="SUBCOMMAND", required=True)
    for module in SUBCOMMANDS:
        module.add(inner)
