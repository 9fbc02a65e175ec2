"""The command line: help, verbs, exit codes, and every kind of mistake in typing."""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import METHODS, QUICK, TINY, sampled
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deephash_cli import __version__, choices
from deephash_cli.cli import arguments, checking, launch, verbs
from deephash_cli.cli import main as cli
from deephash_cli.cli.document import document
from deephash_cli.errors import ConfigError

HEAVY = ("torch", "hydra", "numpy", "omegaconf", "rich", "wandb")


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    """Restore the logging handlers: Hydra's --info adds one for the standard output of a single test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def python(code: str, before: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter, in the current folder."""
    return subprocess.run(
        [*before, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def refused(result, code=2) -> str:
    """Return the error of a refused command; check that it is one line without a traceback, and that no run exists."""
    assert result.code == code, result
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1, result.err
    assert result.err.endswith("\n")
    assert not any(Path("runs").glob("**/run.json"))
    return result.err


# Help


def test_the_page_of_all_commands_is_up_to_date():
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    assert page == document(), "write docs/commands.md again with `make docs`"


def test_without_arguments_it_says_what_there_is(deephash):
    result = deephash()
    assert result.code == 0
    for verb in verbs.names():
        assert f"\n  {verb:9}{verbs.summary(verb)}\n" in result.out
    assert sum(line.startswith("  deephash ") for line in result.out.splitlines()) == len(cli.EXAMPLES.splitlines())
    assert result == deephash("--help") == deephash("-h") == deephash("help")


def test_the_help_of_train_lists_every_group_and_choice(deephash):
    result = deephash("train", "--help")
    assert result.code == 0
    lines = {line.split()[0]: line for line in result.out.splitlines() if line.startswith("  ")}
    for group in (folder.name for folder in choices.CONF_DIR.iterdir() if folder.is_dir()):
        for file in (choices.CONF_DIR / group).glob("*.yaml"):
            listed = file.stem in lines[group].replace(",", " ").split()
            assert listed != file.stem.startswith("_"), file


def test_the_help_of_eval_lists_its_settings(deephash):
    result = deephash("eval", "-h")
    assert result.code == 0
    for key in ("run", "codes", "output", "ks", "map_at", "radius"):
        assert f"\n  {key}=" in result.out


@pytest.mark.parametrize("verb", [verb for verb in verbs.names() if verbs.is_composed(verb)])
def test_the_settings_in_the_help_exist(deephash, verb):
    """The help is written by hand, so it could become outdated."""
    from omegaconf import OmegaConf

    choices = [["dataset=image_folder"], ["dataset=coco"]] if verb == "train" else [[]]  # no data set has all settings
    configs = [checking.check(verb, choice, None, multirun=False) for choice in choices]
    text = cli.verb_help(verb).split("settings" if verb == "train" else "Settings:")[1].split("Examples")[0]
    keys = [line.split("=")[0].strip() for line in text.splitlines() if "=" in line and line.startswith("  ")]
    assert len(keys) >= 3
    for key in keys:
        missing = object()
        found = [OmegaConf.select(config, key, default=missing) for config in configs]
        assert any(value is not missing for value in found), key


def test_every_example_in_the_help_is_a_command_that_is_understood():
    texts = [cli.EXAMPLES, *(verbs.help_text(verb).split("Examples:")[1] for verb in verbs.names())]
    for line in "\n".join(texts).splitlines():
        if not line.strip() or line.strip() == "{examples}":
            continue
        command = line.strip().split("   ")[0].split("| xargs -P 4 -I{} ")[-1].replace("{}", "0").split()
        assert command[:1] == ["deephash"]
        verb, rest = command[1], [arguments.normalize(argument, command[1]) for argument in command[2:]]
        if not verbs.is_composed(verb):
            assert arguments.parse(verb, rest)
            continue
        parsed = launch.parse_options(verb, rest)
        overrides, _ = launch.take_datasets(verb, [text for text in parsed.overrides if "<" not in text], None)
        checking.check(verb, overrides, None, multirun=bool(parsed.multirun))


def test_help_and_versions_import_nothing_heavy():
    """Help takes a tenth of a second; with heavy imports it would take eight."""
    code = f"""
import sys
from deephash_cli.cli import main as cli
for arguments in ([], ["train", "--help"], ["eval", "--help"], ["--version"], ["tran"], ["-sc", "query=bash"]):
    cli.run(arguments)
print("heavy:", [name for name in {HEAVY} if name in sys.modules])
"""
    result = python(code, COMP_LINE="deephash t")
    assert result.stdout.endswith("heavy: []\n"), result


def test_version(deephash):
    result = deephash("--version")
    assert result.code == 0
    assert result.out.startswith(f"deephash {__version__} (torch ")
    assert deephash("train", "--version") == result


@pytest.mark.parametrize(("typed", "hint"), [("tran", "train"), ("evall", "eval"), ("xyz", None), ("-m", None)])
def test_unknown_verb(deephash, typed, hint):
    message = refused(deephash(typed))
    assert repr(typed) in message
    assert f"verbs: {', '.join(verbs.names())}" in message
    assert (f"did you mean {hint!r}?" in message) == (hint is not None)


def test_help_into_a_pipe_that_closes_ends_quietly():
    code = "import sys; from deephash_cli.cli.main import main; sys.argv = ['deephash', 'train', '--help']; main()"
    command = f'"{sys.executable}" -c "{code}" | head -1'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert result.stdout.startswith("deephash train")
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


# Completion


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("deephash ", " ".join(verbs.names())),
        ("deephash t", "train"),
        ("deephash ev", "eval"),
        ("deephash x", ""),
        ("deephash methods it", "itq"),
        ("deephash data a", "audit"),
        ("deephash data audit fashion_mi", "fashion_mini"),
    ],
)
def test_completion_of_verbs(deephash, monkeypatch, line, answer):
    monkeypatch.setenv("COMP_LINE", line)
    result = deephash("-sc", "query=bash")
    assert (result.code, result.out.split()) == (0, answer.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("deephash train bits=", {"bits=12", "bits=48", "bits=256"}),
        ("deephash train method=dp", {"method=dpsh"}),
        ("deephash train optimizer.l", {"optimizer.lr="}),
    ],
)
def test_completion_of_settings(deephash, monkeypatch, line, expected):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    result = deephash("-sc", "query=bash")
    assert result.code == 0
    assert expected <= set(result.out.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_installed(deephash, shell):
    result = deephash("-sc", f"install={shell}")
    assert result.code == 0
    assert result.out.strip()


# What is typed


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("bits=48", "bits='48'"),
        ("bits=12,24", "bits='12','24'"),
        ("bits=12,abc", "bits='12',abc"),
        ("bits=-8", "bits='-8'"),
        ("bits=1.5", "bits='1.5'"),
        ("bits='48'", "bits='48'"),
        ("bits='12','24'", "bits='12','24'"),
        ("bits=abc", "bits=abc"),
        ("bits=", "bits="),
        ("bits=[12]", "bits=[12]"),
        ("bits=choice(12,24)", "bits=choice(12,24)"),
        ("+bits=48", "+bits=48"),
        ("seed=48", "seed=48"),
        ("bitsize=48", "bitsize=48"),
        ("model.bits=48", "model.bits=48"),
        ("bits", "bits"),
        ("", ""),
    ],
)
def test_quote_bits(typed, meant):
    assert arguments.quote_bits(typed) == meant
    assert arguments.quote_bits(meant) == meant


