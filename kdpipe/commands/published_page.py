"""The page of all published tables and claims that a study is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from kdpipe.markup import Table, markdown_table
from kdpipe.stats.literature import Claim, Published, Reference, Row

INTRODUCTION = (
    "Every number here is data (`kdpipe/stats/references/*.yaml`). A study that holds the same "
    "data set, networks and method prints ours beside it: [published_results.md]"
    "(published_results.md). Rows without names of ours are for reading only. A unit in brackets "
    "is the true one where the paper prints another."
)


def published_page(references: Sequence[Reference]) -> str:
    """Return all sources as Markdown: where they were read, what is doubted, their numbers."""
    return "\n\n".join(["# Published numbers", INTRODUCTION, *map(_section, references)]) + "\n"


def _section(reference: Reference) -> str:
    source = reference.source
    read = source.read_at + (f", at {source.commit[:12]}" if source.commit else "")
    blocks = [
        f"## {reference.id}",
        f"{source.title}. {source.venue}, {source.year}. Read: {read}.",
        _list("Doubts", reference.doubts),
        *(block for table in reference.tables for block in _table(table)),
    ]
    if reference.claims:
        blocks += ["### Claims", "\n".join(map(_claim, reference.claims))]
    return "\n\n".join(blocks)


def _table(table: Published) -> list[str]:
    facts = {
        "cards": ", ".join(table.datasets) or "none",
        "split": table.split or "not ours",
        "test cases": table.test_cases or "unknown",
        "checkpoints by": table.selection,
        "protocol": table.protocol or "none of ours",
        "runs": table.runs or "unknown",
    }
    header = ["printed", "teacher", "student", "method", "structure"]
    units = [
        f"{name}, {column.printed}"
        + (f" [{column.computed}]" if column.printed not in ("%", column.computed) else "")
        for name, column in table.metrics.items()
    ]
    blocks = [f"### {table.title}", "; ".join(f"{k}: {v}" for k, v in facts.items()) + "."]
    if table.doubts:
        blocks.append(_list("Doubts", table.doubts))
    rows = [[*_names(row), *(_score(row, name) for name in table.metrics)] for row in table.rows]
    return [*blocks, markdown_table(Table("", header + units, rows))]


def _names(row: Row) -> list[str]:
    names = [row.teacher or "", row.student or "", row.method or ""]
    return [row.printed, *names, " or ".join(row.structures)]


def _score(row: Row, name: str) -> str:
    return " ± ".join(f"{number:g}" for number in row.scores.get(name, ()))


def _claim(claim: Claim) -> str:
    doubts = f" Doubts: {'; '.join(claim.doubts)}." if claim.doubts else ""
    return f"- {claim.text} (`{claim.method}`, on {', '.join(claim.datasets)}).{doubts}"


def _list(title: str, items: Sequence[str]) -> str:
    return f"{title}:\n\n" + "\n".join(f"- {item}" for item in items)
