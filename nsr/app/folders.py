"""Where configurations are found: conf/, and the folders that a command names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from nsr.errors import InputError
from nsr.run.commands import override

PACKAGE = Path(__file__).resolve().parents[1]
# a wheel holds the folder inside the package; in a checkout it stands beside it
CONFIGURATIONS = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
SEARCH_PATH = "hydra.searchpath="
GROUPS = {path.name for path in CONFIGURATIONS.iterdir() if path.is_dir()}


def with_folder(overrides: Sequence[str], folder: str) -> list[str]:
    """Return the overrides with the folder of --config-dir, which must exist, in Hydra's search path."""
    if not Path(folder).is_dir():
        form = "it must be a folder of configurations, such as my_conf/experiment/"
        raise InputError(f"--config-dir is {folder!r}; {form}")
    others = [row for row in overrides if not row.startswith(SEARCH_PATH)]
    return [*others, override("hydra.searchpath", [f"file://{Path(folder).absolute()}", *_folders(overrides)])]


def _folders(overrides: Sequence[str]) -> list[str]:
    """Return the folders of hydra.searchpath, [] where it is no list; Hydra says then what is wrong with it."""
    given = [OmegaConf.create(row.partition("=")[2]) for row in overrides if row.startswith(SEARCH_PATH)]
    return [str(folder) for folders in given if OmegaConf.is_list(folders) for folder in folders]


class FurtherFolders(SearchPathPlugin):
    """Let a primary configuration lie in a folder of hydra.searchpath, which Hydra reads after that configuration."""

    folders: ClassVar[list[str]] = []  # of the command

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders; Hydra calls it whenever it looks for configurations."""
        for folder in self.folders:
            search_path.append("nsr", folder)


def search_further_folders(overrides: Sequence[str]) -> None:
    """Find primary configurations in the folders that a command names, its own and those of a run it resumes."""
    FurtherFolders.folders = _folders(overrides)
    for folder in FurtherFolders.folders:
        scheme, _, path = folder.rpartition("://")
        if scheme in ("", "file") and not Path(path).is_dir():
            form = "it must name folders of configurations, such as [file:///home/me/my_conf]"
            raise InputError(f"hydra.searchpath names {folder!r}, which is no folder; {form}")
    if FurtherFolders.folders:
        Plugins.instance().register(FurtherFolders)
