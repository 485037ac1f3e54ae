"""What a checkpoint's settings may have made: the list, at every depth, against what hydra would really call."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torchvision
from hydra._internal.instantiate import _instantiate2
from hydra.utils import instantiate
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import PROPERTY

from nsr.app.allowlist import LOADERS, admitted, plain_copy, targets
from nsr.errors import InputError

# written out, so that a name that joins by mistake is noticed
OURS = {"VGG16", "Classifier", "Normalize", "ResNet18", "ResNet20", "SmallCNN", "timm_model", "torchvision_model"}
OURS |= {"PreActResNet", "ResNet34", "ResNet50", "WideResNet"}
ALLOWED = {f"nsr.models.{name}" for name in OURS} | {"timm.create_model"}
ALLOWED |= {f"torchvision.models.{name}" for name in ("resnet18", "vit_b_16", "vgg11_bn", "inception_v3")}
DATA = {"nsr.data.CIFAR10", "nsr.data.Digits", "nsr.data.FashionMNIST", "nsr.data.ImageFolder"}
OUR_NET = {"_target_": "nsr.models.SmallCNN"}
FOREIGN = [
    *("torch.hub.load", "torch.utils.cpp_extension.load_inline", "builtins.eval", "os.system", "functools.partial"),
    *("nsr.models.weights.read_checkpoint", "nsr.models", "nsr.models.build.timm_model", "nsr.models.build", "nsr"),
    *("nsr.models.weights", "nsr.models.networks.functional", "nsr.models.ResNet", "nsr.models.__all__", "nsr.data"),
    *("nsr.models.SmallCNN.forward", "nsr.models..SmallCNN", " nsr.models.SmallCNN", "nsr.models.SmallCNN ", ""),
    *("torchvision.models", "torchvision.models.get_model", "torchvision.models.get_weight"),
    "torchvision.models.ResNet",
    *("torchvision.models.get_model_weights", "torchvision.models.list_models", "torchvision.models.resnet"),
    *("torchvision.models.ResNet18_Weights", "torchvision.models.resnet.resnet18", "torchvision.models.detection"),
    *("torchvision.models.detection.fasterrcnn_resnet50_fpn", "torchvision.models.fasterrcnn_resnet50_fpn"),
    *("torchvision.models.quantization.resnet18", "torchvision.models.video.r3d_18", "torchvision.models._api"),
    *("torchvision.models.raft_large", "torchvision.models.deeplabv3_resnet50", "torchvision.io.read_file"),
    *("timm.models.create_model", "timm.create_model.__globals__", "timm.models.load_checkpoint", "timm"),
    *("timm.models", "nsr.data.ImageFolder", "nsr.app.train.train", "hydra.utils.instantiate"),
    *("hydra.utils.call", "NSR.models.SmallCNN"),
    *("nsr.models.SmallCNN\n", "nsr.models.\N{FULLWIDTH LATIN CAPITAL LETTER S}mallCNN", "nsr.models.smallCNN"),
]


def refusal(part: str, given: Any, **further: Any) -> str:
    with pytest.raises(InputError) as caught:
        admitted(part, given, **further)
    assert str(caught.value).isprintable(), "one line, and nothing that moves a terminal's cursor"
    return str(caught.value)


# ---------------------------------------------------------------- the list
@pytest.mark.parametrize("target", sorted(ALLOWED))
def test_each_allowed_kind_passes(target):
    asked = {"_target_": target, "classes": 3} | ({"model_name": "resnet18.a1_in1k"} if "timm." in target else {})
    assert admitted("model", asked) == asked
    assert targets(admitted("model", asked)) == [target]


def test_every_classifier_of_torchvision_passes_and_is_what_its_name_says():
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) > 70
    for name in names:
        assert admitted("model", {"_target_": f"torchvision.models.{name}", "normalization": "none"})
        assert getattr(torchvision.models, name) is torchvision.models.get_model_builder(name)


@pytest.mark.parametrize("target", sorted(DATA))
def test_data_sets_pass_as_data_alone(target):
    asked = {"_target_": target, "root": "here", "epsilon": {"linf": "8/255"}}
    assert admitted("data", asked) == asked
    assert f"the checkpoint's model is {target}, which is none of the networks" in refusal("model", asked)


@pytest.mark.parametrize("target", [*sorted(ALLOWED), "nsr.data.ImageData", "nsr.data.TensorImages"])
def test_nothing_else_passes_as_data(target):
    assert f"data is {target}, which is none of the data sets of nsr" in refusal("data", {"_target_": target})


def test_data_have_nothing_below():
    nested = {"_target_": "nsr.data.Digits", "root": {"_target_": "nsr.data.Digits"}}
    assert "the checkpoint's data.root is nsr.data.Digits" in refusal("data", nested)


@pytest.mark.parametrize("target", FOREIGN)
def test_anything_else_is_refused_with_what_to_type(target):
    text = refusal("model", {"_target_": target, "classes": 3})
    is_name = target != "" and all(part.isidentifier() for part in target.split("."))
    if is_name:
        assert f"is {target}, which is none of the networks of nsr, torchvision and timm" in text
        assert f"if you trust that code, add trusted=[{target}], else give model=NAME" in text
    else:
        assert "which is not a class: refused" in text


@pytest.mark.parametrize("target", [None, 3, True, ["os.system"], {"_target_": "os.system"}])
def test_a_target_that_is_no_text(target):
    assert "which is not a class: refused" in refusal("model", {"_target_": target})


@pytest.mark.parametrize("given", [None, {}, [], OUR_NET["_target_"], [OUR_NET], {"a": 1}])
def test_settings_without_a_class(given):
    assert refusal("model", given) == "the checkpoint's model names no class; give model=NAME"


@pytest.mark.parametrize("key", ["_args_", "_partial_", "_recursive_", "_convert_", "_mode_"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_hydras_other_keys_are_refused(key, depth):
    """`_args_: [DEFAULT]` is torchvision's weights; `_partial_`, `_recursive_` leave something to be called later."""
    own = {"_target_": "torchvision.models.resnet18"} | ({key: ["DEFAULT"]} if depth == 0 else {})
    if depth:
        own["kind"] = {key: False} if depth == 1 else [{"a": {key: False}}]
    assert f"has {key}, which is hydra's: refused" in refusal("model", own)


