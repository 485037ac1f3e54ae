"""The part of the test set that an evaluation measures: all of it, some images, a shard; and the merge of shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_original_cwd

from nsr import __version__
from nsr.app.job import Job
from nsr.app.performance import uses_channels_last
from nsr.app.rules import as_list, shard
from nsr.errors import InputError, check_choice
from nsr.evaluation.cache import (
    RESPONSE_IMAGES,
    Response,
    by_content,
    check_cache,
    fingerprint,
    network_fingerprint,
    network_response,
)
from nsr.evaluation.curve import expanded
from nsr.evaluation.masking_checks import PROBES
from nsr.evaluation.shards import read_shards
from nsr.evaluation.threat_models import threat_model


def check_parts(job: Job) -> None:
    """Raise InputError where `only`, `shard` or `merge` cannot be done, before a directory is made."""
    settings = job.settings
    for name in restarted(job):
        check_choice("only entry", name, job.suite.work)
    if single_images(job) or settings["shard"] is not None or settings["merge"]:
        choose_images(job)
        job.data.test_dataloader()
    if settings["merge"]:
        merged_shards(job)
    if (folder := cache_folder(job)) is not None and not single_images(job):
        choose_images(job)
        check_cache(folder, identity(job), response(job))


def cache_folder(job: Job) -> Path | None:
    """Return the folder in evaluation.cache, None where it is left open."""
    folder = job.settings["evaluation"]["cache"]
    return None if folder is None else Path(get_original_cwd(), folder).expanduser()


def response(job: Job) -> Response:
    """Return what the network gives on the first test images; after `choose_images`."""
    images = job.data.test_set
    first = torch.stack([images[index][0] for index in range(min(RESPONSE_IMAGES, len(images)))])
    return network_response(job.module.net, first)


def single_images(job: Job) -> list[int]:
    """Return the indices of images that `only` names."""
    return [entry for entry in as_list(job.settings["only"]) if isinstance(entry, int)]


def restarted(job: Job) -> list[str]:
    """Return the rows that `only` names: measured anew, whatever the cache has."""
    return [entry for entry in as_list(job.settings["only"]) if isinstance(entry, str)]


def choose_images(job: Job) -> str:
    """Set the test images and the shard, once, and return a description of them."""
    settings, data, options = job.settings, job.data, job.settings["evaluation"]
    data.setup("test")
    if data.chosen is not None:
        return data.chosen
    data.chosen = f"all {len(data.test_set)} test images"
    if images := single_images(job):
        if (largest := max(images)) >= len(data.test_set):
            raise InputError(f"only has {largest}; the images of the test set are 0 to {len(data.test_set) - 1}")
        data.keep_test(torch.tensor(images))
    elif options["n_examples"] is not None:
        checksum = data.limit_test(options["n_examples"], options["subset"])
        data.chosen = f"{len(data.test_set)} test images, {options['subset']}, checksum {checksum}"
    if settings["shard"] is not None:
        data.shard = shard("shard", settings["shard"])
    return data.chosen


def merged_shards(job: Job) -> list[dict[str, Any]]:
    """Return the results of all shards in the folders of `merge`; after `choose_images`."""
    folders = (Path(get_original_cwd(), str(folder)).expanduser() for folder in as_list(job.settings["merge"]))
    return read_shards(folders, shard_identity(job))


def identity(job: Job) -> dict[str, Any]:
    """Return what decides every result of an evaluation beside images and attacks."""
    return {
        "network": network_fingerprint(job.module.net),
        "seed": job.settings["seed"],
        "search": [job.settings["performance"], job.settings["evaluation"]["precision"]],
        "channels_last": uses_channels_last(job.settings, job.module.net),
        "nsr": __version__,
        "layers": [repr(layer) for layer in job.module.extractor.layers],
    }


def attack_identity(job: Job) -> dict[str, Any]:
    """Return {row, probe or 'sensitivity': its settings}, with the contents of files in the place of their paths."""
    settings = job.settings
    measured = {**expanded(settings["test_attacks"]), "sensitivity": settings["sensitivity_attack"]}
    own = {name: {**threat_model(name, settings), **(attack or {})} for name, attack in measured.items()}
    return {**dict.fromkeys(PROBES), **by_content(own, Path(get_original_cwd())), "clean": None}


def shard_identity(job: Job) -> dict[str, Any]:
    """Return what the shards of one evaluation have in common."""
    data = job.data
    return {
        **identity(job),
        "attacks": fingerprint(attack_identity(job)),
        "rows": job.suite.work,
        "images": fingerprint([len(data.test_set), data.test_set.labels.tolist()]),
        "evaluation_batch_size": data.evaluation_batch_size,
    }