def test_a_plus_before_a_group_is_no_mistake():
    assert arguments.normalize("+experiment=fashion_small_cnn") == "experiment=fashion_small_cnn"
    assert arguments.normalize("+bits=12") == "bits='12'"
    assert arguments.normalize("+trainer.fast_dev_run=true") == "+trainer.fast_dev_run=true"
    assert arguments.normalize("+experiment") == "+experiment"


def test_an_experiment_with_and_without_plus(deephash):
    one, other = (deephash("train", f"{plus}experiment=fashion_small_cnn", "--cfg", "job") for plus in ("", "+"))
    assert one == other
    assert "name: small_cnn" in one.out


def test_cfg_prints_the_configuration_with_the_changes(deephash):
    result = deephash("train", "bits=24", "optimizer.lr=0.5", "--cfg", "job", "seed=7")
    assert (result.code, result.err) == (0, "")
    assert {"bits: 24", "seed: 7", "method: dpsh", "  lr: 0.5"} <= set(result.out.splitlines())
    assert list(Path().iterdir()) == []


def test_info_shows_the_defaults(deephash):
    result = deephash("train", "--info", "defaults")
    assert result.code == 0
    assert "method/dpsh" in result.out


def test_hydras_options_may_stand_anywhere(deephash):
    Path("mine/bits").mkdir(parents=True)
    Path("mine/bits/20.yaml").write_text("# @package _global_\nbits: 20\n")
    for typed in (
        ("--config-dir", "mine", "bits=20", "--cfg", "job"),
        ("bits=20", "--cfg", "job", "--config-dir=mine"),
        ("bits=20", "--config-dir", "mine", "seed=0", "--cfg", "job"),
    ):
        result = deephash("train", *typed)
        assert result.code == 0, result
        assert "bits: 20\n" in result.out


