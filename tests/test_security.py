"""No code is run from a run folder, a configuration or a file that comes from somebody else."""

import ast
import os
import shutil
import time
from pathlib import Path

import digests
import pytest
import torch
import yaml
from conftest import QUICK, write_photos
from omegaconf import OmegaConf
from synthetic import write_run
from test_conf import FILES

import deephash_cli
from deephash_cli import runs
from deephash_cli.choices import CONF_DIR
from deephash_cli.cli import launch
from deephash_cli.cli import main as cli
from deephash_cli.errors import ConfigError, DataError
from deephash_cli.files import read_sealed, sha256_file
from deephash_cli.training.checkpoints import read_checkpoint
from deephash_cli.training.trust import paths_in, require_no_download, require_trusted

PACKAGE = Path(deephash_cli.__file__).parent
SOURCES = {file.relative_to(PACKAGE).as_posix(): file for file in sorted(PACKAGE.rglob("*.py"))}


# What the source may contain


def calls(file: Path):
    """Yield the dotted name and the keyword arguments of every call in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def imports(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_loaded_or_run_unguarded(name):
    for function, arguments in calls(SOURCES[name]):
        last = function.rsplit(".", 1)[-1]
        if function == "torch.load":
            assert arguments.get("weights_only") == "True", function
            assert name == "models/tensors.py"
        elif function == "np.load":
            assert arguments.get("allow_pickle") == "False", function
            assert name == "npy.py"
        elif last == "extractall":
            assert arguments.get("filter") == "'data'", function
        elif function == "yaml.load":  # as safe as safe_load, but compiled
            assert arguments.get("Loader") == "_ConfigLoader"
            assert issubclass(runs.settings._ConfigLoader, runs.settings._SAFE)
            assert runs.settings._SAFE in (yaml.SafeLoader, yaml.CSafeLoader)
        elif function == "subprocess.Popen":  # takes a list of arguments, never a line for a shell
            assert name in ("processes.py", "commands/sync.py")
        elif last.startswith(("read_index", "deserialize_index")):
            # only after the digest of the index was compared, or right after it was written
            assert name in ("retrieval/indexes/__init__.py", "commands/export/codes/faiss.py")
        elif function == "torch.hub.download_url_to_file":
            assert "hash_prefix" in arguments
        else:
            assert function not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen")
            assert not function.startswith(("pickle.load", "torch.hub", "torch.jit", "subprocess", "joblib", "marshal"))
            assert last not in ("load_from_checkpoint", "unsafe_load", "full_load", "fromfile", "memmap")
        assert "True" not in (arguments.get("allow_pickle"), arguments.get("shell")), function


@pytest.mark.parametrize("name", SOURCES)
def test_modules_that_run_code_are_imported_nowhere_else(name):
    risky = ("pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve", "subprocess", "ctypes", "runpy", "code")
    found = {module for module in imports(SOURCES[name]) if module.split(".")[0] in risky}
    allowed = {
        "data/restricted_pickle.py": {"pickle"},
        "processes.py": {"subprocess"},
        "commands/sync.py": {"subprocess"},
        "commands/serve/memory.py": {"ctypes"},  # calls one function of the C library, malloc_trim
    }
    assert found == allowed.get(name, set())


@pytest.mark.parametrize("name", SOURCES)
def test_there_is_one_binarizer(name):
    """No function that computes a sign is used, because ``sign(0)`` is 0, which is not a bit."""
    for function, _ in calls(SOURCES[name]):
        assert function.rsplit(".", 1)[-1] not in ("sign", "sgn", "sign_"), function


# A run folder from somebody else


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    photos = write_photos(place / "photos")
    settings = ["dataset=image_folder", f"dataset.root={photos}", *QUICK, "bits=8", "trainer.max_epochs=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
        assert cli.run(["train", *settings, f"run_dir={place / 'run'}"]) == 0
    return place / "run"


@pytest.fixture
def poisoned(trained, tmp_path):
    """Return a function that copies the run and adds overrides to its record, as if it had been started with them."""

    def add(*overrides: str) -> Path:
        folder = Path(shutil.copytree(trained, tmp_path / "run"))
        started_with = runs.read_record(folder)["overrides"]
        digests.edit(folder / runs.RECORD, overrides=[*started_with, *overrides], status="interrupted")
        return folder

    return add


def test_an_honest_folder_is_taken_up(deephash, poisoned):
    result = deephash("train", f"resume={poisoned()}", "trainer.max_epochs=2")
    assert result.code == 0, result


def test_what_lightning_would_build_from_a_checkpoint_is_ignored(deephash, trained, tmp_path, monkeypatch):
    """Entries with which Lightning's own loader calls any function (CVE-2026-58659)."""
    called: list[object] = []
    monkeypatch.setattr(os, "system", called.append)
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    file = folder / runs.CHECKPOINTS / "last.ckpt"
    evil = {"_instantiator": "os.system", "_class_path": "os.system", "command": "touch pwned"}
    torch.save({**read_checkpoint(file), **evil, "hyper_parameters": evil, "hparams_type": "os.system"}, file)
    digest = sha256_file(file)
    digests.edit(file.with_name("last.ckpt.json"), sha256=digest, bytes=file.stat().st_size, format=1)
    manifest = folder / runs.CODES_MANIFEST
    origin = read_sealed(manifest)["provenance"]
    digests.edit(manifest, provenance={**origin, "checkpoint": {**origin["checkpoint"], "sha256": digest}})
    digests.renew(folder)
    photos = trained.parent / "photos"
    assert deephash("encode", f"run={folder}", f"input={photos}", "output=codes", "num_workers=0").code == 0
    assert deephash("train", f"resume={folder}", "trainer.max_epochs=2").code == 0
    assert called == []


