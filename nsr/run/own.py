"""What this user has started, remembered by hash, and the classes that this user trusts.

A run directory may come from anybody. A hash of each config.yaml that a command of this user wrote, and of each command
itself, is kept as the name of an empty file below `$XDG_STATE_HOME/nsr`: what is found there needs no further trust.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nsr.run.commands import CHECKOUT


def remember(content: Any) -> None:
    """Remember plain values as this user's own; without effect where the state directory cannot be written."""
    with suppress(OSError):
        path = _memory(content)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch()


def is_own(content: Any) -> bool:
    """Return whether a command of this user wrote these plain values."""
    try:
        return _memory(content).exists()
    except (OSError, TypeError, ValueError, RecursionError):  # nothing that a command writes
        return False


def own_key() -> str:
    """Return this user's secret, made at the first call; "" where the state directory cannot be written.

    Nobody else can guess a name that is made with it.
    """
    with suppress(OSError, ValueError):
        path = _folder("XDG_STATE_HOME", ".local/state") / "key"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile("w", dir=path.parent) as new:  # readable by this user alone
                new.write(secrets.token_hex())
                new.flush()
                with suppress(FileExistsError):  # another process was faster
                    os.link(new.name, path)
        return path.read_text(encoding="utf-8")
    return ""


def _memory(content: Any) -> Path:
    own = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    return _folder("XDG_STATE_HOME", ".local/state") / "runs" / own


def commit() -> str:
    """Return the commit of nsr's checkout, with a mark where files differ from it; "" where it is installed."""
    if not (CHECKOUT / ".git").exists():
        return ""
    try:
        hashed, changed = (
            subprocess.run(
                ["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True, check=True, timeout=5
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{hashed}{' with changes' if changed else ''}"


def trusted_names(given: Sequence[str]) -> list[str]:
    """Return the names and patterns that a command trusts, with those of `$XDG_CONFIG_HOME/nsr/trusted`, one a line."""
    try:
        lines = (_folder("XDG_CONFIG_HOME", ".config") / "trusted").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    return [*given, *(name for line in lines if (name := line.partition("#")[0].strip()))]


def is_trusted(name: str, trusted: Sequence[str]) -> bool:
    """Return whether a class is trusted, by its exact name or by a pattern such as 'mypackage.*'."""
    return any(name == entry or (entry.endswith(".*") and name.startswith(entry[:-1])) for entry in trusted)


def _folder(variable: str, otherwise: str) -> Path:
    given = os.environ.get(variable, "")
    if os.path.isabs(given):
        return Path(given) / "nsr"
    try:
        return Path.home() / otherwise / "nsr"
    except RuntimeError as error:  # a user of a container whom the system does not know
        raise OSError(str(error)) from error