@pytest.mark.parametrize("bits", [1, 20, 257, 4096])
def test_any_code_length_works_without_a_file(deephash, bits):
    assert checking.check("train", [f"bits='{bits}'"], None, multirun=False).bits == bits
    result = deephash("train", f"bits={bits}", "--cfg", "job")
    assert (result.code, result.err) == (0, "")
    assert f"bits: {bits}\n" in result.out


def test_a_code_length_may_stand_in_a_file_of_ones_own(deephash):
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/odd.yaml").write_text('# @package _global_\ndefaults:\n  - override /bits: "21"\n')
    assert checking.check("train", ["experiment=odd"], "mine", multirun=False).bits == 21
    Path("mine/bits").mkdir()
    Path("mine/bits/20.yaml").write_text("# @package _global_\nbits: 20\nseed: 7\n")  # takes precedence
    assert checking.check("train", ["bits='20'"], "mine", multirun=False).seed == 7
    Path("mine/bits/0.yaml").write_text("# @package _global_\nbits: 0\n")
    assert "bits must be a whole number, from 1 to 4096, got 0" in refused(
        deephash("train", "--config-dir", "mine", "bits=0")
    )


@pytest.mark.parametrize(("typed", "got"), [("5000", "5000"), ("020", "020"), ("", "no value"), ("[20]", "[20]")])
def test_what_is_no_code_length_is_refused(deephash, typed, got):
    assert f"bits must be a whole number from 1 to 4096, got {got}" in refused(deephash("train", f"bits={typed}"))
    if typed.isdecimal():
        assert f"4096, got {got}" in refused(deephash("train", "-m", f"bits=20,{typed}"))


