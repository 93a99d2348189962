"""What the command line's parts have in common: a sub-command, a path."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    """Add a sub-command that runs `function` on its arguments; `text` is its help."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=function, name=name)
    return parser


def add_path(parser: Any, flag: str, text: str, required: bool = True) -> None:
    """Add an option that is a path."""
    parser.add_argument(flag, type=Path, required=required, metavar="PATH", help=text)
