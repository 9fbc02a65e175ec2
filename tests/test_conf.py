"""The configuration folder: every choice composes, every target exists and takes what the YAML gives it."""

import functools
import inspect

import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from deephash_cli import choices
from deephash_cli.cli import arguments, checking, limits, verbs
from deephash_cli.runs import flatten

GROUPS = choices.group_names()
LOSSES = set(choices.choices("loss")) - {"none"}
# A loss is composed with the method of its name.
CHOICES = [
    (group, choice) for group in GROUPS for choice in choices.choices(group) if choice not in LOSSES or group != "loss"
]
FILES = sorted(choices.CONF_DIR.rglob("*.yaml"))


@functools.cache
def compose(*overrides: str) -> DictConfig:
    return checking.check("train", [arguments.normalize(override) for override in overrides], None, multirun=False)


def chosen(group: str, choice: str) -> DictConfig:
    """Compose a choice with a method and a model that use it; anything else is refused."""
    if choice == "none":
        users = {"loss": ["method=itq"], "optimizer": ["method=itq"]}
    else:
        users = {"augment": ["model.frozen=false"]}
    users["scheduler"] = users.get("optimizer", [])
    return compose(f"{group}={choice}", *users.get(group, []))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group, choice):
    config = chosen(group, choice)
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert container["bits"] == (int(choice) if group == "bits" else 48)
    if group == "method":
        assert config.method == choice
        loss = container["loss"]
        assert (loss is not None) == (choice in LOSSES)
        if loss is not None:
            assert loss == OmegaConf.load(choices.CONF_DIR / "loss" / f"{choice}.yaml")
    if group == "dataset":
        assert config.dataset.name == choice
    if group not in ("bits", "experiment"):
        require_targets(config)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(choices.CONF_DIR).as_posix())
def test_a_package_line_stands_first(file):
    """Anywhere else Hydra silently takes it for a comment."""
    lines = file.read_text().splitlines()
    found = [number for number, line in enumerate(lines) if "@package" in line]
    assert found in ([], [0])
    if file.parent.name in ("method", "bits", "trainer", "experiment"):
        assert lines[0] == "# @package _global_"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(choices.CONF_DIR).as_posix())
