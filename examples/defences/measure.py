"""Measure the defences on a network of the zoo and write results.csv and the table of README.md.

    python examples/defences/measure.py [NETWORK]       default: digits_pgd; minutes on two cores

Each row is one evaluation by evaluate.py, on 100 test digits, 10 of each class.
`python examples/defences/measure.py table` writes the table anew from results.csv.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
ROWS, PAGE = HERE / "results.csv", HERE / "README.md"
ATTACKS = ("autoattack", "adaptive", "features", "transfer")
IMAGES = ("evaluation.n_examples=100", "checks.enabled=false")
DEFENCES = {
    "none": (),
    "mean_sparse": ("model=mean_sparse",),
    "mean_sparse, straight-through": ("model=mean_sparse", "model.straight_through=true"),
    "important_neurons": ("model=important_neurons",),
}


def measure(network: str) -> pd.DataFrame:
    """A row for each defence and test image: 1 where it is classified correctly, without and under each attack."""
    tables = []
    for defence, settings in DEFENCES.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(HERE.parents[1] / "evaluate.py"), "--config-dir", str(HERE / "conf")]
            command += [f"checkpoint=zoo:{network}", *settings, f"test_attacks=[clean,{','.join(ATTACKS)}]"]
            command += [f"test_attacks.transfer.checkpoints=[zoo:{network}]", *IMAGES]
            path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
            run = [*command, f"hydra.run.dir={folder}/run"]
            subprocess.run(run, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": path})
            images = pd.read_csv(Path(folder) / "run" / "images.csv")
        own = images[["image", "clean", *ATTACKS]]
        tables.append(own.assign(network=network, defence=defence))
    return pd.concat(tables)[["network", "defence", "image", "clean", *ATTACKS]]


def table(rows: pd.DataFrame) -> str:
    """The table of README.md, in percent, and the sentence below it."""
    lines = ["| defense | clean | AutoAttack | adaptive | features | transfer | worst of these |", "|---" * 7 + "|"]
    outcomes, autoattack = {}, rows.groupby("defence")["autoattack"].mean()
    for name in dict.fromkeys(rows["defence"]):
        own = rows[rows["defence"] == name].set_index("image")
        outcomes[name] = own[list(ATTACKS)].min(axis=1)
        values = [*(own[column].mean() for column in ("clean", *ATTACKS)), outcomes[name].mean()]
        lines.append(f"| {name} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")
    for name in ("mean_sparse", "important_neurons"):
        variants = [value for key, value in outcomes.items() if key.startswith(name)]
        alone = autoattack[name] - autoattack["none"]
        remains = pd.concat(variants, axis=1).min(axis=1).mean() - outcomes["none"].mean()
        gain = f"{100 * alone:+.1f} points over the undefended network under AutoAttack alone"
        lines.append(f"\n`{name}`: {gain}, {100 * remains:+.1f} under the worst of all attacks, image by image.")
    return "\n".join(lines)


def write() -> None:
    """Write the table into README.md."""
    begin, end = "<!-- table -->\n", "\n<!-- end of the table -->"
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(before + begin + table(pd.read_csv(ROWS)) + end + rest.partition(end)[2])


if __name__ == "__main__":
    if sys.argv[1:] != ["table"]:
        measure(*(sys.argv[1:] or ["digits_pgd"])).to_csv(ROWS, index=False)
    write()
