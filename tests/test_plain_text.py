"""Names with markup, escape sequences, line breaks, formulas and HTML are printed and written as text."""

import csv

import pytest
from matplotlib.text import Text

from nsr.evaluation import report
from nsr.plots.style import new_figure, save, styled
from nsr.run.files import append_rows
from nsr.run.plain_text import csv_cell, lines, markdown_cell, printable

ESCAPES = "[bold]a[/b]\x1b[31m\x1b]0;title\x07\r\nb\u202e"


def test_printable_escapes_what_a_terminal_obeys():
    assert printable(ESCAPES) == r"[bold]a[/b]\x1b[31m\x1b]0;title\x07\r\nb\u202e"
    assert printable("\udc80é日本") == r"\udc80é日本"
    assert lines("a\n\tb\x1b") == "a\n\tb\\x1b"
    assert markdown_cell("<img src=x>|&\n") == r"&lt;img src=x&gt;\|&amp;\n"


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=1\n"])
def test_no_text_in_a_csv_file_is_a_formula(name, tmp_path):
    append_rows(tmp_path / "table.csv", ["layer", name], [[name, -0.5]])
    rows = list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert [row[0][0] in "=+-@\t\r" for row in rows] == [False, False]
    assert rows[0][1][0] in "'\\"
    assert rows[1][1] == "-0.5"  # numbers stay numbers
    assert csv_cell("layer1.0") == "layer1.0"


def test_a_plot_shows_names_as_text(tmp_path):
    """No mathematics: matplotlib would fail at the first name, and show others in another form."""
    names = [r"$\frac{$ _x", "$a$b$", "a_b^c", r"\alpha", "[bold]a[/b]"]
    with styled():
        figure = new_figure(height=1)
        figure.subplots().set_yticks(range(len(names)), names)
    save(figure, tmp_path / "plot", ["png"])
    texts = [text for text in figure.findobj(Text) if text.get_text() in names]
    assert {text.get_text() for text in texts} == set(names)
    assert not any(text.get_parse_math() for text in texts)


def test_tables_and_lines_show_names_as_text(capsys):
    report.show(report.screen_table("title", ["attack", f"x\n{ESCAPES}"], [[ESCAPES, "1 %"]]), f"directory  {ESCAPES}")
    printed = capsys.readouterr().out
    assert printed.count(r"[bold]a[/b]\x1b[31m") >= 2
    assert "directory  [bold]a[/b]\\x1b[31m" in printed
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(printed)
