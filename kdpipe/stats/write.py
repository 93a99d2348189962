"""The statistics of a study as files: comparisons, ranks, power, and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdpipe.atomic import atomic_path, write_text
from kdpipe.errors import DataError
from kdpipe.stats.claim import write_claim
from kdpipe.stats.compare import compare_scores
from kdpipe.stats.decisions import render_decisions
from kdpipe.stats.published import write_references
from kdpipe.stats.scores import read_scores
from kdpipe.stats.tables import read_table


def write_comparisons(run: dict[str, Any], tables: Path) -> str:
    """Compare all arms of a study and write what was found beside its scores.

    Writes ``comparisons.csv``, ``ranks.csv``, ``power.csv``, ``comparisons.md`` and
    ``comparisons.tex``, then ``references.csv`` and ``claim.json``.

    Args:
        run: the study's ``run.json``.
        tables: folder of its ``scores.csv`` and ``results.csv``.

    Returns:
        The Markdown and the paths of the files, for a terminal.

    Raises:
        DataError: the scores or results are missing or unreadable; nothing is written.
        ConfigError: unknown protocol.
    """
    scores = read_scores(tables / "scores.csv")
    run = run | {"leaky_splits": leaky_splits(tables / "results.csv")}
    result = compare_scores(scores, run)
    markdown, latex = render_decisions(result, run)
    for name in ("comparisons", "ranks", "power"):
        with atomic_path(tables / f"{name}.csv") as temporary:
            getattr(result, name).to_csv(temporary, index=False, na_rep="nan")
    write_text(tables / "comparisons.md", markdown)
    write_text(tables / "comparisons.tex", latex)
    write_references(run, tables)
    write_claim(run, tables)
    names = ("comparisons.csv", "ranks.csv", "power.csv", "comparisons.md", "comparisons.tex")
    written = [f"  {tables / name}" for name in (*names, "references.csv", "claim.json")]
    return "\n".join([markdown, "Files:", *written])


def leaky_splits(results: Path) -> list[list[str]]:
    """Return [dataset, split] of those whose checkpoints were selected on their test cases.

    Args:
        results: ``results.csv`` of the study.

    Raises:
        DataError: unreadable or of another form.
    """
    table = read_table(results)
    if "selects_on_test" not in table:
        raise DataError(f"{results}: no table of results. Run the tables again")
    marked = table.loc[table["selects_on_test"], ["dataset", "split"]]
    return [list(split) for split in dict.fromkeys(marked.itertuples(index=False, name=None))]