REFUSED = {
    "a misspelt key": (["bitz=48"], "unknown key 'bitz'; did you mean 'bits'?"),
    "a misspelt choice": (["method=dpshh"], "method has no choice 'dpshh'; did you mean 'dpsh'?"),
    "a choice that is a path": (["dataset=/etc/passwd"], "dataset has no choice"),
    "a part of others": (["model=_torchvision"], "name"),
    "bits: text": (["bits=abc"], "bits must be a whole number from 1 to 4096, got abc"),
    "bits: zero": (["bits=0"], "from 1 to 4096, got 0"),
    "bits: negative": (["bits=-8"], "got -8"),
    "bits: fraction": (["bits=1.5"], "got 1.5"),
    "bits: huge": (["bits=1000000000"], "got 1000000000"),
    "bits: nothing": (["bits="], "bits must be"),
    "bits: null": (["bits=null"], "got null"),
    "bits: boolean": (["bits=true"], "got true"),
    "bits: list": (["bits=[12]"], "got [12]"),
    "bits: unfinished": (["bits=x("], "could not read 'bits=x('"),
    "bits: sweep without -m": (["bits=12,24"], "add -m"),
    "seed: text": (["seed=abc"], "seed must be a whole number (such as 0), got 'abc'"),
    "seed: negative": (["seed=-1"], "seed must be a whole number, from 0 to 2147483647, got -1"),
    "seed: fraction": (["seed=1.5"], "seed must be a whole number"),
    "seed: boolean": (["seed=true"], "seed must be a whole number"),
    "seed: null": (["seed=null"], "seed must not be empty"),
    "seed: removed": (["~seed"], "seed cannot be removed"),
    "group removed": (["~trainer"], "trainer cannot be left out"),
    "epochs: zero": (["trainer.max_epochs=0"], "trainer.max_epochs must be a whole number, at least 1, got 0"),
    "epochs: text": (["trainer.max_epochs=x"], "trainer.max_epochs must be a whole number (such as 30), got 'x'"),
    "epochs: boolean": (["trainer.max_epochs=true"], "trainer.max_epochs must be a whole number"),
    "a number instead of settings": (["loader=1"], "loader must be a group of settings"),
    "a flag that is a number": (["model.frozen=3"], "model.frozen must be true or false (such as True), got 3"),
    "a rate below zero": (["optimizer.lr=-1"], "optimizer.lr must be a number, at least 0, got -1"),
    "a rate that is none": (["optimizer.lr=nan"], "optimizer.lr must be a number, at least 0, got nan"),
    "a weight that is none": (["method=lfh", "module.beta=nan"], "module.beta must be a finite number, got nan"),
    "an infinite weight": (
        ["loss.quantization_weight=inf"],
        "loss.quantization_weight must be a finite number, got inf",
    ),
    "a number too large": (["method=sdh", "module.sigma=1e400"], "module.sigma must be a finite number, got inf"),
    "a rate that is text": (["optimizer.lr=fast"], "optimizer.lr must be a number (such as 0.001), got 'fast'"),
    "batches of one": (["loader.batch_size=1"], "loader.batch_size must be a whole number, at least 2, got 1"),
    "workers: text": (["loader.num_workers=many"], "num_workers must be auto or a whole number, at least 0, got many"),
    "workers: fraction": (["loader.num_workers=1.5"], "must be auto or a whole number, at least 0, got 1.5"),
    "workers: null": (["loader.num_workers=null"], "loader.num_workers must not be empty: its default is auto"),
    "rank zero": (["metrics.ks=[1,0]"], "metrics.ks must be a list of whole numbers, at least 1"),
    "rank negative": (["metrics.ks=[-5]"], "metrics.ks must be a list of whole numbers, at least 1"),
    "ranks that are no list": (["metrics.ks=5"], "metrics.ks must be a list"),
    "R zero": (["dataset.map_at=[0]"], "dataset.map_at must be a list of whole numbers, at least 1"),
    "precision that is not tried": (
        ["trainer.precision=bf16-true"],
        "trainer.precision must be 32-true or bf16-mixed or 16-mixed, got bf16-true",
    ),
    "radius negative": (["metrics.radius=-1"], "metrics.radius must be a whole number, at least 0, got -1"),
    "a group that leads elsewhere": (["group=../x"], "group must be a name that a folder can have"),
    "no protocol": (["dataset.protocol=null"], "dataset.protocol must not be empty"),
    "no ranks": (["metrics.ks=null"], "metrics.ks must not be empty"),
    "no class to build": (["~trainer._target_"], "trainer._target_ must not be empty"),
    "no batch": (["trainer.limit_train_batches=0"], "got 0: nothing would be trained"),
    "more than all batches": (["trainer.limit_train_batches=1.5"], "or a share above 0 and up to 1.0, got 1.5"),
    "no time": (["trainer.max_time=00:00:00:00"], "trainer.max_time must be a time above zero"),
    "a time that is a number": (["trainer.max_time=0"], "such as 00:01:30:00, got 0"),
    "no steps": (["+trainer.max_steps=0"], "trainer.max_steps must be a whole number, at least 1, or -1 for no limit"),
    "no devices": (["trainer.devices=0"], "trainer.devices must be a whole number, at least 1, or -1 for all devices"),
    "batches to accumulate": (["+trainer.accumulate_grad_batches=0"], "at least 1, got 0"),
    "clipping below zero": (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val must be a number, at least 0"),
    "an accelerator that is none": (["trainer.accelerator=tpu"], "trainer.accelerator must be auto or cpu or gpu or"),
    "a strategy that is none": (["trainer.strategy=fsdp"], "trainer.strategy must be auto or ddp or"),
    "validation by Lightning": (["+trainer.limit_val_batches=0"], "decided by deephash: use validation.queries="),
    "validation within an epoch": (["+trainer.val_check_interval=2"], "use validation.every_n_epochs="),
    "Lightning's trial run": (["+trainer.fast_dev_run=true"], "decided by deephash: use trainer=debug"),
    "Hydra's folder": (["hydra.run.dir=x"], "hydra.run.dir cannot be set: the run folder is run_dir=<folder>"),
    "Hydra's change of folder": (["hydra.job.chdir=true"], "hydra.job.chdir cannot be set"),
    "Hydra's own output": (["hydra.output_subdir=x"], "hydra.output_subdir cannot be set"),
    "Hydra's name": (["hydra.job.name=x"], "hydra.job.name cannot be set"),
    "Hydra's sweep folder": (["-m", "seed=0,1", "hydra.sweep.dir=x"], "makes its run folders in runs=<folder>"),
    "Hydra's mode": (["hydra.mode=MULTIRUN"], "hydra.mode cannot be set: -m runs a sweep"),
    "a launcher that is not there": (["-m", "hydra/launcher=joblib"], "pip install hydra-joblib-launcher"),
    "a launcher for Slurm": (["-m", "hydra/launcher=submitit_slurm"], "pip install hydra-submitit-launcher"),
    "a sweeper that is not there": (["-m", "hydra/sweeper=ax"], "pip install hydra-ax-sweeper"),
    "a launcher that is none": (
        ["-m", "hydra/launcher=jobib"],
        "did you mean 'joblib'?; the choices are: basic",
    ),
    "a launcher without a sweep": (["hydra/launcher=basic"], "has an effect in a sweep only: add -m"),
    "a search without a sweep": (["tune=rates"], "has an effect in a sweep only: add -m"),
    "unknown below a group": (["optimizer.lrr=1"], "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
    "unknown deep below": (["trainer.foo.bar=1"], "unknown key"),
    "unknown, added by force": (["+foo=1"], "unknown key 'foo'"),
    "no value": (["bits"], "could not read 'bits'"),
    "no key": (["=3"], "could not read '=3'"),
    "interpolation to nothing": (["seed=${foo}"], "foo"),
    "environment without it": (["seed=${oc.env:NO_SUCH_VARIABLE}"], "NO_SUCH_VARIABLE"),
    "a protocol that is none": (["model=small_cnn", "dataset.protocol=s3"], "did you mean s2?"),
    "resume nothing": (["resume=nonsense"], "resume must be auto, none or a run folder, got 'nonsense'"),
    "resume empty": (["resume="], "resume must be auto, none or a run folder"),
    "unknown option": (["--foo"], "unrecognized arguments: --foo"),
    "another configuration": (["--config-name", "eval"], "deephash has no --config-name"),
    "another configuration folder": (["--config-path", "/tmp"], "deephash has no --config-path"),
    "a pickled run": (["--experimental-rerun", "x"], "deephash has no --experimental-rerun"),
    "no such folder": (["--config-dir", "nowhere"], "--config-dir nowhere is not a folder"),
    "run of a sweep": (["-m", "--run"], "leave out -m"),
    "one bad value of a sweep": (["-m", "seed=0,1,-1"], "got -1"),
    "one bad length of a sweep": (["-m", "bits=12,abc"], "got abc"),
    "a range of lengths": (["-m", "bits=range(1,3)"], "got range(1,3)"),
    "a choice somewhere else": (["+trainer@seed=cpu"], "leave out @seed"),
}


@pytest.mark.parametrize("case", sampled(REFUSED, 3))
def test_what_cannot_work_is_refused_in_one_sentence(deephash, case):
    arguments, sentence = REFUSED[case]
    assert sentence in refused(deephash("train", *arguments))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "needs run=<run folder> or codes=<codes folder>"),
        (["run=a", "codes=b"], "only one of the two"),
        (["-m", "run=a"], "deephash eval has no sweeps"),
        (["run=a", "ks=[0]"], "ks must be a list of whole numbers"),
        (["run=a", "ks=5"], "ks must be a list of whole numbers"),
        (["run=a", "radius=-1"], "radius must be a whole number, at least 0, got -1"),
        (["run=a", "radius=x"], "radius must be a whole number"),
        (["rum=a"], "unknown key 'rum'; did you mean 'run'?"),
        (["run=a", "radius=1.5"], "radius must be a whole number, at least 0, got 1.5"),
        (
            ["dataset=cifar10"],
            "unknown key 'dataset'; did you mean 'database'?; the keys are: bit_order, bits, byte_type, codes,",
        ),
    ],
)
def test_what_eval_refuses(deephash, arguments, sentence):
    assert sentence in refused(deephash("eval", *arguments))