# ---------------------------------------------------------------- arguments
@pytest.mark.parametrize("target", ["torchvision.models.resnet18", "timm.create_model", "nsr.models.SmallCNN"])
def test_what_fetches_weights_is_left_out(target):
    own = {"_target_": target} | ({"model_name": "resnet18"} if "timm" in target else {})
    loading = dict.fromkeys(LOADERS, "DEFAULT") | {"pretrained": True, "pretrained_cfg": {"url": "http://localhost"}}
    assert {"weights", "pretrained", "weights_backbone", "checkpoint_path", "pretrained_cfg"} <= LOADERS
    assert admitted("model", {**own, **loading}) == own
    nested = {"_target_": "nsr.models.Classifier", "net": [{"a": {**own, **loading}}]}
    assert admitted("model", nested) == {"_target_": "nsr.models.Classifier", "net": [{"a": own}]}


def test_what_is_left_out_is_looked_at_all_the_same():
    inside = {"_target_": "torchvision.models.resnet18", "weights": {"_target_": "os.system"}}
    assert "model.weights is os.system" in refusal("model", inside)


@pytest.mark.parametrize(
    "name",
    ["hf-hub:timm/resnet18", "hf_hub:timm/resnet18", "local-dir:/tmp/x", "a/b", "a\\b", "../x", "", "a b", 3, None],
)
def test_a_hubs_names_are_refused(name):
    assert "model_name is" in refusal("model", {"_target_": "timm.create_model", "model_name": name})