def test_files_are_plain_text_of_bounded_width(file):
    text = file.read_text(encoding="ascii")
    assert text.endswith("\n")
    assert "\t" not in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def targets(node, name=""):
    """Every node that names a target, with its place."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield name, node
        for key, child in node.items():
            yield from targets(child, f"{name}.{key}" if name else key)
    elif isinstance(node, list):
        for key, child in enumerate(node):
            yield from targets(child, f"{name}[{key}]")


def given_by_the_program(name: str) -> set[str]:
    """Arguments that are no settings: ``building.build`` adds them."""
    logger = {"run_dir", "identity", "group", "config"}
    module = {"network", "loss", "optimizer", "scheduler", "backbone_lr", "augment", "train_labels", "seed"}
    trainer = {"logger", "callbacks", "plugins", "default_root_dir", "check_val_every_n_epoch"}
    optimizer, scheduler = {"params"}, {"optimizer", "total_steps"}
    table = {"logger": logger, "module": module, "trainer": trainer, "optimizer": optimizer, "scheduler": scheduler}
    return {"bits"} if name == "model.network" else table.get(name, set())


# Arguments that runs of earlier versions do not have: their defaults do what these versions did.
SINCE = {
    "deephash_cli.models.HashingNetwork": {
        "crop": 1.0, "crop_mode": "square", "interpolation": "bilinear", "output_norm": False,
    },
    "deephash_cli.data.augment.CropColour": {"grey": 0.0},
    **{f"deephash_cli.methods.{name}Loss": {"balanced": False} for name in ("dhn.DHN", "dpsh.DPSH", "dsdh.DSDH")},
    "deephash_cli.methods.lfh_deep.LFHDeepLoss": {"balanced": False},
    "deephash_cli.models.timm_backbone": {
        "image_size": None, "dynamic_img_size": False, "global_pool": None, "arguments": None,
    },
}  # fmt: skip


def require_targets(config: DictConfig) -> None:
    """No key that the target does not know, and none missing that has no default: YAML owns the hyperparameters.

    So a part of this package has no second default of its own.
    """
    found = list(targets(OmegaConf.to_container(config, resolve=True)))
    assert found
    for name, node in found:
        target = get_object(node["_target_"])
        assert callable(target), name
        keys = {key for key in node if not key.startswith("_")}
        parameters = inspect.signature(target).parameters
        for base in getattr(target, "__mro__", ())[1:]:  # a method's **settings are its base class's
            if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                parameters = {**inspect.signature(base.__init__).parameters, **parameters}
                break
        named = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        assert keys <= named, f"{name}: {node['_target_']} has no {keys - named}"
        needed = {n for n in named if parameters[n].default is inspect.Parameter.empty}
        missing = needed - keys - given_by_the_program(name)
        assert not missing, f"{name}: {node['_target_']} also needs {missing}"
        assert not keys & given_by_the_program(name), name
        if node["_target_"].startswith("deephash_cli."):
            own = inspect.signature(target).parameters.items()
            defaults = {n: p.default for n, p in own if p.default is not inspect.Parameter.empty}
            assert defaults == SINCE.get(node["_target_"], {}), name


def test_every_range_belongs_to_a_setting():
    """A range for a key that was renamed would guard nothing."""
    absent = object()
    configs = [
        chosen(group, choice) for group, choice in CHOICES if group in ("dataset", "method", "optimizer", "model")
    ]
    configs += [checking.check(verb, [], None, multirun=False) for verb in verbs.names() if verbs.is_composed(verb)]
    for key in [*limits.RANGES, *limits.LISTS, *limits.TEXTS, *limits.WORDS]:
        assert any(OmegaConf.select(config, key, default=absent) is not absent for config in configs), key


def test_the_defaults_lie_within_their_ranges_and_are_whole_numbers_or_fractions():
    config = compose()
    for key in limits.RANGES:
        value = OmegaConf.select(config, key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        assert value is None or is_number or (key in limits.AUTOMATIC and value == "auto"), key


def test_the_configuration_of_eval():
    config = dict(checking.check("eval", [], None, multirun=False))
    assert config.pop("metrics") == compose().metrics  # the same defaults as those of train
    assert (config.pop("bit_order"), config.pop("byte_type")) == ("little", "uint8")
    assert config.pop("overwrite") is False
    assert config.pop("prefix") is False
    assert config.pop("per_class") is False
    files = ("query", "database", "query_labels", "database_labels")
    keys = ("run", "codes", *files, "code_bits", "bits", "output", "ks", "map_at", "radius", "zero_hits", "similar")
    assert config == dict.fromkeys(keys)


def test_a_method_brings_its_loss_and_optimizer_and_the_command_line_wins():
    assert compose("optimizer=sgd").optimizer._target_ == "torch.optim.SGD"
    assert compose("method=dpsh").loss._target_.endswith("DPSHLoss")
    assert compose("method=dpsh", "optimizer=rmsprop").optimizer._target_ == "torch.optim.RMSprop"


def test_every_method_has_a_file_of_its_name():
    package = choices.PACKAGE / "methods"
    for choice in choices.choices("method"):
        target = compose(f"method={choice}").module._target_
        module, name = target.rsplit(".", 1)
        file = module.rsplit(".", 1)[1]
        assert name.lower() == file.replace("_", "")
        assert file == choice
        assert (package / f"{file}.py").is_file()


def test_the_output_folder_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("DEEPHASH_OUTPUT_DIR", "elsewhere")
    assert checking.check("train", [], None, multirun=False).runs == "elsewhere"
    assert checking.check("train", ["runs=here"], None, multirun=False).runs == "here"


def test_experiments_differ_from_the_default_and_keep_to_known_keys():
    default = flatten(OmegaConf.to_container(compose(), resolve=True))
    for choice in choices.choices("experiment"):
        assert flatten(OmegaConf.to_container(compose(f"experiment={choice}"), resolve=True)) != default


@pytest.mark.parametrize("group", ["model", "dataset"])
def test_a_choice_says_only_what_differs_from_what_all_have(group):
    """Then a new setting of networks or data sets is written once."""

    def settings(file):
        content = OmegaConf.load(file)
        return flatten(OmegaConf.to_container(content.get(group) or content, resolve=False))

    files = [file for file in sorted((choices.CONF_DIR / group).glob("*.yaml")) if file.stem != "_base"]
    base = settings(choices.CONF_DIR / group / "_base.yaml")
    assert len(files) > 5
    for file in files:
        repeated = [key for key, value in settings(file).items() if key in base and base[key] == value != "???"]
        assert not repeated, file