def test_a_sweep_does_not_take_up_one_folder(deephash):
    Path("somewhere").mkdir()
    assert "resume=auto or resume=none with -m" in refused(deephash("train", "-m", "resume=somewhere"))


def test_unknown_arguments_of_a_part_leave_no_folder(deephash, photos):
    assert "unknown key 'trainer.foo'" in refused(deephash("train", *photos, "+trainer.foo=1"))
    assert "did you mean 'max_steps'?" in refused(deephash("train", *photos, "+trainer.max_step=1"))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("trainer.devices=99", "trainer.devices=99 is more than the "),
        ("trainer.num_nodes=2", "trainer.num_nodes=2 needs torchrun on every machine"),
        ("+trainer.gradient_clip_algorithm=foo", "trainer: `gradient_clip_algorithm` foo is invalid"),
        ("trainer._target_=os.system", "blocklisted"),
        pytest.param(
            "trainer=gpu",
            "trainer.accelerator=gpu finds no such device on this machine: use trainer=auto",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_trainer_that_cannot_be_built_is_refused_before_anything_is_computed(deephash, photos, setting, sentence):
    assert sentence in refused(deephash("train", *photos, setting))
    assert not list(Path().glob("runs/*"))


def test_a_share_of_the_batches_that_is_less_than_one(deephash, photos):
    message = refused(deephash("train", *photos, "trainer.limit_train_batches=0.1"))
    assert "trainer.limit_train_batches=0.1 of 1 batches is less than one batch, so nothing would be trained" in message


def test_the_last_step_is_saved_even_if_an_epoch_is_cut_short(deephash, photos):
    """Checkpoints are rare, and ``max_steps`` ends the training in the middle of an epoch."""
    steps = ("loader.batch_size=8", "+trainer.max_steps=9", "checkpoint.every_seconds=600", "trainer.max_epochs=5")
    assert deephash("train", *photos, "bits=8", "gallery=false", "run_dir=run", *steps).code == 0
    from deephash_cli.training.checkpoints import read_checkpoint

    assert read_checkpoint(Path("run/checkpoints/last.ckpt"))["global_step"] == 9


def test_hydras_folders_in_a_file_of_ones_own_are_refused(deephash):
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/odd.yaml").write_text("# @package _global_\nhydra:\n  run:\n    dir: elsewhere\n")
    assert "hydra.run.dir cannot be set" in refused(deephash("train", "--config-dir", "mine", "experiment=odd"))
    assert "deephash eval makes no folder of Hydra's" in refused(deephash("eval", "run=a", "hydra.run.dir=x"))


def test_text_that_yaml_reads_as_a_number_is_refused(deephash):
    Path("mine/experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /dataset: image_folder\ndataset:\n  root: 2024\n"
    Path("mine/experiment/odd.yaml").write_text(text)
    message = refused(deephash("train", "--config-dir", "mine", "experiment=odd"))
    assert "dataset.root must be text, got 2024: in a file, put the value in quotes" in message


@pytest.mark.parametrize("option", ["-m", "--multirun"])
def test_cfg_of_a_sweep_prints_the_first_job(deephash, option):
    result = deephash("train", option, "bits=12,24", "seed=range(3,5)", "--cfg", "job")
    assert (result.code, result.err) == (0, "")
    assert {"bits: 12", "seed: 3"} <= set(result.out.splitlines())
    assert "train" in deephash("train", option, "bits=12,24", "--info", "defaults").out


@pytest.mark.parametrize("arguments", [["bits=abc"], ["trainer.max_epochs=0"]])
def test_torch_is_not_imported_to_refuse_a_command(arguments):
    code = f"""
import sys
from deephash_cli.cli import main as cli
print(cli.run(["train", *{arguments!r}]), "torch" in sys.modules)
"""
    result = python(code)
    assert result.stdout == "2 False\n", result
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_missing_data_are_named_with_the_places_and_the_remedy(deephash):
    message = refused(deephash("train", "dataset=cifar10", *QUICK), code=3)
    assert "data/cifar10" in message
    assert os.environ["DEEPHASH_CACHE_DIR"] in message
    assert "dataset.download=true" in message
    assert "dataset.root=<folder>" in message


def test_a_folder_that_is_not_there(deephash):
    message = refused(deephash("train", "dataset=image_folder", "dataset.root=nowhere", *QUICK), code=3)
    assert "dataset.root=nowhere is not a folder" in message


def test_a_run_folder_that_holds_something(deephash, photos):
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("years of work")
    message = refused(deephash("train", *photos, "run_dir=full"))
    assert "run_dir=full is not empty" in message
    assert [file.name for file in Path("full").iterdir()] == ["thesis.tex"]


def test_a_run_folder_that_is_a_file(deephash, photos):
    Path("file").write_text("")
    refused(deephash("train", *photos, "run_dir=file"))
    refused(deephash("train", *photos, "runs=file"))
    refused(deephash("train", "-m", *photos, "runs=file", "seed=0,1"))


def test_a_read_only_folder_is_refused_before_any_work(photos, tmp_path):
    """Root may write anywhere, so a test that runs as root first gives up this right."""
    place = tmp_path / "locked"
    place.mkdir(mode=0o555)
    code = f"""
from deephash_cli.cli import main as cli
print(cli.run(["train", *{photos!r}, "runs={place}/runs"]))
print(cli.run(["train", *{photos!r}, "run_dir={place}/run"]))
print(cli.run(["train", "-m", "seed=0,1", *{photos!r}, "runs={place}/runs"]))
"""
    drop = []
    if os.getuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root without setpriv cannot give up its right to write anywhere")
        drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    result = python(code, drop)
    assert result.stdout == "2\n2\n2\n", result
    assert "Traceback" not in result.stderr
    assert result.stderr.count("is read-only; set runs=<folder> or run_dir=<folder>\n") == 3
    assert list(place.iterdir()) == []


def test_a_bug_keeps_its_traceback(deephash, photos, monkeypatch):

    def broken(*_, **__):
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr("deephash_cli.training.datasets.divide", broken)
    result = deephash("train", *photos)
    assert result.code == 1
    assert "Traceback" in result.err
    assert "ZeroDivisionError: nobody thought of this" in result.err


def test_ctrl_c_between_the_lines(deephash, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "print_help", interrupted)
    assert deephash().code == 130


def test_signal_handlers_are_put_back(deephash, photos):
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)]
    assert deephash("eval", "run=nowhere").code == 4
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)] == before