FOREIGN = [
    "os.system", "subprocess.run", "builtins.exec", "builtins.open", "pathlib.Path.touch", "shutil.copyfile",
    "numpy.load", "joblib.load", "torch.load", "torch.hub.load", "torch.jit.load", "torch.utils.cpp_extension.load",
    "torch.serialization.load", "torch.nn.modules.module.os.system", "torch.os.system", "torch.optim.os.system",
    "deephash_cli.files.write_text", "deephash_cli.data.download.download", "deephash_cli.data.cifar10.fetch",
    "deephash_cli.models.backbones.torch.load", "deephash_cli.models.backbones.torch.hub.load",
    "deephash_cli.training.loggers.time.sleep", "deephash_cli.runs.folder.shutil.rmtree",
    "deephash_cli.data.cifar10.read_pickle", "deephash_cli.training.fit.train",
    "deephash_cli.methods.no_such_method.Mine", "pytorch_lightning.Trainer.test", "hydra.utils.instantiate", "",
]  # fmt: skip


@pytest.mark.parametrize("target", FOREIGN)
def test_a_target_of_elsewhere_is_not_trusted(target):
    for settings in (
        {"_target_": target},
        {"a": {"b": {"_target_": target}}},
        {"a": [{"_target_": "torch.nn.Identity"}, [{"_target_": target}]]},
        {"_target_": "torch.nn.Identity", "_args_": [{"_target_": target}]},
    ):
        with pytest.raises(ConfigError, match=r"the run folder would build .*_target_="):
            require_trusted(settings, also=["mine"])


def targets():
    """Yield the place and the value of every target of the configuration folder, file by file as it is written.

    What is composed of the files has no other targets.
    """
    for file in FILES:
        group = file.relative_to(CONF_DIR).parent.parts
        prefix = "" if not group or file.read_text().startswith("# @package _global_") else f"{group[0]}."
        settings = runs.flatten(OmegaConf.to_container(OmegaConf.load(file), resolve=False))
        for name, value in settings.items():
            place, _, last = f"{prefix}{name}".rpartition(".")
            if last == "_target_" and not name.startswith("hydra."):
                yield place, value


def at(place, node):
    """Return settings with a node at a place."""
    for name in reversed(place.split(".")):
        node = {name: node}
    return node


def test_every_target_of_the_configuration_folder_is_trusted():
    assert len(list(targets())) > 40
    for place, target in targets():
        require_trusted(at(place, {"_target_": target}), also=[])


def test_a_part_of_a_run_is_trusted_in_its_own_place_only():
    loaders = {target for place, target in targets() if place == "dataset.source"}
    models = {target for place, target in targets() if place.startswith("model.")}
    assert min(len(loaders), len(models)) > 4
    places = {place for place, _ in targets()} | {"x", "module.x", "dataset.source.x", "augment.x", "trainer.callbacks"}
    for target in loaders | models:
        for place in places:
            if place.startswith("model.network") if target in models else place == "dataset.source":
                continue
            with pytest.raises(ConfigError, match=rf"would build {place}\._target_=.* belong elsewhere"):
                require_trusted(at(place, {"_target_": target}), also=[])