@pytest.mark.parametrize("value", ["list", ["a"], [[1, "a"]], {"a": 1}, {"_target_": "nsr.models.SmallCNN"}])
@pytest.mark.parametrize("target", ["torchvision.models.resnet18", "timm.create_model"])
def test_other_peoples_builders_take_numbers(target, value):
    own = {"_target_": target} | ({"model_name": "resnet18"} if "timm" in target else {})
    assert admitted("model", {**own, "a": 1, "b": [0.5, [True, None]]})["b"] == [0.5, [True, None]]
    assert f"arguments of {target} must be numbers; if you trust them, add trusted=[{target}]" in refusal(
        "model", {**own, "feature_cls": value}
    )


# ---------------------------------------------------------------- trusted
def test_trusted_names_are_exact_and_their_arguments_are_left():
    own = {"_target_": "mine.Net", "weights": "x", "block": {"_target_": "mine.Block"}}
    assert "model.block is mine.Block" in refusal("model", own, trusted=["mine.Net"])
    assert "model is mine.Net" in refusal("model", own, trusted=["mine.Block", "mine", "min.*", "mine.Net2"])
    assert admitted("model", own, trusted=["mine.Block", "mine.Net"]) == own
    assert targets(own) == ["mine.Net", "mine.Block"]
    assert "_args_" in refusal("model", {**own, "_args_": [1]}, trusted=["mine.Block", "mine.Net"])
    assert admitted("data", {"_target_": "mine.Data"}, trusted=["mine.Data"])


