"""The network behind its normalization, from settings or from a checkpoint.

Of a checkpoint only tensors and plain values are read; nsr.app.allowlist decides which classes its settings may name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from nsr.app.allowlist import OF_THE_CLASSIFIER, admitted, on_this_machine, plain_copy, targets
from nsr.app.composition import plain
from nsr.app.folders import CONFIGURATIONS
from nsr.app.instantiation import EXAMPLES, Settings, instantiate, locate
from nsr.app.performance import choice_of
from nsr.app.rules import NORMS, optional
from nsr.data import DataDescription
from nsr.data.class_order import as_names
from nsr.data.origin import found_again
from nsr.errors import InputError, check_choice, check_epsilon, check_finite_logits, check_layers, check_logits
from nsr.evaluation.threat_models import in_each
from nsr.models import Classifier, build_network
from nsr.models.build import Allocations, class_tensors
from nsr.models.normalization import find_normalization, torchvision_name
from nsr.models.preprocessing import published_sizes
from nsr.models.stored import below, similarity
from nsr.models.weights import (
    OtherNetwork,
    is_state_dict,
    load_state_dict,
    load_state_dict_file,
    read_checkpoint,
    read_run_checkpoint,
    stored_under_names_of,
)
from nsr.modes import network_mode
from nsr.run.own import is_own, is_trusted, trusted_names

log = logging.getLogger(__name__)
OF_WEIGHTS = ("weights", "weights_prefix", "new_head")
OF_TRAINING = ("augmentation", "train_crop")  # of the data
SIZES = ("channels", "classes", "image_size")  # of the data that a network is made for


def build_classifier(settings: Settings, description: DataDescription, *, exchange: bool = False) -> Classifier:
    """Make the network with its normalization in front, and the weights of model.weights in it.

    Args:
        settings: of the whole command.
        exchange: convert BatchNorm to SyncBatchNorm.
    """
    own = dict(settings["model"])
    choice, weights, output = own.pop("normalization", None), own.pop("weights", None), own.pop("output", None)
    prefix, new_head = own.pop("weights_prefix", None), own.pop("new_head", False)
    auxiliary = own.pop("auxiliary", None)
    if new_head and weights is None:
        raise InputError(
            "model.new_head is true without model.weights; it keeps all but the heads of model.weights=FILE"
        )
    if prefix is not None and weights is None:
        raise InputError(f"model.weights_prefix is {prefix!r}, but model.weights is not given; give both, or none")
    factory = locate(own, "model")
    own.pop("_target_")
    sizes = {name: getattr(description, name) for name in SIZES}
    net = build_network(factory, instantiate(own, "model"), **sizes)
    if weights is not None:
        head = class_tensors(net, factory, instantiate(own, "model"), **sizes) if new_head else ()
        try:
            new_classes = description.classes if new_head else None
            load_state_dict_file(net, weights, prefix=prefix, new_head=new_classes, head=head)
        except OtherNetwork as error:
            raise InputError(f"{error} {nearest_networks(weights, description)}") from error
    if exchange:
        # here and not by trainer.sync_batchnorm, which makes new layers after the old ones were hooked
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    name, data = torchvision_name(factory, own), (description.mean, description.std)
    run = read_run_checkpoint(weights) if weights is not None else None
    normalization = find_normalization(choice, net, name, run, data=data, file=weights)
    classifier = Classifier(net, *normalization.constants, output=output, auxiliary=auxiliary)
    classifier.normalization = normalization
    classifier.published_sizes = published_sizes(name, net) if weights is not None and run is None else {}
    return classifier


def nearest_networks(weights: Any, description: DataDescription) -> str:
    """Return a line with the three networks of conf/ whose names and shapes are most like those of a weight file."""
    content, found = read_checkpoint(weights), []
    for path in sorted((CONFIGURATIONS / "model").glob("*.yaml")):
        own = plain(OmegaConf.load(path))  # type: ignore[arg-type]
        if "???" in own.values():  # needs a name
            continue
        settings = {
            key: value for key, value in own.items() if key not in {"_target_", *OF_THE_CLASSIFIER, *OF_WEIGHTS}
        }
        sizes = {name: getattr(description, name) for name in SIZES}
        try:
            with torch.device("meta"):
                net = build_network(locate(own, "model"), settings, **sizes)
        except InputError:  # other images than these
            continue
        found.append((similarity(net.state_dict(), stored_under_names_of(net, content)), path.stem))
    nearest = ", ".join(f"{name} ({100 * value:.0f} %)" for value, name in sorted(found, reverse=True)[:3])
    return f"most similar by names and shapes: {nearest}; model.new_head=true loads all but a head of other classes"


def example_images(description: DataDescription) -> Tensor:
    """Return black images of the data's size for trial passes."""
    return torch.zeros(EXAMPLES, description.channels, description.image_size, description.image_size)


