"""Settings that a method does not use are refused, in one sentence, before anything starts."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from deephash_cli import runs
from deephash_cli.choices import CONF_DIR
from deephash_cli.cli.checking import check, train_settings
from deephash_cli.training.method_facts import facts_of, is_kind_of

OF_LEARNING = (
    "loss=dpsh", "optimizer=sgd", "optimizer.lr=0.1", "+optimizer.lr=0.1", "scheduler=stairs", "augment=crop_colour",
    "head.epochs=3", "ema.decay=0.9", "ema.decay=0.0",
)  # fmt: skip


def refused(result, *parts: str) -> None:
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    for part in parts:
        assert part in result.err
    assert not Path("runs").exists()


@pytest.mark.parametrize("setting", OF_LEARNING)
def test_a_method_that_is_fitted_in_one_step_refuses_what_others_learn_by(deephash, setting):
    result = deephash("train", "method=itq", setting)
    refused(result, f"{setting}: method=itq is fitted in one step", "such as module.scaling and module.iterations")


def test_what_every_method_is_trained_on_is_known():
    """From the sources alone; a method that is not known is not checked."""
    for file in (CONF_DIR / "method").glob("[!_]*.yaml"):
        text = file.read_text()
        target = yaml.safe_load(text)["module"]["_target_"].rpartition(".")
        assert facts_of(target[0], target[2]).inputs == ("features" if "- _classic" in text else "images"), file


def test_a_sweep_is_refused_before_its_first_job_and_names_the_method(deephash):
    refused(deephash("train", "-m", "method=dpsh,itq", "optimizer.lr=0.1,0.01"), "optimizer.lr=0.1: method=itq is")
    refused(deephash("train", "-m", "method=dpsh,itq", "optimizer=sgd,adamw"), "optimizer=sgd: method=itq is")
    refused(deephash("train", "-m", "tune=rates", "method=itq"), "the search for optimizer.lr: method=itq is")


@pytest.mark.parametrize(
    ("recipe", "sets"), [("dpsh_cifar10", "loss, optimizer, scheduler, head, ema"), ("fashion_small_cnn", "optimizer")]
)
def test_a_recipe_for_learning_is_of_no_use_to_a_classic_method(deephash, recipe, sets):
    refused(deephash("train", f"experiment={recipe}", "method=itq"), f"experiment={recipe} sets {sets}: method=itq is")


def test_a_recipe_in_the_users_own_folder_counts_as_well(deephash):
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /optimizer: sgd\n")
    command = ("train", "--config-dir", "own", "experiment=mine")
    refused(deephash(*command, "method=itq"), "experiment=mine sets optimizer: method=itq")
    assert deephash(*command, "--cfg", "job").code == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method=dpsh", "loss=dtsh"], "method=dpsh cannot use DTSHLoss, the loss of another method: leave out loss"),
        (["loss=dhn"], "method=dpsh cannot use DHNLoss"),
        (["method=dtsh", "loss=dsdh"], "method=dtsh cannot use DSDHLoss, the loss of another method"),
        (["loss=none"], "loss=none: method=dpsh learns by gradient and needs one"),
        (["method=dhn", "optimizer=none"], "optimizer=none: method=dhn learns by gradient and needs one"),
        (["scheduler=none"], "scheduler=none: method=dpsh learns by gradient"),
        (["fit_rows=100"], "fit_rows=100: method=dpsh learns from all training images"),
        (["augment=crop_colour", "model.frozen=true"], "augment=crop_colour: the features of a frozen backbone are"),
        (["augment.flip=0.1", "model.frozen=true"], "augment.flip=0.1: the features of a frozen backbone are computed"),
    ],
)
def test_a_method_that_learns_refuses_what_it_does_not_use(deephash, settings, message):
    refused(deephash("train", *settings), message)


@pytest.mark.parametrize(
    "settings",
    [
        # how any method is run: a sweep over both kinds of methods may have it
        ["method=itq", "trainer.max_epochs=3", "loader.batch_size=64", "validation.queries=100", "fit_rows=1000"],
        ["method=itq", "model.network.hidden_units=0", "checkpoint.every_seconds=0", "compile=true", "loss=none"],
        ["method=dpsh", "loss=dpsh", "optimizer=sgd", "scheduler=stairs", "head.epochs=1", "ema.decay=0.9"],
        ["method=dpsh", "augment=none", "model.frozen=true"],
        ["method=dpsh", "augment=crop_colour", "model.frozen=false"],
        ["experiment=dpsh_cifar10", "method=dsdh", "optimizer.lr=0.1"],
    ],
)
def test_what_a_method_uses_or_shares_is_accepted(settings):
    assert train_settings(*settings).method in ("itq", "dpsh", "dsdh")


def test_a_loss_of_the_users_own_is_accepted():
    """What it computes is not known; deephash's own losses each belong to a method."""
    Path("own/loss").mkdir(parents=True)
    Path("own/loss/mine.yaml").write_text("_target_: my_package.losses.MyLoss\nweight: 1\n")
    assert check("train", ["loss=mine"], "own", multirun=False).loss.weight == 1


def test_a_loss_that_inherits_is_of_the_same_kind(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        "from deephash_cli.methods.dpsh import DPSHLoss\nclass Mine(DPSHLoss): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert is_kind_of("my_losses.Mine", "deephash_cli.methods.dpsh.DPSHLoss")
    assert not is_kind_of("my_losses.Mine", "deephash_cli.methods.dtsh.DTSHLoss")


def test_nothing_of_an_unused_group_makes_equal_runs_unequal():
    """The fingerprint of a classic method has no loss, optimizer or scheduler, however the command is written."""
    prints = {
        runs.fingerprint(OmegaConf.to_container(train_settings("method=itq", *more), resolve=True))
        for more in ([], ["loss=none", "optimizer=none", "scheduler=none", "augment=none"])
    }
    assert len(prints) == 1