def test_a_warning_of_slurm_ends_no_command():
    program = (
        "import os, signal; from deephash_cli.cli import main as cli; "
        "cli.run = lambda _: os.kill(os.getpid(), signal.SIGUSR1) or 7; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (7, b"")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_choice_that_the_command_line_knows(method):
    config = checking.check("train", [f"method={method}"], None, multirun=False)
    assert config.method == method


# Fuzzing

KEYS = st.sampled_from(
    ["bits", "seed", "method", "dataset", "trainer", "trainer.max_epochs", "optimizer.lr", "metrics.ks", "run_dir",
     "resume", "group", "dataset.root", "loader", "hydra.job.name", "hydra/launcher", "experiment", "logger", "x", "",
     "bits.x", "model.network", "allowed_targets", "model.network.backbone.weights"]
)  # fmt: skip
TEXTS = st.text("abc012-+.,:'\"\\()[]{}$ =~@/*?!#%\n\t\x00é", max_size=12)
VALUES = st.one_of(
    TEXTS,
    st.text(max_size=8),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["null", "true", "[]", "{}", "[1,2]", "{a:1}", "12", "dpsh", "cpu", "${seed}", "${x}", "${seed",
                     "${oc.env:HOME}", "choice(1,2)", "range(1,3)", "glob(*)", "interval(0,1)", "auto", "1,2", "'48'",
                     "shuffle(12,24)", "int('1')", "../trainer/cpu", "[dpsh]", "${oc.decode:'[1'}", "${.}"]),
)  # fmt: skip
OVERRIDES = st.one_of(
    st.tuples(st.sampled_from(["", "", "+", "++", "~"]), KEYS, st.sampled_from(["=", "=", ""]), VALUES).map("".join),
    TEXTS,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["train", "eval"]), st.lists(OVERRIDES, min_size=1, max_size=3), st.booleans())
