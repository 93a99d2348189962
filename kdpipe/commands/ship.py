"""What the target ``ship`` runs beside the export: the choice of a student, and its cards."""

from __future__ import annotations

import argparse

from kdpipe.atomic import write_json
from kdpipe.json_files import read_object


def run_choose_student(given: argparse.Namespace) -> None:
    """Choose the student with the best validation Dice within the limits."""
    from kdpipe.ship.choice import choose_student

    write_json(given.out, choose_student(read_object(given.run, "limits", "students", "teachers")))


def run_model_card(given: argparse.Namespace) -> None:
    """Write ``cost.json`` and ``MODEL_CARD.md``."""
    from kdpipe.ship.card.write import Files, write_cards

    run = read_object(given.run, "study", "data", "protocol")
    names = ("choice", "export", "split", "manifest", "scores", "comparisons")
    files = Files(**{name: getattr(given, name) for name in names})
    write_cards(run, files, cost=given.cost, card=given.out)
