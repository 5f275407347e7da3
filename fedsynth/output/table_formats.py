"""Tables as text for papers: Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence

from fedsynth.output.comparison import ComparisonCell, ComparisonTable
from fedsynth.text import printable

_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
    **{"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": "$-$"},
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?( ± [\d.]+)?|[+-]?(inf|nan)|-", re.IGNORECASE)
_MARKDOWN = {letter: f"\\{letter}" for letter in "\\|*_`<["}


def markdown(tables: Sequence[ComparisonTable], notes: Sequence[str]) -> str:
    """Return the tables under headlines, then the notes."""
    parts = [
        f"### {escape_markdown(table.title)}\n\n{markdown_lines(_lines(table, escape_markdown, '**{}**'))}"
        for table in tables
    ]
    if notes:
        parts.append("\n".join(f"- {escape_markdown(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[ComparisonTable], notes: Sequence[str]) -> str:
    """Return ``tabular`` environments that need no package but textcomp, with the notes as comments and captions."""
    parts = [_latex_table(table) for table in tables]
    parts += [f"% {printable(' '.join(note.split()))}" for note in notes]
    return "\n".join(parts) + "\n"


def markdown_lines(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first line its head, whose columns line up as plain text too."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under a head, quoted where a value needs it; None is an empty field.

    Text that a spreadsheet would compute (it begins with ``= + - @``, a tab or a carriage return) gets an apostrophe in
    front, as OWASP's "CSV Injection" advises: rows and silos are named by others. Numbers stay, as text too.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_guarded(value) for value in row] for row in [columns, *rows])
    return text.getvalue()


def _guarded(value: object) -> object:
    if isinstance(value, str) and value.lstrip(" \n").startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return "" if value is None else value


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    return _translated(text, _MARKDOWN)


def escape_latex(text: str) -> str:
    """Return text that LaTeX sets as it is, in one line."""
    return _translated(text, _LATEX)


def _translated(text: str, letters: dict[str, str]) -> str:
    return "".join(letters.get(letter, letter) for letter in printable(" ".join(text.split())))


def _latex_table(table: ComparisonTable) -> str:
    head, *rows = [f"{' & '.join(line)} \\\\" for line in _lines(table, escape_latex, r"\textbf{{{}}}")]
    # The first two columns, row and seeds, are words.
    kinds = "l" * min(2, len(table.columns) + 1) + "r" * (len(table.columns) - 1)
    body = ["\\hline", head, "\\hline", *rows, "\\hline"]
    caption = f"\\caption{{{escape_latex(table.title)}}}"
    return "\n".join(
        ["\\begin{table}", caption, f"\\begin{{tabular}}{{{kinds}}}", *body, "\\end{tabular}", "\\end{table}"]
    )


def _lines(table: ComparisonTable, escape: Callable[[str], str], bold: str) -> list[list[str]]:
    def shown(cell: ComparisonCell) -> str:
        return bold.format(escape(cell.text)) if cell.best else escape(cell.text)

    rows = [[escape(label), *map(shown, cells)] for label, cells in table.rows.items()]
    return [["", *map(escape, table.columns)], *rows]
