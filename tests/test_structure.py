"""The architecture: levels, no cycle, few files at the top, Hydra in nsr/app alone."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "nsr").rglob("*.py"))
TORCH_ALONE = ("sensitivity", "stabilizer", "features", "layers", "modes", "losses", "attacks", "objectives")


def unit(module: str) -> str:
    """The file or folder directly in nsr/ that a module belongs to."""
    return module.split(".")[1] if "." in module else "nsr"


def imports(path: Path) -> set[str]:
    """What a file imports where it is loaded or in a function; not for the type checker alone."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" if node.module == "nsr" else node.module for alias in node.names}
    return found


def arrows() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if name == "nsr.__init__":
            continue
        ours = graph.setdefault(unit(name), set())
        ours |= {unit(module) for module in imports(path) if module.startswith("nsr.")} - {unit(name), "__version__"}
    return graph


def test_no_cycle_and_at_most_ten_levels():
    graph, level = arrows(), {}

    def height(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, f"a cycle: {' -> '.join((*above, name))}"
        if name not in level:
            level[name] = 1 + max((height(below, (*above, name)) for below in graph.get(name, ())), default=0)
        return level[name]

    assert max(map(height, graph)) <= 9  # train.py and evaluate.py are the tenth


def test_no_cycle_of_files():
    """Between two files of one folder neither, and not for the type checker either."""
    graph = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    found: dict[str, set[str]] = {}
    for name, path in graph.items():
        froms = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        names = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
        own = {each if each in graph else each.rpartition(".")[0] for each in names}
        found[name] = own & graph.keys() - ({"nsr"} if path.name == "__init__.py" else set())
    list(TopologicalSorter(found).static_order())  # CycleError names the files


def test_few_files_at_the_top():
    assert len(list((ROOT / "nsr").glob("*.py"))) <= 12


def test_hydra_is_imported_in_app_alone():
    for path in FILES:
        found = {module.partition(".")[0] for module in imports(path)} & {"hydra", "omegaconf"}
        assert not found or path.parent.name == "app" or path.name == "compat.py", path


def test_the_mathematics_need_torch_alone():
    allowed = {"torch", "nsr", "numpy", "math", "__future__", "typing", "collections", "dataclasses", "contextlib"}
    allowed |= {
        "copy",
        "functools",
        "inspect",
        "sys",
        "logging",
        "warnings",
        "random",
        "re",
        "fnmatch",
        "difflib",
        "itertools",
        "weakref",
    }
    for path in FILES:
        if unit(".".join(path.relative_to(ROOT).with_suffix("").parts)) in TORCH_ALONE:
            found = {module.partition(".")[0] for module in imports(path)} - allowed
            assert found <= {"pyautoattack", "foolbox", "eagerpy"}, (path, found)  # in the function that needs them
