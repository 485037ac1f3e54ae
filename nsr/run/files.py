"""Files of a run: appended CSV rows, plain or as members of a gzip file, JSON written as a whole."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, BinaryIO

from nsr.errors import InputError
from nsr.run.plain_text import csv_cell

if TYPE_CHECKING:
    from nsr.metrics.layer_summary import LayerSummary
    from nsr.metrics.sensitivity import LayerSensitivity

SCHEMA = 1  # of config.yaml, metrics.json and evaluation.json, in their key `schema`; raised with each change
SENSITIVITIES = "sensitivity.csv"
COMPRESSED = f"{SENSITIVITIES}.gz"
COMPRESSED_FROM = 1_000_000  # rows, some 65 MB as text
LARGEST_MEMBER = 2**28  # bytes of text, of one epoch
BLOCK = 2**20
LONGEST_NAME = 255  # of a folder, in bytes, on the file systems in use
SENSITIVITY_COLUMNS = ("epoch", "layer", "neuron", "absolute", "relative", "mean_activation")


def check_can_be_made(name: str, directory: Path) -> None:
    """Raise InputError where a folder, the absolute path in the setting `name`, is not there and cannot be made."""
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in directory.parts):
        raise InputError(f"{name} has a folder name of more than {LONGEST_NAME} bytes; give a shorter one")
    try:
        parent = next(folder for folder in (directory, *directory.parents) if folder.exists())
        is_writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
    except (OSError, RuntimeError) as error:  # a loop of links
        raise InputError(f"{name} is {str(directory)!r}; it cannot be made ({error}): give another folder") from error
    if is_writable and not directory.exists():  # what the permissions do not say, as in /proc
        try:
            trial = Path(tempfile.mkdtemp(dir=parent))
            trial.rmdir()
        except OSError as error:
            raise InputError(
                f"{name} is {str(directory)!r}; it cannot be made: {parent} takes no folder ({error.strerror})"
            ) from error
    links = [folder for folder in (directory, *directory.parents) if folder.is_symlink()]
    broken = next((link for link in links if not link.exists()), None)
    if not is_writable or broken is not None:
        why = f"{parent} is not writable" if broken is None else f"{broken} is a link to nothing"
        raise InputError(f"{name} is {str(directory)!r}; it cannot be made: {why}; give another folder")


def regular(path: Path) -> Path:
    """Return a path that is a file, or nothing: reading a pipe or a device would never end.

    Errors:
        OSError: it is a pipe, a device or a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return path


