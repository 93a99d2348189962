"""``MODEL_CARD.md`` and ``cost.json``: what goes with a student that leaves its study.

The layout is ``kdpipe/templates/model_card.md.j2``. Whatever comes from data or cards (names,
titles, notes) stays text: it can be neither HTML nor a link.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from kdpipe.atomic import write_json, write_text
from kdpipe.markup import Table, markdown_table
from kdpipe.provenance import PACKAGE
from kdpipe.ship.card import text, values
from kdpipe.ship.card.cost import cost_card
from kdpipe.ship.card.scores import (
    difference_table,
    failure_table,
    metric_table,
    rows_of,
    verdicts,
)
from kdpipe.ship.measured import read_facts
from kdpipe.stats.scores import UNDISTILLED, read_scores
from kdpipe.stats.tables import read_table
from kdpipe.stats.wording import plural

_TEMPLATE = "model_card.md.j2"


@dataclass(frozen=True)
class Files:
    """What the cards are made from; `comparisons` may be missing."""

    choice: Path
    export: Path
    split: Path
    manifest: Path
    scores: Path
    comparisons: Path | None = None


def write_cards(run: dict[str, Any], files: Files, cost: Path, card: Path) -> None:
    """Write ``cost.json`` and the model card.

    Args:
        run: what the study says: data, protocol, readings, confidence.
        files: of the stages before.
        cost: JSON file to write.
        card: Markdown file to write.

    Raises:
        DataError: a file is missing or damaged, or the scores lack the chosen network's.
    """
    choice = read_facts(files.choice, "chosen", "teacher", "arms")
    costs = cost_card(choice, files.export)
    page = render_card(run, files, choice, costs)
    write_json(cost, costs)
    write_text(card, page)


def render_card(
    run: dict[str, Any], files: Files, choice: dict[str, Any], costs: dict[str, Any]
) -> str:
    """Return the model card, see `write_cards`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PACKAGE / "templates"),
        undefined=jinja2.StrictUndefined,
        finalize=_as_text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    content = {
        **_about(run, choice, read_facts(files.split, "train", "val", "test")),
        **_training(run, choice),
        **_scores(run, files, choice),
        **_files(run, files, choice, costs),
    }
    return environment.get_template(_TEMPLATE).render(content)


def _as_text(value: Any) -> str:
    """What a value of the template is written as; tables are Markdown already."""
    return value if isinstance(value, Markup) else plain(str(value))


def plain(text: str) -> str:
    """Return text from data such that Markdown shows it as it stands: no HTML, link or code."""
    return " ".join(text.split()).replace("<", "&lt;").replace("[", r"\[").replace("`", "'")


def _table(header: list[str], rows: list[list[str]]) -> Markup:
    cells = [list(map(plain, row)) for row in rows]
    return Markup(markdown_table(Table("", list(map(plain, header)), cells)))


def _shown(table: Table) -> Markup:
    return _table(table.header, table.rows) if table.rows else Markup("")


def _about(
    run: Mapping[str, Any], choice: Mapping[str, Any], split: Mapping[str, Any]
) -> dict[str, Any]:
    """Who it is, what it is for, its data and how it was chosen."""
    data, chosen = run["data"], choice["chosen"]
    counts = {part: len(split[part]) for part in ("train", "val", "test")}
    return {
        "name": f"{chosen['student']} for {data['title']}",
        "structures": text.structures(data),
        "data": data,
        "dataset": run["dataset"],
        "split": run["split"],
        "fold": run["fold"],
        "counts": f"{counts['train']} training, {counts['val']} validation, "
        f"{counts['test']} test cases",
        "n_test": plural(counts["test"], "test case"),
        "n_val": plural(counts["val"], "case"),
        "leaky": bool(split.get("selects_on_test", False)),
        "licences": [f"{found['spdx']} ({found['id']})" for found in data["licences"]],
        "restrictions": text.restrictions(data["licences"]),
        "known": text.known(data),
        "outcome": _outcome(choice),
        "chosen": chosen,
        "rule": choice["rule"],
        "limits": values.limits(choice["limits"]),
        "n_candidates": plural(sum(len(arm["seeds"]) for arm in choice["arms"]), "network"),
        "validation_dice": f"{chosen['validation_dice']:.4f}",
        "arms": _table(*values.arms(choice["arms"], run["readings"])),
    }


