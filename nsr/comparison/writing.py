"""The tables of a comparison on the screen, as Markdown and as LaTeX, and all of it in a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pandas.api.types import is_numeric_dtype
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nsr.comparison.statistics import Comparison
from nsr.comparison.tables import commands, sheets
from nsr.run import tables
from nsr.run.files import write_text
from nsr.run.plain_text import csv_cell, markdown_cell, printable

UNWRAPPED = 40  # characters of a method that stay on one line on a narrow screen
SHOWN_COMMANDS = 5  # on the screen; in a sweep every run lacks the same
UNFINISHED = "runs that are unfinished, or lack an evaluation or an attack"
SYMBOLS = {" +- ": r" $\pm$ ", r"\textless{}=": r"$\leq$", "†": r"$^{\dagger}$"}
LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


class _Screen(Console):
    def on_broken_pipe(self) -> None:
        """Leave a reader that has gone away, such as `| head`, to the caller: rich would exit with code 1."""
        raise BrokenPipeError


def show(comparison: Comparison) -> None:
    """Print all tables, then notes and the commands that finish what is missing."""
    console = _Screen(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 1000  # as wide as a table needs
    shown = ""
    for sheet in sheets(comparison):
        console.print(screen_table(sheet))
        if sheet.note and sheet.note != shown:  # the tables of layers have the same
            shown = sheet.note
            console.print(printable(sheet.note), soft_wrap=True)
    lines = [printable(f"note  {note}") for note in comparison.notes]
    if missing := commands(comparison):
        lines += [f"\n{UNFINISHED}: {len(missing)}; to finish them:"]
        lines += [f"  {command}" for command in missing[:SHOWN_COMMANDS]]
    if len(missing) > SHOWN_COMMANDS:
        lines.append(f"  ... {len(missing) - SHOWN_COMMANDS} more: the column command of comparison.csv")
    for line in lines:
        console.print(line, soft_wrap=True)


def write(comparison: Comparison, folder: Path) -> list[str]:
    """Write CSV files (comparison has one row per run), comparison.md and comparison.tex, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = ("comparison.csv", "methods.csv", "differences.csv", "correlations.csv")
    for name, frame in zip(frames, comparison[:4], strict=True):
        plain = frame.apply(lambda column: column if is_numeric_dtype(column) else column.map(csv_cell))
        write_text(folder / name, plain.to_csv(index=False, lineterminator="\n"))
    texts = {"comparison.md": markdown(comparison), "comparison.tex": latex(comparison)}
    for name, text in texts.items():
        write_text(folder / name, text)
    return [*frames, *texts]


def screen_table(sheet: tables.Table) -> Table:
    """Return a table for the screen; the best of each column in bold."""
    rows = [[Text(printable(cell.text), style="bold" if cell.best else "") for cell in row] for row in sheet.rows]
    found = tables.screen_table(printable(sheet.caption), map(printable, sheet.headings), rows, texts=sheet.texts)
    found.columns[0].no_wrap = max(len(row[0]) for row in rows) <= UNWRAPPED
    return found


def markdown(comparison: Comparison) -> str:
    """Return one section per table, then the notes and commands."""
    parts = ["# Comparison", ""]
    for sheet in sheets(comparison):
        parts += [f"## {markdown_cell(sheet.caption)}", "", *markdown_table(sheet), ""]
        parts += [markdown_cell(sheet.note), ""] if sheet.note else []
    parts += [f"* {markdown_cell(note)}" for note in comparison.notes]
    if missing := commands(comparison):
        parts += ["", f"{UNFINISHED.capitalize()}; to finish them:", "", "```", *missing, "```"]
    return "\n".join(parts).rstrip() + "\n"


def markdown_table(sheet: tables.Table) -> list[str]:
    """Return the lines of a table, numbers aligned right."""
    rule = ["---" if place < sheet.texts else "---:" for place in range(len(sheet.headings))]
    body = [
        [f"**{markdown_cell(cell.text)}**" if cell.best else markdown_cell(cell.text) for cell in row]
        for row in sheet.rows
    ]
    return [f"| {' | '.join(row)} |" for row in ([markdown_cell(heading) for heading in sheet.headings], rule, *body)]


def latex(comparison: Comparison) -> str:
    r"""Return tables for \input; they need booktabs."""
    parts = ["% written by nsr.compare; needs \\usepackage{booktabs}"]
    parts += [latex_table(sheet, f"tab:comparison-{number}") for number, sheet in enumerate(sheets(comparison), 1)]
    return "\n\n".join(parts) + "\n"


def latex_table(sheet: tables.Table, label: str) -> str:
    """Return a table environment; the best of each column in bold."""
    columns = "l" * sheet.texts + "r" * (len(sheet.headings) - sheet.texts)
    rows = [[f"\\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text) for cell in row] for row in sheet.rows]
    lines = [
        r"\begin{table}[t]",
        r"  \centering\small",
        f"  \\caption{{{_tex(f'{sheet.caption[0].upper()}{sheet.caption[1:]}. {sheet.note}'.strip())}}}",
        f"  \\label{{{label}}}",
        f"  \\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"    \toprule",
        f"    {_tex_row([_tex(heading) for heading in sheet.headings])}",
        r"    \midrule",
        *(f"    {_tex_row(row)}" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _tex_row(cells: Sequence[str]) -> str:
    # a bracket that opens a row would be read as the length of the line break before it
    return " & ".join(f"{{}}{cell}" if cell.startswith("[") else cell for cell in cells) + r" \\"


def _tex(text: str) -> str:
    escaped = "".join(LATEX.get(character, character) for character in printable(text))
    for plain, symbol in SYMBOLS.items():
        escaped = escaped.replace(plain, symbol)
    escaped = re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", escaped)
    return "--" if escaped == "-" else escaped