# ---------------------------------------------------------------- plain values
class Text(str):
    """Text that could be more than it looks."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": "${oc.env:HOME}"}, "settings.a is '${oc.env:HOME}': settings that look something up are refused"),
        ({"a": ["b ${c}"]}, "settings.a[0] is 'b ${c}'"),
        ({"a": "\\${c}"}, "look something up"),
        ({"a": [["???"]]}, "settings.a[0][0] is '???'"),
        ({"a": b"os.system"}, "settings.a is a bytes: refused"),
        ({"a": {1, 2}}, "settings.a is a set"),
        ({"a": len}, "settings.a is a builtin_function_or_method"),
        ({"a": Text("b")}, "settings.a is a Text"),
        ({"a": 1j}, "settings.a is a complex"),
        ({1: 2}, "settings has the key 1: refused"),
        ({"a": {"b\nc": 2}}, "settings.a has the key 'b\\nc': refused"),
        ({"\x1b[2J": 1}, "has the key '\\x1b[2J'"),
    ],
)
def test_what_is_no_plain_value(value, message):
    with pytest.raises(InputError) as caught:
        plain_copy(value, "settings")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_settings_that_are_a_bomb():
    """A list within itself, a chain, and lists of the same list: many values in a file of a few bytes."""
    endless: list[Any] = []
    endless.append(endless)
    chain: Any = 0
    wide: Any = [0]
    for _ in range(200):
        chain = {"a": chain}
    for _ in range(18):
        wide = [wide] * 2
    for value in (endless, chain, wide, [0] * 200_000):
        with pytest.raises(InputError, match="deeper or larger than the settings of a run"):
            plain_copy(value, "settings")


def test_the_names_of_all_classes_of_imagenet_are_plain_values():
    names = [f"n{number:08} of WordNet" for number in range(21_843)]
    assert plain_copy({"class_names": names}, "settings") == {"class_names": names}


def test_the_copy_is_a_copy():
    original = {"a": [1, {"b": (2, 3)}]}
    copied = plain_copy(original, "settings")
    original["a"][1]["b"] = "${c}"
    assert copied == {"a": [1, {"b": [2, 3]}]}


# ---------------------------------------------------------------- properties
LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text("ab.${}_", max_size=6)
KEYS = st.sampled_from(["a", "b", "width", "net", "mean", *sorted(LOADERS)])


def containers(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)


TREES = st.recursive(LEAVES, containers, max_leaves=8)
ROADS = st.lists(KEYS | st.integers(0, 2), max_size=5)
FOREIGN_TARGETS = st.sampled_from(FOREIGN) | st.text(max_size=20) | st.from_regex(r"\A[a-z]+(\.[a-zA-Z_]+)+\Z")


def put(tree: Any, road: list[Any], value: Any) -> Any:
    """`tree` with `value` at the end of the road, whose texts are keys and whose numbers are places in lists."""
    if not road:
        return value
    step, rest = road[0], road[1:]
    if isinstance(step, str):
        inner = tree if isinstance(tree, dict) else {}
        return {**inner, step: put(inner.get(step), rest, value)}
    return [*[0] * step, put(None, rest, value), 1]


@settings(PROPERTY, max_examples=60)
@given(part=st.sampled_from(["model", "data"]), tree=TREES, road=ROADS, further=TREES, target=FOREIGN_TARGETS)
def test_a_foreign_name_anywhere_is_refused(part, tree, road, further, target):
    assume(target not in ALLOWED | DATA)
    assume(not target.startswith("torchvision.models.") or target in FOREIGN)
    base = {"_target_": "nsr.models.SmallCNN" if part == "model" else "nsr.data.Digits"}
    within = {**(further if isinstance(further, dict) else {}), "_target_": target}
    own = put({**(tree if isinstance(tree, dict) else {"a": tree}), **base}, road, within)
    refusal(part, own)


OUR_TARGETS = st.sampled_from(sorted(f"nsr.models.{name}" for name in OURS))
NAMES = st.sampled_from(["a", "width", "net", "model_name", "weights", "pretrained", "b", "c", "_args_", "_partial_"])


def calls(inner: Any, names: Any) -> Any:
    """Mappings with a `_target_` beside whatever `inner` draws."""
    own = st.dictionaries(names, inner, max_size=3)
    return st.builds(lambda own, target: {**own, "_target_": target}, own, st.sampled_from(sorted(ALLOWED)))


MIXED = st.recursive(
    LEAVES | st.builds(lambda target: {"_target_": target}, OUR_TARGETS | st.sampled_from(FOREIGN)),
    lambda inner: containers(inner) | calls(inner, KEYS),
    max_leaves=10,
)


@settings(PROPERTY, max_examples=100)
@given(tree=calls(MIXED, NAMES))
def test_hydra_calls_nothing_but_the_list(tree):
    """Whatever is admitted: every name that hydra's own walk then looks up is on the list, its arguments harmless."""
    try:
        safe = admitted("model", tree)
    except InputError:
        return
    called: list[tuple[str, tuple, dict]] = []

    def look_up(name: Any, full_key: str) -> Any:
        return lambda *arguments, **settings: called.append((name, arguments, settings))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_instantiate2, "_resolve_target", look_up)
        instantiate(safe, _convert_="all")
    assert called and called[-1][0] == tree["_target_"]
    for name, arguments, keywords in called:
        assert name in ALLOWED
        assert arguments == ()
        assert not LOADERS & keywords.keys()


def test_nothing_of_theirs_is_imported(tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    (tmp_path / "evil_module.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    import torchvision.models  # noqa: F401

    before = set(sys.modules)
    for target in ("evil_module.Net", "evil_module", "this.s", "turtle.Turtle", "timm.models.create_model"):
        for part in ("model", "data"):
            refusal(part, {"_target_": target})
        refusal("model", {"_target_": "nsr.models.SmallCNN", "width": [{"_target_": target}]})
    admitted("model", {"_target_": "evil_module.Net"}, trusted=["evil_module.Net"])
    admitted("model", {"_target_": "timm.create_model", "model_name": "resnet18"})
    assert set(sys.modules) == before
    assert not trace.exists()
    __import__("evil_module")  # the trace would have been seen
    assert trace.exists()
    del sys.modules["evil_module"]
