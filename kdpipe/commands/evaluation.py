"""What ``kdpipe evaluate`` runs: scores of two folders, or of a cell's predictions."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.errors import ConfigError, did_you_mean
from kdpipe.markup import Table, markdown_table
from kdpipe.stats.wording import factor, level_unit, metric_name, plural

if TYPE_CHECKING:
    import pandas as pd


def evaluate_by_hand(given: argparse.Namespace) -> None:
    """Score a folder against another, by the protocols and tolerances of the command line."""
    from kdpipe.metrics.folders import evaluate_folders

    if not (given.reference and given.labels):
        raise ConfigError("give --reference and --labels (or, within a study, --run)")
    structures = _structures(given.labels)
    scores = evaluate_folders(
        given.reference,
        given.prediction,
        structures,
        protocols=given.protocol or ["strict_mm"],
        out=given.out,
        workers=given.workers,
        tolerances_mm=_tolerances(given.tolerances, structures),
    )
    for table in _means(scores):
        print(f"{table.title}\n\n{markdown_table(table)}\n")
    print(f"every score: {given.out}")


def _means(scores: pd.DataFrame) -> Iterator[Table]:
    """Yield for each protocol the mean of every metric over the cases, structure by structure."""
    for protocol, rows in scores.groupby("protocol", sort=False):
        metrics = dict(zip(rows["metric"], rows["unit"], strict=True))
        means = rows.groupby(["structure", "metric"], sort=False)["value"].mean()
        cases = plural(rows["case"].nunique(), "case")
        yield Table(
            title=f"{protocol}, means over {cases}{', where defined' * rows['value'].hasnans}:",
            header=[
                "structure",
                *(f"{metric_name(m)} {level_unit(u)}" for m, u in metrics.items()),
            ],
            rows=[
                [
                    name,
                    *(f"{means[name, m] * factor(u):.2f}" for m, u in metrics.items()),
                ]
                for name in rows["structure"].unique()
            ],
        )


def evaluate_cell(given: argparse.Namespace, run: dict[str, Any], keys: dict[str, Any]) -> None:
    """Score the test cases of a cell as its study says.

    Args:
        given: the command line.
        run: ``structures``, ``protocols``, ``tolerances_mm``, ``has_spacing``.
        keys: of the cell; they become columns.
    """
    from kdpipe.data.manifest import read_manifest
    from kdpipe.data.splits.split import read_split
    from kdpipe.metrics.folders import evaluate_folders
    from kdpipe.protocols import Scoring

    protocols = [Scoring.model_validate(protocol) for protocol in run["protocols"]]
    cases = read_split(given.split)["test"]
    prepared = None
    if any(protocol.grid == "prepared" for protocol in protocols):
        from kdpipe.infer.references import stored_references

        need(given, "prepared")
        prepared = stored_references(given.prepared / "cases", cases)
    evaluate_folders(
        None,
        given.prediction,
        run["structures"],
        protocols=protocols,
        in_voxels=not run["has_spacing"],
        out=given.out,
        workers=given.workers,
        keys=keys,
        references={case.case: case.label for case in read_manifest(given.manifest)},
        cases=cases,
        tolerances_mm=run["tolerances_mm"],
        prepared=prepared,
    )


def need(given: argparse.Namespace, *names: str) -> None:
    """Raise ConfigError unless the command line has all of these paths beside ``--run``."""
    if missing := [f"--{name}" for name in names if not getattr(given, name)]:
        raise ConfigError(f"--run also needs {', '.join(missing)}")


def _structures(path: Path) -> dict[str, tuple[int, ...]]:
    """Read ``name: label`` or ``name: [labels]``."""
    import yaml

    from kdpipe.yaml_files import load_yaml

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--labels: cannot read {path}: {error.strerror}") from None
    try:
        content = load_yaml(text)
        return {
            str(name): tuple(map(int, ids)) if isinstance(ids, list) else (int(ids),)
            for name, ids in content.items()
            if ids != 0
        }
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: expected lines 'name: label', got: {error}") from None


def _tolerances(given: Sequence[str], structures: Collection[str]) -> dict[str, float]:
    """Read ``STRUCTURE=MM``, as many as there are, each of a structure that is scored."""
    try:
        pairs = (text.rsplit("=", 1) for text in given)
        tolerances = {name: float(value) for name, value in pairs}
    except ValueError:
        raise ConfigError(f"--tolerance: expected STRUCTURE=MM, got {', '.join(given)}") from None
    for name in tolerances:
        if name not in structures:
            raise ConfigError(
                f"--tolerance: unknown structure {name!r}; {did_you_mean(name, structures)}"
            )
    if wrong := [name for name, value in tolerances.items() if not 0 < value < math.inf]:
        raise ConfigError(f"--tolerance: must be above 0 mm, of {', '.join(wrong)} it is not")
    return tolerances