@pytest.mark.parametrize(
    ("place", "target"),
    [("model.network.backbone", "deephash_cli.models.backbones._download"), ("loss", "torch.nn.functional.mse_loss"),
     ("model.network.backbone", "torch.hub.load"), ("module", "deephash_cli.methods.itq.ITQ.load_from_checkpoint"),
     ("module", "deephash_cli.methods.base.torch.load"), ("optimizer", "torch.optim.os.system"),
     ("logger", "deephash_cli.training.loggers.RecordLogger"), ("augment", "torchvision.transforms.functional.hflip")],
)  # fmt: skip
def test_beside_what_is_trusted_nothing_is(place, target):
    with pytest.raises(ConfigError, match="would build"):
        require_trusted(at(place, {"_target_": target}), also=[])


def test_layers_and_steps_of_images_are_trusted_at_any_depth():
    layers = {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.ReLU"}]}
    require_trusted(at("model.network.backbone", layers), also=[])
    require_trusted(at("augment", {"_target_": "torchvision.transforms.v2.Compose", "transforms": [layers]}), also=[])
    with pytest.raises(ConfigError, match="would build"):  # a download that is not a named argument
        require_trusted(
            at("dataset.source", {"_target_": "deephash_cli.data.cifar10.cifar10", "_args_": ["x", True]}), also=[]
        )


def test_a_refusal_lists_all_that_would_be_built_and_read():
    settings = {
        **at("model.network.backbone", {"_target_": "a.Net", "weights": "/weights.pt"}),
        "dataset": {"source": {"_target_": "b.load", "root": "/photos", "labels": "none"}, "split_file": "/split.json"},
        "loss": {"_target_": "torch.nn.MSELoss", "x": [{"_target_": "a.Other"}]},
    }
    with pytest.raises(ConfigError) as refused:
        require_trusted(settings, also=[])
    assert str(refused.value) == (
        "the run folder would build model.network.backbone._target_=a.Net, dataset.source._target_=b.load, "
        "loss.x.0._target_=a.Other, which deephash does not trust by default (it would read "
        "dataset.split_file=/split.json, dataset.source.root=/photos, model.network.backbone.weights=/weights.pt); if "
        "you trust them, add 'allowed_targets=[a,b]'"
    )
    require_trusted(settings, also=["a", "b"])


def test_what_the_user_trusts_is_trusted():
    require_trusted({"_target_": "mine.methods.Mine"}, also=["mine"])
    with pytest.raises(ConfigError, match=r"add 'allowed_targets=\[mine_too\]'"):
        require_trusted({"_target_": "mine_too.methods.Mine"}, also=["mine"])


def attacks(mark: str) -> dict[str, list[str]]:
    """Overrides of a run folder, by kind of attack; if they were obeyed, they would create a file ``mark``."""
    touch = f"{{_target_:pathlib.Path.touch,_args_:[{{_target_:pathlib.Path,_args_:['{mark}']}}]}}"
    return {
        "instead of the method": ["module._target_=os.system"],
        "instead of the optimizer": ["optimizer._target_=subprocess.Popen"],
        "beside the arguments": [f"+augment.extra={touch}"],
        "in a list": [f"+augment.extra=[1,[{touch}]]"],
        "as positional arguments": [f"+augment._args_=[{touch}]"],
        "by interpolation": ["model.name=os.system", "module._target_=${model.name}"],
        "by interpolation of a node": ["+model.evil={_target_:os.system}", "augment=none", "+augment.x=${model.evil}"],
        "by a module of ours": ["module._target_=deephash_cli.files.os.system"],
        "with a permission of its own": [f"+augment.extra={touch}", "allowed_targets=[pathlib,os]"],
        "in the logger": ["logger=csv", "logger._target_=os.mkdir", "logger._partial_=false", f"+logger.path={mark}"],
    }


@pytest.mark.parametrize("attack", attacks(""))
def test_a_folder_that_would_build_something_foreign_is_refused(deephash, poisoned, tmp_path, attack):
    mark = tmp_path / "mark"
    result = deephash("train", f"resume={poisoned(*attacks(str(mark))[attack])}")
    assert result.code == 2, result
    assert "the run folder would build" in result.err
    assert result.err.count("\n") == 1
    assert not mark.exists()


FORBIDDEN = [
    "+hydra.callbacks.evil={_target_:pathlib.Path.touch,_args_:['MARK']}", "++hydra.run.dir=MARK",
    "hydra.run.dir=MARK", "hydra.sweep.dir=MARK", "hydra.output_subdir=MARK", "hydra.searchpath=[file://MARK]",
    "hydra/launcher=evil", "hydra/job_logging=default", "run_dir=MARK", "resume=none", "group=MARK",
    "hydra.mode=MULTIRUN", "hydra.job.env_set={EVIL:MARK}", "allowed_targets=[os]", "+trainer@hydra.callbacks.x=cpu",
    "~hydra.run", "hydra={a:1}", "+dataset.download=true", "++dataset.source.download=true",
]  # fmt: skip


@pytest.mark.parametrize("override", FORBIDDEN)
def test_what_a_folder_may_not_decide_is_dropped(override):
    assert launch._settings_of(Path("run"), ["seed=1", override, "bits='8'"]) == ["seed=1", "bits='8'"]


def test_a_folder_cannot_configure_anything_but_its_run(deephash, poisoned, tmp_path):
    mark = tmp_path / "mark"
    folder = poisoned(*(override.replace("MARK", str(mark)) for override in FORBIDDEN))
    result = deephash("train", f"resume={folder}", "trainer.max_epochs=2")
    assert result.code == 0, result
    assert not mark.exists()
    assert f"run folder: {folder}" in result.out


@pytest.fixture
def fetched(monkeypatch):
    """Addresses that something tried to download."""
    addresses = []

    def refuse(address, *_, **__):
        addresses.append(address)
        raise DataError("the network is cut")

    monkeypatch.setattr("deephash_cli.data.fashion_mnist.fetch", refuse)
    return addresses


@pytest.mark.parametrize(
    "arguments",
    [("encode", "input={photos}", "output=out"), ("search", "query={photos}/bag/000.jpg"), ("serve", "port=0"),
     ("export", "to=torch_export", "output=out"), ("train", "resume={run}")],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_a_loader_in_the_place_of_a_network_is_not_built(deephash, poisoned, trained, tmp_path, fetched, arguments):
    place = tmp_path / "made"
    loader = "deephash_cli.data.fashion_mnist.fashion_mnist"
    backbone = "model.network.backbone"
    folder = poisoned(f"{backbone}._target_={loader}", f"+{backbone}.root={place}", f"+{backbone}.download=true")
    config = runs.read_config(folder)
    config["model"]["network"]["backbone"] = {"_target_": loader, "root": str(place), "download": True}
    (folder / runs.CONFIG).write_text(yaml.safe_dump(config))
    digests.renew(folder)
    verb, *settings = (word.format(photos=trained.parent / "photos", run=folder) for word in arguments)
    result = deephash(verb, *settings, *([] if verb == "train" else [f"run={folder}"]))
    assert result.code == 2, result
    assert f"would build model.network.backbone._target_={loader}" in result.err
    assert f"model.network.backbone.root={place}" in result.err
    assert result.err.count("\n") == 1
    assert fetched == []
    assert not place.exists()


def test_a_run_folder_does_not_download_but_the_user_may(deephash, poisoned, tmp_path, fetched, monkeypatch):
    monkeypatch.setattr(runs, "forbidden_changes", lambda *_: [])  # its config.yaml has the same settings
    place = tmp_path / "made"
    folder = poisoned("dataset=fashion_mnist", "~dataset.labels", f"dataset.root={place}", "dataset.download=true")
    record = runs.read_record(folder)
    kept = [
        text for text in record["overrides"] if not text.startswith(("dataset=image_folder", "~", "dataset.root=/"))
    ]
    digests.edit(folder / runs.RECORD, overrides=[*kept, f"dataset.root={place}"])
    result = deephash("train", f"resume={folder}")
    assert result.code == 3, result
    assert "set dataset.root=<folder>, or dataset.download=true" in result.err
    assert f"reading dataset.source.root={place}, as {folder} says\n" in result.out
    assert fetched == []
    assert not place.exists()
    assert "the network is cut" in deephash("train", f"resume={folder}", "dataset.download=true").err
    assert len(fetched) == 1
    with pytest.raises(ConfigError, match="would download its data set"):
        require_no_download({"dataset": {"source": {"download": True}, "download": False}})


def test_where_a_folder_has_its_weights_from_is_listed():
    def listed(name):
        backbone = {"_target_": "deephash_cli.models.timm_backbone", "name": name, "weights": "none"}
        return paths_in({"model": {"network": {"backbone": backbone}}})

    assert listed("resnet18") == []
    for name in ("local-dir:/etc", "hf-hub:somebody/network"):
        assert listed(name) == [f"model.network.backbone.name={name}"]


def test_pictures_are_not_downloaded(tmp_path, fetched, capsys):
    from deephash_cli.inference.searcher import Pictures

    source = {
        "_target_": "deephash_cli.data.fashion_mnist.fashion_mnist",
        "root": str(tmp_path / "x"),
        "download": True,
    }
    pictures = Pictures({"dataset": source}, "config.yaml")
    for _ in range(2):
        assert pictures.get("test/00000") is None
    assert fetched == []
    assert not (tmp_path / "x").exists()
    line = f"pictures are read from dataset.source.root={tmp_path / 'x'}, as config.yaml says"
    assert capsys.readouterr().out.splitlines() == [line]


@pytest.mark.parametrize("overrides", ["seed=0", [1], ["seed"], ["x=("], [None], {"a": 1}, None])
def test_a_record_that_was_tampered_with(deephash, poisoned, overrides):
    folder = poisoned()
    digests.put(folder / runs.RECORD, {**runs.read_record(folder), "overrides": overrides})
    result = deephash("train", f"resume={folder}")
    assert result.code == 4, result
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "content",
    ["a: !!python/object/apply:os.system ['touch MARK']\n", "a: !!python/name:os.system\n", "a: !evil x\n", LAUGHS,
     "- a\n", "", "a: {", "\tx", "x" * (2**20 + 1), "a: ${b}\nb: ${a}\n", "\x00", "[" * 500],
    ids=range(12),
)  # fmt: skip
def test_the_configuration_in_a_run_folder_is_data(deephash, poisoned, tmp_path, content):
    folder = poisoned()
    mark = tmp_path / "mark"
    (folder / runs.CONFIG).write_text(content.replace("MARK", str(mark)))
    digests.renew(folder)
    result = deephash("train", f"resume={folder}")
    assert result.code in (2, 4), result
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(LAUGHS, "has YAML aliases"), ("a: 1\na: 2\n", "the key 'a' occurs twice in line 1"),
     ("a: {b: {b: 1, c: 2, b: 3}}\n", "the key 'b' occurs twice"), ("{a: " * 200 + "1" + "}" * 200, "nested deeper"),
     ("x" * (2**20 + 1), "at most 1048576 bytes"), ("- 1\n", "is not the configuration of a run"),
     ("a: [\n", "cannot be read as YAML"), ("a: \ud800".encode("utf-8", "surrogatepass"), "cannot be read")],
    ids=range(8),
)  # fmt: skip
@pytest.mark.parametrize(
    ("verb", "options", "code"), [("runs", (), 0), ("compare", (), 2), ("report", (), 2), ("sync", ("--rebuild",), 4)]
)
def test_every_verb_that_reads_run_folders_refuses_such_a_configuration(
    deephash, monkeypatch, content, reason, verb, options, code
):
    """The refusal takes under a second and is one sentence.

    A few hundred bytes of YAML aliases would otherwise expand to more settings than fit into memory.
    """
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = write_run("runs/evil")
    (folder / runs.CONFIG).write_bytes(content if isinstance(content, bytes) else content.encode())
    for _ in range(2):  # the first command of a process also imports what it needs
        started = time.monotonic()
        result = deephash(verb, "runs", *options)
        if (took := time.monotonic() - started) < 1:
            break
    assert took < 1
    assert result.code == code, result
    assert "runs/evil/config.yaml" in result.err
    assert reason in result.err
    assert "Traceback" not in result.err
    assert all(line.startswith(("error: ", "warning: ")) for line in result.err.splitlines())


@pytest.mark.parametrize(
    "content", ["a: !!python/object/apply:os.system ['touch mark']\n", "a: [", "\tx: 1", "a: 1\na: 2"]
)
def test_a_configuration_of_ones_own_that_is_no_plain_yaml(deephash, content):
    Path("mine/method").mkdir(parents=True)
    Path("mine/method/mine.yaml").write_text(f"# @package _global_\n{content}")
    result = deephash("train", "--config-dir", "mine", "method=mine")
    assert result.code == 2, result
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert not Path("mark").exists()