def check_classifier(classifier: Classifier, description: DataDescription) -> None:
    """Raise InputError unless the network takes the images and returns logits of the classes."""
    example = example_images(description)
    try:
        with torch.no_grad(), network_mode(classifier, "eval"):
            logits = classifier(example)
    except InputError:
        raise
    except Exception as error:  # of any network
        size, reason = " x ".join(map(str, example.shape[1:])), " ".join(str(error).split())
        fix = "choose another model, or another data.image_size"
        raise InputError(f"{type(classifier.net).__name__} takes no images of {size}: {reason}; {fix}") from error
    check_logits(logits, torch.zeros(EXAMPLES, dtype=torch.int64), classes=description.classes)
    check_finite_logits(logits)


def with_checkpoint(config: DictConfig) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Return the settings of an evaluation and its checkpoint, which fills in what the command left open.

    Errors:
        InputError: nothing to evaluate, or a checkpoint that cannot be used.
    """
    config, saved = config.copy(), None
    if config.checkpoint is not None:
        saved, settings = read_settings(config.checkpoint)
        _check_threat_model(settings)
        with open_dict(config):
            for part in ("data", "model"):
                own = {key: value for key, value in (config.get(part) or {}).items() if value is not None}
                if "_target_" not in own:
                    theirs = read_part(part, settings, config.checkpoint, trusted=config.trusted)
                    config[part] = OmegaConf.merge(_found(theirs, settings, own) if part == "data" else theirs, own)
            if config.data.get("class_order") is None:
                config.data.class_order = as_names(settings.get("class_names"), repr(str(config.checkpoint)))
            config.model.weights = config.model.weights_prefix = config.model.new_head = None
            config.layers = config.layers if config.layers is not None else settings.get("layers")
            if config.norm in (None, settings["norm"]):
                config.epsilon = config.epsilon if config.epsilon is not None else settings["epsilon"]
            config.norm = config.norm or settings["norm"]
            # equal to the tests at the end of the run; one of before there was a choice has 'off'
            if config.performance is None:
                config.performance = "auto" if settings.get("performance") == "auto" else "off"
            if config.channels_last is None:
                config.channels_last = settings.get("channels_last") is True
    elif "_target_" not in (config.get("data") or {}) or (config.get("model") or {}).get("weights") is None:
        raise InputError(
            "nothing to evaluate: give checkpoint=RUN/checkpoints/best.ckpt, or model=NAME model.weights=FILE data=NAME"
        )
    elif config.model.get("new_head"):
        raise InputError("model.new_head is true: the head would be random; it is for train.py alone")
    elif config.data.class_order is None and (run := read_run_checkpoint(config.model.weights)) is not None:
        config.data.class_order = as_names(run["nsr_settings"].get("class_names"), repr(str(config.model.weights)))
    if config.data.get("download") is None:  # an argument of the data sets that can be downloaded alone
        with open_dict(config):
            config.data.pop("download", None)
    config.performance = choice_of(config.performance)
    config.channels_last = "auto" if config.channels_last is None else config.channels_last
    config.norm = config.norm or "linf"
    if config.epsilon is None:
        config.epsilon = OmegaConf.select(config, f"data.epsilon.{config.norm}")
        if config.epsilon is None:
            raise InputError(f"the data have no customary epsilon for {config.norm}; give epsilon=...")
    return _in_threat_models(config), saved


def _in_threat_models(config: DictConfig) -> dict[str, Any]:
    """Return the settings of an evaluation with the test attacks of each threat model."""
    settings = plain(config)
    models = settings["threat_models"]
    if models is None:
        return settings
    customary = settings["data"].get("epsilon") or {}
    radii = models if isinstance(models, dict) else {norm: customary.get(norm) for norm in models}
    if not isinstance(models, dict) and config.norm in radii:
        radii[config.norm] = config.epsilon
    attacks = {}
    for norm, radius in radii.items():
        if radius is None:
            raise InputError(f"the data have no customary epsilon for {norm}; give threat_models={{{norm}: RADIUS}}")
        config.norm, config.epsilon = norm, radius  # of this copy, for the settings that refer to them
        attacks[norm] = plain(config)["test_attacks"]
    return {**settings, "threat_models": radii, "test_attacks": in_each(attacks, settings["test_attacks"])}


def _found(theirs: dict[str, Any], settings: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data's settings of a checkpoint with paths that lead there from here, unless the command has own."""
    origin = settings.get("data_origin")
    origins = origin if isinstance(origin, Mapping) else {}
    found = {name: found_again(name, theirs[name], origins[name]) for name in origins if name in theirs.keys() - own}
    return {**theirs, **found, "class_order": None}