def append_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Append rows to a CSV file, with a header where the file is new; floats in full precision.

    A file whose name ends in .gz gets them as a further gzip member, the same bytes at any time.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        writer.writerow(map(csv_cell, columns))
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    content = text.getvalue().encode()
    with regular(path).open("ab") as file:
        file.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append {column: value} to a CSV file under its own header, which gets the columns that it lacks.

    Cells without a value are empty. A file that gets further columns is replaced as a whole.
    """
    values = {csv_cell(name): value for name, value in row.items()}
    columns = _header(path) if path.exists() else []
    if columns and (new := [name for name in values if name not in columns]):
        earlier = list(whole_rows(path))
        columns += new
        write_rows(path, columns, [[cells.get(name, "") for name in columns] for cells in earlier])
    columns = columns or list(values)
    append_rows(path, columns, [[values.get(name, "") for name in columns]])


def _header(path: Path) -> list[str]:
    with regular(path).open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file of these rows, in place of an existing one."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    write_text(path, file.getvalue())


def damaged_part(file: BinaryIO) -> str | None:
    """Return the part of a checkpoint whose checksum does not fit, which torch does not compare; None where all do.

    A file that is no zip, as older ones, has no checksums; those of one written without them are 0. torch.save stores
    parts as they are: together they are never larger than the file, unless a few bytes are to fill the memory.
    """
    if not zipfile.is_zipfile(file):
        return None
    size = file.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(file) as parts:
            if sum(part.file_size for part in parts.infolist()) > size:
                return "its list of parts, larger together than the file,"
            return parts.testzip() if any(part.CRC for part in parts.infolist()) else None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        return str(error)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that exists complete or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file that exists complete or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # processes do not write into each other's
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException:
        with suppress(OSError):  # a part of it takes place on a disk that is full
            partial.unlink(missing_ok=True)
        raise


def write_layers(path: Path, epoch: int, summaries: Mapping[str, LayerSummary]) -> None:
    """Add a row for each layer to a layers.csv; ids of the most sensitive neurons are separated by spaces."""
    columns = ["epoch", "layer", *next(iter(summaries.values()))._fields]
    ids = {layer: " ".join(map(str, summary.most_sensitive)) for layer, summary in summaries.items()}
    append_rows(path, columns, [[epoch, layer, *each[:-1], ids[layer]] for layer, each in summaries.items()])


def sensitivity_file(directory: Path, rows: int = 0) -> Path:
    """Return the sensitivity.csv or sensitivity.csv.gz that a directory has; a new one by the rows that it will get."""
    found = [directory / name for name in (COMPRESSED, SENSITIVITIES) if (directory / name).exists()]
    return found[0] if found else directory / (COMPRESSED if rows >= COMPRESSED_FROM else SENSITIVITIES)


def write_sensitivities(path: Path, epoch: int | str, sensitivities: Mapping[str, LayerSensitivity]) -> None:
    """Add a row for each neuron of each layer to a sensitivity.csv or sensitivity.csv.gz."""
    rows = [
        [epoch, layer, neuron, *values]
        for layer, sensitivity in sensitivities.items()
        for neuron, values in enumerate(zip(*(measure.tolist() for measure in sensitivity), strict=True))
    ]
    append_rows(path, SENSITIVITY_COLUMNS, rows)


def whole_rows(path: Path, *, starting: str = "") -> Iterator[dict[str, str]]:
    """Yield the complete rows of a CSV file: a last line without a line end is still being written.

    Args:
        path: its name may end in .gz.
        starting: yields only the rows whose line starts with this text.

    Errors:
        InputError: a gzip file that is damaged, or ends within a member.
    """
    lines = (line for line in _lines(path, starting) if line.endswith("\n"))
    columns = next(csv.reader(lines), [])
    for values in csv.reader(line for line in lines if line.startswith(starting)):
        if len(values) == len(columns):
            yield dict(zip(columns, values, strict=True))


def _lines(path: Path, starting: str) -> Iterator[str]:
    """Yield the lines of a file; of a gzip file, the first member's and those of members with a line that starts so."""
    if regular(path).suffix != ".gz":
        with path.open(newline="", encoding="utf-8") as file:
            yield from file
        return
    with path.open("rb") as packed:
        for number, member in enumerate(_members(packed, path.name)):
            text = member.decode()
            if number == 0 or text.startswith(starting) or f"\n{starting}" in text:
                yield from io.StringIO(text, newline="")


def _members(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the members of a gzip file, each checked against its checksum."""
    left = b""
    while left := left or file.read(BLOCK):
        reader, parts, size = zlib.decompressobj(wbits=31), [], 0
        while not reader.eof:
            if not (left := left or file.read(BLOCK)):
                raise InputError(f"{name} ends within a gzip member: it is cut short, or still being written")
            try:
                parts.append(reader.decompress(left, LARGEST_MEMBER - size + 1))
            except zlib.error as error:
                raise InputError(f"{name} is damaged: {error}") from error
            if (size := size + len(parts[-1])) > LARGEST_MEMBER:
                raise InputError(f"{name} is damaged: a gzip member holds more than {LARGEST_MEMBER:,} bytes")
            left = reader.unconsumed_tail
        left = reader.unused_data
        yield b"".join(parts)


def layer_neurons(records: Path, epoch: int | None) -> dict[str, list[tuple[float, float]]]:
    """Return {layer: (absolute, mean activation) of each neuron} of one epoch of sensitivities; None: they have one."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for row in whole_rows(records, starting="" if epoch is None else f"{epoch},"):
        rows.setdefault(row["layer"], []).append((float(row["absolute"]), float(row["mean_activation"])))
    return rows


def layer_means(records: Path, epoch: int | None) -> dict[str, list[float]]:
    """Return {layer: [absolute, relative, mean activation]} of one epoch of sensitivities; None: they have one."""
    return means_of_neurons(layer_neurons(records, epoch))


def means_of_neurons(rows: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, list[float]]:
    """Return {layer: [absolute, relative, mean activation]}, the means over its neurons."""
    means = {layer: [fmean(values) for values in zip(*neurons, strict=True)] for layer, neurons in rows.items()}
    return {
        layer: [absolute, 0.0 if absolute == 0 else absolute / active if active else float("inf"), active]
        for layer, (absolute, active) in means.items()
    }


def validated(records: Path, epoch: float) -> dict[str, float]:
    """Return the validation metrics that one epoch of a metrics.csv has."""
    row = next(whole_rows(records, starting=f"{epoch:.0f},"))
    return {name: float(value) for name, value in row.items() if name.startswith("validation/") and value}