def _outcome(choice: Mapping[str, Any]) -> str:
    chosen = choice["chosen"]
    if chosen["method"] in UNDISTILLED:
        distilled = [arm for arm in choice["arms"] if arm["method"] not in UNDISTILLED]
        why = "No distillation method was better on the validation cases"
        if not distilled:
            why = "The study has no distillation method"
        elif any(arm["excluded"] for arm in distilled):
            why = (
                "No distillation method was better on the validation cases, of those that could "
                "be chosen (see the table of arms)"
            )
        return f"**{why}: this is the undistilled student**, trained on the labels alone."
    how = f"from the teacher {choice['teacher']['teacher']}" if choice["taught"] else "on its own"
    return f"Distilled {how} by the method {chosen['method']}."


def _training(run: Mapping[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    """How the network and its teacher came to be."""
    chosen = choice["chosen"]
    folder = Path(chosen["folder"])
    cell = read_facts(folder / "run.json", "network", "method", "training")
    facts = read_facts(folder / "model.json", "validation_dice")
    reading = chosen["method"] in run["readings"]
    method = text.method(cell["method"], reading)
    return {
        "network": cell["network"],
        "network_settings": text.settings(cell["network"]["params"]),
        "training_time": values.training_time(facts),
        "method": method,
        "method_settings": text.settings(cell["method"]["params"])
        if cell["method"]["params"]
        else "",
        "tuning": text.settings(facts["tuning"]) if "tuning" in facts else "",
        "budget": run["budget"],
        "teacher_sentence": values.teacher(choice),
        "recipe": text.settings(cell["training"]),
        "citation": values.citation(run, method),
    }


def _scores(run: Mapping[str, Any], files: Files, choice: Mapping[str, Any]) -> dict[str, Any]:
    """What the test cases say."""
    protocol, confidence = run["protocol"]["name"], run["confidence"]
    scores = read_scores(files.scores)
    rows = rows_of(scores, choice["chosen"], protocol)
    teacher = choice["teacher"]
    role = "its teacher" if choice["taught"] else "the study's best teacher"
    others = [(f"{role}, {teacher['teacher']}", rows_of(scores, teacher, protocol))]
    if undistilled := choice["undistilled"]:
        name = f"{undistilled['method']}, the undistilled student"
        others.append((name, rows_of(scores, undistilled, protocol)))
    table = metric_table(rows, confidence)
    comparisons = pd.DataFrame()
    if files.comparisons is not None and files.comparisons.is_file():
        comparisons = read_table(files.comparisons)
    return {
        "protocol": run["protocol"],
        "confidence": f"{100 * confidence:g} %",
        "headline": _headline(table),
        "scores": _shown(table),
        "differences": _shown(difference_table(rows, others, confidence)),
        "verdicts": _shown(verdicts(comparisons, choice["chosen"], protocol)),
        "failures": _shown(failure_table(rows)),
    }


def _headline(table: Table) -> str:
    """The mean over structures by the first metric, of the table of scores."""
    _, cases, _, _, score, *_ = table.rows[0]
    return f"over {plural(int(cases), 'test case')}: {table.header[4]} {score}"


def _files(
    run: Mapping[str, Any], files: Files, choice: Mapping[str, Any], costs: Mapping[str, Any]
) -> dict[str, Any]:
    """What it costs, what was exported, how to use that, and where it comes from."""
    data, window, forms = run["data"], costs["window"], costs["forms"]
    sides = data["preset"]["patch"]
    parity = read_facts(files.export / "parity.json", "limits", "reference", "environment")
    rows = values.provenance(run, choice, files.split, files.manifest)
    rows += values.exported(files.export, parity)
    return {
        "cost": _table(*values.costs(costs)),
        "window": " x ".join(map(str, sides)),
        "processor": values.processor(window),
        "files": _table(*values.files(forms)),
        "parity": values.parity(parity),
        "onnx": "model.onnx" if "model.onnx" in forms else "",
        "bundle": "bundle" if "bundle" in forms else "",
        "shape": f"(1, {len(data['channels'])}, {', '.join(map(str, sides))})",
        "preparation": _table(["step", "setting"], list(map(list, text.preparation(data)))),
        "overlap": f"{100 * run['overlap']:g} %",
        "labels": _table(["id", "name"], text.labels(data)),
        "channels": text.channels(data),
        "provenance": _table(["what", "value"], rows),
    }