@example("train", ["bits=\x00"], False)
@example("train", ["dataset=" + "a" * 300], False)
@example("train", ["-x=1"], False)
@example("train", ["method=[dpsh]"], False)
@example("train", ["trainer@x=cpu"], False)
@example("train", ["~trainer=auto"], False)
@example("train", ["seed=glob(*)"], True)
@example("eval", ["ks=choice(1)"], True)
def test_no_command_gives_a_traceback(verb, overrides, multirun):
    import contextlib

    with contextlib.suppress(ConfigError):
        checking.check(verb, [arguments.normalize(override) for override in overrides], None, multirun)


@pytest.mark.slow
def test_a_screen_that_knows_neither_colours_nor_unicode_and_is_narrow(photos):
    """Print the table of a sweep, which contains a plus-minus sign."""
    command = ["deephash", "train", "-m", "seed=0,1", "bits=8", *photos]
    code = f"import sys; from deephash_cli.cli import main as cli; sys.argv = {command!r}"
    plain = {"PYTHONIOENCODING": "ascii", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "60", "LC_ALL": "C"}
    result = python(f"{code}; cli.main()", **plain)
    assert result.returncode == 0, result
    assert not [line for line in result.stderr.splitlines() if not TINY.match(line)]
    assert "\x1b" not in result.stdout
    assert re.search(r"\d\.\d{4} \?", result.stdout)


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("model.network={a:1}", "model.network.a"),
        ("model.network={dropoot:0.1}", "model.network.dropoot'; did you mean 'model.network.dropout"),
        ("loader={num_workers:0,batchsize:4}", "loader.batchsize'; did you mean 'loader.batch_size"),
        ("model.network.x=1", "model.network.x"),
    ],
)
def test_a_key_inside_braces_is_the_one_that_is_unknown(deephash, typed, key):
    message = deephash("train", typed).err
    assert f"error: unknown key '{key}'" in message
    assert f"did you mean '{typed.split('=')[0].removesuffix('.x')}'" not in message