def read_settings(path: Any) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return a checkpoint of nsr and the settings of its run, all plain values; InputError where it is none."""
    saved = read_checkpoint(path)
    if not isinstance(saved, Mapping) or not {"nsr_settings", "state_dict"} <= set(saved):
        fix = "for a plain state_dict give model=NAME model.weights=FILE data=NAME"
        raise InputError(f"{str(path)!r} is not a checkpoint of nsr; {fix}")
    settings = plain_copy(saved["nsr_settings"], "settings")
    if not isinstance(settings, dict):
        raise InputError(f"{str(path)!r} is not a checkpoint of nsr: its settings are not a mapping")
    return saved, settings


def read_part(part: str, settings: Mapping[str, Any], path: Any, *, trusted: Sequence[str]) -> dict[str, Any]:
    """Return the 'model' or 'data' of a checkpoint's settings, to be made; log the names that `trusted` allows."""
    own = settings.get(part)
    if part == "data" and isinstance(own, Mapping):
        own = {name: value for name, value in own.items() if name not in OF_TRAINING}
    names = trusted_names(trusted)
    theirs = admitted(part, own, trusted=names, is_own=is_own(settings))
    if part == "data":
        theirs = on_this_machine(theirs)
    for name in targets(theirs):
        if is_trusted(name, names):
            log.info("%s of the checkpoint %r is imported and called, as trusted allows", name, str(path))
    return theirs


def load_network(
    net: nn.Module, saved: Mapping[str, Any], path: Any, *, description: DataDescription | None = None
) -> None:
    """Load the weights of a checkpoint of nsr into `net`.

    Errors:
        InputError: they are another network's, or were trained on data unlike those of the description.
    """
    everything = saved["state_dict"] if isinstance(saved["state_dict"], Mapping) else {}
    state = below(everything, "net.")
    if not is_state_dict(state):
        raise InputError(
            f"{str(path)!r} is not a checkpoint of nsr: its state_dict is not a mapping of names to tensors"
        )
    try:
        load_state_dict(net, state, repr(str(path)))
    except InputError as error:
        theirs = saved["nsr_settings"].get("data") if description is not None else None
        if not isinstance(theirs, Mapping):
            raise
        sizes = ((name, theirs.get(name), getattr(description, name)) for name in SIZES)
        unlike = [f"{name} was {before} and is {now}" for name, before, now in sizes if before != now]
        if not unlike:
            raise
        raise InputError(
            f"{str(path)!r} was trained on other data: {'; '.join(unlike)}; leave data=NAME out, or evaluate a "
            f"checkpoint that was trained on these data ({error})"
        ) from error


def network_of(path: Any, place: str, trusted: Sequence[str], description: DataDescription) -> Classifier:
    """Return the network of a checkpoint, with its own normalization, for the data of the description."""
    saved, source = read_settings(path)
    model = read_part("model", source, path, trusted=trusted) | dict.fromkeys(OF_WEIGHTS)
    theirs: Any = {name: (source.get("data") or {}).get(name) for name in (*SIZES, "mean", "std")}
    with Allocations(saved["state_dict"]):
        network = build_classifier({"model": model}, replace(description, **theirs))
    load_network(network, saved, path)
    try:
        check_classifier(network, description)
    except InputError as error:
        raise InputError(f"{place}: {str(path)!r} cannot be used on these data: {error}") from error
    return network


def _check_threat_model(settings: Mapping[str, Any]) -> None:
    """Raise InputError where these settings, which Hydra hands to every attack, hold anything but plain values."""
    try:
        norm = check_choice("norm", settings.get("norm"), NORMS)
        check_epsilon("epsilon", settings.get("epsilon"), norm=norm)
        optional(check_layers)("layers", settings.get("layers"))
    except InputError as error:
        raise InputError(f"the checkpoint's {error}") from error
