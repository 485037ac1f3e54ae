"""Commands that the program prints, quoted so that they work when pasted into a shell.

An override passes the shell first, then Hydra's override grammar (1.3), then OmegaConf's interpolation; each has its
own quoting.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
# a text that Hydra takes for a text without quotes
PLAIN = re.compile(r"(?!(true|false|null|nan|inf)\Z)(\.{0,2}/|[a-z_])[a-z0-9_./-]*", re.IGNORECASE | re.ASCII)


def command(program: str, *overrides: str) -> str:
    """Return a shell command that starts 'train', 'evaluate', 'compare' or 'report' from the working directory.

    Args:
        overrides: arguments, unquoted for the shell; see `override`.
    """
    return " ".join([_start(program), *map(shell_quoted, overrides)])


def override(name: str, value: Any) -> str:
    """Return NAME=VALUE such that Hydra reads exactly `value`: a text, path, number, truth value, None or list.

    Mappings are read too, whose keys must be identifiers.
    """
    return f"{name}={_hydra(value)}"


def name_of(row: str) -> str:
    """Return the name that an override sets: 'optimizer.lr' of '+optimizer.lr=0.1'."""
    return row.lstrip("+~").partition("=")[0].partition("@")[0]


def parse_value(text: str) -> str:
    """Return the text that Hydra reads from NAME=VALUE, without quotes and escapes; lists and numbers as written."""
    value = text.partition("=")[2].strip()
    if value[:1] in ("'", '"') and value.endswith(value[0]) and len(value) > 1:
        quote, value = value[0], value[1:-1]
        value = re.sub(rf"(\\+)({quote}|\Z)", lambda match: "\\" * (len(match[1]) // 2) + match[2], value)
    else:
        value = re.sub(r"\\([\\()\[\]{}:=, \t])", r"\1", value)
    return re.sub(r"(\\+)\$\{", lambda match: "\\" * (len(match[1]) // 2) + "${", value)


def shell_quoted(word: str) -> str:
    """Quote a word for a shell; control characters, which a terminal would obey, become escapes."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(c if c.isprintable() and c not in "\\'" else _escaped(c) for c in word) + "'"


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def _start(program: str) -> str:
    if not all((CHECKOUT / name).exists() for name in ("pyproject.toml", "train.py")):
        return f"nsr-{program}"
    is_here = Path.cwd() == CHECKOUT
    if program in ("compare", "report"):
        return ("" if is_here else f"PYTHONPATH={shell_quoted(str(CHECKOUT))} ") + f"python -m nsr.{program}"
    return f"python {program}.py" if is_here else f"python {shell_quoted(str(CHECKOUT / f'{program}.py'))}"


def _hydra(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_hydra, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{_hydra(entry)}' for name, entry in value.items())}}}"
    text = str(value)
    if PLAIN.fullmatch(text):
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # no interpolation
    quote = "'" if '"' in text and "'" not in text else '"'
    text = re.sub(rf"(\\+)({quote}|\Z)", r"\1\1\2", text)  # backslashes count before a quote and at the end alone
    return quote + text.replace(quote, f"\\{quote}") + quote
