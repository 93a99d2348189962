"""Tables as text: the same rows in Markdown and in LaTeX, and the marks that all tables share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: stands behind the name of a method that is a reading
DAGGER = "†"
#: stands behind a split whose test cases are those that checkpoints were selected on
DOUBLE_DAGGER = "‡"

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        DAGGER: r"$\dagger$",
        DOUBLE_DAGGER: r"$\ddagger$",
        "[": "{[}",  # at the start of a row it would be an argument of the \\ before it
        **{special: f"\\{special}" for special in "#$%&_{}"},
    }
)


@dataclass(frozen=True)
class Table:
    """Formatted text: `rows` are as long as `header`; `title` is empty for the main table."""

    title: str
    header: list[str]
    rows: list[list[str]]


def markdown_table(table: Table) -> str:
    """Return the rows of a table in Markdown, columns aligned; the title is left to the caller."""
    header, *rows = [
        [text.replace("|", r"\|") for text in line] for line in (table.header, *table.rows)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(_padded(line, widths))} |" for line in lines)


def latex_table(table: Table, caption: str) -> str:
    """Return a floating table in LaTeX (booktabs); text and `caption` are escaped here."""
    header, *body = [
        " & ".join(escape_latex(text) for text in line) + r" \\"
        for line in (table.header, *table.rows)
    ]
    rows = "\n".join(body)
    return (
        f"\\begin{{table}}\n\\caption{{{escape_latex(caption)}}}\n"
        f"\\begin{{tabular}}{{{'l' * len(table.header)}}}\n\\toprule\n{header}\n\\midrule\n"
        f"{rows}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def escape_latex(text: str) -> str:
    """Return `text` such that LaTeX prints it as it stands."""
    return text.translate(_LATEX)


def _padded(line: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    return (f"{text:<{width}}" for text, width in zip(line, widths, strict=True))
