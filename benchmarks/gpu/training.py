"""A short PGD and a short SNS training through train.py, on somebody's image folder."""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.commands import epochs_of, run_side_by_side, what_failed
from benchmarks.gpu.given import ROOT, Given, Report, Skip, check_packages
from benchmarks.gpu.two_processes import PACKAGES

ARCHIVE = "cifar10-jpeg.tar.xz"
TRAININGS = {"pgd": "stabilizer=none", "sns": "stabilizer=sns"}
VALIDATION_SHARE = 0.05
TEST_STEPS = 10  # of PGD
START_SECONDS = 40.0  # of train.py: imports, decoding, a picture
LEAST_SECONDS = 25.0


def measure(given: Given, report: Report) -> None:
    check_packages(*PACKAGES)
    if given.data is None:
        raise Skip("no DATA_DIR was given")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = image_folder(given.data, folder)
        counts = {split: sum(1 for _ in (root / split).glob("*/*")) for split in ("train", "test")}
        report("data", {"images_of": counts, "validation_share": VALIDATION_SHARE})
        epochs = affordable_epochs(given, counts)
        failed = []
        for number, (training, stabilizer) in enumerate(TRAININGS.items()):
            seconds = (given.left() - 15) / (len(TRAININGS) - number)
            if seconds < LEAST_SECONDS:
                report(training, {"skipped": f"{seconds:.0f} s are left"})
                continue
            run = folder / training
            finished = run_side_by_side(
                {training: command(given, root, run, stabilizer, epochs)}, folder / "outputs", seconds=seconds
            )
            report(training, {"epochs": epochs, "run_s": finished[training].seconds, **figures_of(run)})
            if (reason := what_failed(finished)) is not None:
                failed.append(reason)
        if failed:
            report("failed", "; ".join(failed))


def image_folder(data: Path, folder: Path) -> Path:
    """The folder with train/ and test/: DATA_DIR, or what is in its archive, unpacked into `folder`."""
    archive = data / ARCHIVE if data.is_dir() else data
    if (data / "train").is_dir():
        return data
    if not archive.is_file():
        raise Skip(f"{data} has neither train/ nor {ARCHIVE}")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "images", filter="data")
    found = sorted((folder / "images").glob("**/train"))
    if not found:
        raise Skip(f"{archive} has no train/ in it")
    return found[0].parent


def affordable_epochs(given: Given, counts: dict[str, int]) -> int:
    """As many as both trainings have time for, by the step times measured before; 1 where they were not."""
    times = given.earlier.get("step_times", {})
    if "evaluation_pass" not in times or "bf16-mixed_channels_last" not in times:
        return 1
    step_s = times["bf16-mixed_channels_last"]["step_ms"]["median"] / 1000 / times["batch"]  # an image
    pass_s = times["evaluation_pass"]["pass_ms"]["median"] / 1000 / times["evaluation_pass"]["batch"]
    validation_s = VALIDATION_SHARE * counts["train"] * (given.sizes.attack_steps + 2) * pass_s
    test_s = 2 * counts["test"] * (TEST_STEPS + 2) * pass_s  # best and last
    epoch_s = (1 - VALIDATION_SHARE) * counts["train"] * step_s + validation_s
    seconds = (given.left() - 15) / len(TRAININGS) - START_SECONDS - validation_s - test_s
    return min(max(1, int(0.8 * seconds / epoch_s)), given.sizes.most_epochs)


def command(given: Given, root: Path, run: Path, stabilizer: str, epochs: int) -> list[str]:
    """Of one training."""
    on_gpu, steps = torch.cuda.is_available(), given.sizes.attack_steps
    model = "resnet18" if given.sizes.network == "ResNet18" else "small_cnn"
    return [
        *(sys.executable, str(ROOT / "train.py"), "data=image_folder", f"data.root={root}", f"model={model}"),
        *("optimizer=sgd", "scheduler=one_cycle", "objective=pgd", stabilizer, f"attack.steps={steps}"),
        *(f"validation_attack.steps={steps}", "attacks=[clean,pgd]", f"suite.pgd.steps={TEST_STEPS}"),
        *("trainer.precision=bf16-mixed", "channels_last=true", "logger=csv", f"trainer.max_epochs={epochs}"),
        *(f"data.batch_size={given.sizes.batch}", f"data.validation_images={VALIDATION_SHARE}"),
        *(f"trainer.accelerator={'gpu' if on_gpu else 'cpu'}", f"hydra.run.dir={run}"),
    ]


def figures_of(run: Path) -> dict[str, Any]:
    """Seconds, validated and test accuracies, as far as the run came."""
    timing = _read(run / "timing.json")
    test = {
        name.removeprefix("test/"): value
        for name, value in _read(run / "metrics.json").items()
        if name in ("test/clean_accuracy", "test/pgd_accuracy")
    }
    return {
        "seconds_of_epochs": timing.get("epochs"),
        "fit_s": timing.get("fit"),
        "validation": epochs_of(run),
        "test": test or None,
    }


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
