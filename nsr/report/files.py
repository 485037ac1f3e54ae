"""The files of one run, or of an evaluation without one, as a report reads them: missing and damaged ones are named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas

from nsr.comparison import reading
from nsr.comparison.reading import TRAINING_END, Measurement, Run, accuracies, read_run
from nsr.errors import InputError
from nsr.run.directory import process_status, read_json, read_yaml
from nsr.run.files import regular, sensitivity_file, whole_rows
from nsr.run.plain_text import printable

NAMES = ("layer", "class", "file")  # columns that stay text: a layer of a Sequential is called 0
LARGEST_TABLE = 2**26  # bytes of a CSV file that is read as a whole
EVALUATION = ("evaluation.json", "evaluate.log")
PLACES = ("examples", "sensitivity", "landscape", "interventions", "features")  # of pictures, in the page's order


@dataclass(frozen=True)
class Picture:
    """A picture that a training or an evaluation has written into pictures/."""

    section: str
    image: bytes
    alt: str
    caption: str
    data: Any


@dataclass(frozen=True)
class RunFiles:
    """What a directory holds; `problems` grows with each file that turns out to be damaged."""

    directory: Path
    run: Run
    measured: Path | None  # folder of the newest finished measurement of best.ckpt on the test set
    is_evaluation: bool = False  # of an evaluation alone
    problems: list[str] = field(default_factory=list)

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Return those of the newest's threat model and data, oldest first."""
        return self.run.measurements

    def frame(self, name: str, folder: Path | None = None) -> pandas.DataFrame:
        """Return a CSV file, empty where it is missing or damaged; texts are printable."""
        path = (folder or self.directory) / name
        try:
            if not path.exists():
                return pandas.DataFrame()
            if not path.is_file() or path.stat().st_size > LARGEST_TABLE:
                raise InputError("no table of a usual size")
            return _typed(pandas.DataFrame(whole_rows(path)))
        except Exception as error:
            return self._damaged(name, error)

    def neurons(self, epoch: int) -> pandas.DataFrame:
        """Return the rows of one epoch of the run's sensitivities, which may be many."""
        path = sensitivity_file(self.directory)
        try:
            return _typed(pandas.DataFrame(whole_rows(path, starting=f"{epoch},")))
        except FileNotFoundError:
            return pandas.DataFrame()
        except Exception as error:
            return self._damaged(path.name, error)

    def mapping(self, name: str, folder: Path | None = None) -> dict[str, Any]:
        """Return the mapping in a JSON file, empty where it is missing or damaged."""
        path = (folder or self.directory) / name
        found = read_json(path)
        if isinstance(found, dict):
            return found
        if path.exists():
            self._damaged(name, "no mapping")
        return {}

    def checks(self, folder: Path) -> list[dict[str, Any]]:
        """Return the entries of a checks.json."""
        found = read_json(folder / "checks.json")
        if isinstance(found, list):
            return [check for check in found if isinstance(check, dict)]
        if (folder / "checks.json").exists():
            self._damaged("checks.json", "no list")
        return []

    def images(self, measurement: Measurement) -> pandas.DataFrame:
        """Return the images.csv of a measurement, empty where its columns do not have the accuracies."""
        folder = folder_of(self, measurement)
        frame = self.frame("images.csv", folder)
        if (folder / "images.csv").exists() and not reading.images_of(folder, measurement.metrics):
            return self._damaged("images.csv", f"it does not have the accuracies of {measurement.name}, cut short?")
        return frame

    def pictures(self) -> Iterator[Picture]:
        """Yield the pictures of the newest measurement that has some, and those of nsr-report --full."""
        places = [place / "pictures" for place in (self.measured, self.directory) if place is not None]
        yield from self._pictures(next((place for place in places if (place / "index.json").exists()), places[-1]))
        yield from self._pictures(self.directory / "pictures_full")

    def _pictures(self, folder: Path) -> Iterator[Picture]:
        """Yield the pictures of index.json that are there, in its order."""
        index = read_json(folder / "index.json")
        for entry in index if isinstance(index, list) else ():
            try:
                path = folder / Path(str(entry["file"])).name  # nothing outside of the folder
                if path.is_symlink() or path.suffix not in (".png", ".svg"):
                    raise ValueError(f"{path.name} is not a picture")
                section, alt, caption = (str(entry[name]) for name in ("section", "alt", "caption"))
                yield Picture(section, regular(path).read_bytes(), alt, caption, entry.get("data"))
            except (OSError, KeyError, TypeError, ValueError) as error:
                self._damaged(f"{folder.name}/index.json", error)

    def _damaged(self, name: str, error: object) -> pandas.DataFrame:
        self.problems.append(f"{name} is damaged: {printable(error)[:200]}")
        return pandas.DataFrame()


def _typed(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return a column as numbers where every text in it that is not empty is one, the others as printable text."""
    found = {}
    for name in frame:
        numbers = pandas.to_numeric(frame[name], errors="coerce")
        is_text = name in NAMES or (numbers.isna() & ~frame[name].isin(["", "nan"])).any()
        found[printable(name)] = frame[name].map(printable) if is_text else numbers
    return pandas.DataFrame(found)


def is_evaluation(directory: Path) -> bool:
    """Return whether a directory is that of an evaluation, which may be inside a run's."""
    return any((directory / name).exists() for name in EVALUATION)


def read_files(directory: Path) -> RunFiles:
    """Read a run directory, or the directory of an evaluation."""
    if is_evaluation(directory):
        return _evaluation(directory)
    run = read_run(directory)
    measured = reading.folder_of(directory, run.measurements[-1]) if run.measurements else None
    return RunFiles(directory, run, measured, problems=[run.detail] if run.status == "unreadable" else [])


def _evaluation(directory: Path) -> RunFiles:
    settings = read_yaml(directory / "config.yaml") or {}
    metrics = read_json(directory / "evaluation.json")
    found = accuracies(metrics, settings) if isinstance(metrics, dict) else {}
    status, detail = ("finished", "") if found else process_status(directory / "status.json")
    measurements = (Measurement(directory.name, settings, found),) if found else ()
    run = Run(
        directory, status or "unfinished", detail, settings=settings, measured=settings, measurements=measurements
    )
    return RunFiles(directory, run, directory if found else None, is_evaluation=True)


def folder_of(run: RunFiles, measurement: Measurement) -> Path:
    """Return the folder that a measurement's files are in."""
    return run.directory if run.is_evaluation else reading.folder_of(run.directory, measurement)


def results_of(run: RunFiles, measurement: Measurement) -> Mapping[str, Any]:
    """Return {ATTACK_accuracy, ATTACK_low, ATTACK_high: fraction} of a measurement."""
    name = "metrics.json" if measurement.name == TRAINING_END else "evaluation.json"
    found = run.mapping(name, folder_of(run, measurement))
    return {key.removeprefix("test/"): value for key, value in found.items() if key.startswith("test/")}
