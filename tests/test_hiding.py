"""Secrets: values of environment variables stay out of every file, of W&B and of the screen."""

import contextlib
import io
from pathlib import Path

import pytest
from conftest import QUICK, write_photos
from omegaconf import OmegaConf
from omegaconf.resolvers import oc
from wandb_files import files_with, inspect

from deephash_cli import hiding, runs
from deephash_cli.cli import main as cli
from deephash_cli.cli.checking import train_settings
from deephash_cli.errors import ConfigError
from deephash_cli.training import fit

MARKER = "marker-of-a-secret"


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(hiding, "_taken", set())


def test_values_are_hidden_whatever_the_variable_is_called():
    hiding.remember("DB_URL", "postgres://me:pw@host/db")
    hiding.remember("PIN", "4711")
    hiding.remember("TINY", "abc")
    assert hiding.hide("connect postgres://me:pw@host/db now") == "connect <hidden> now"
    assert hiding.hide("pin 4711, not 14711 or 4711a") == "pin <hidden>, not 14711 or 4711a"
    assert hiding.hide("abc") == "abc"  # three letters are in any text
    assert str(ConfigError("no postgres://me:pw@host/db")) == "no <hidden>"


def test_places_and_jobs_are_no_secrets(tmp_path):
    for name, value in (("DATA", str(tmp_path)), ("HOME", "/home/someone"), ("SLURM_JOB_ID", "12345678")):
        hiding.remember(name, value)
        assert hiding.hide(value) == value
    hiding.remember("DEEPHASH_TOKEN", "value-of-a-token")  # a name that suggests a secret has the last word
    assert hiding.hide("value-of-a-token") == "<hidden>"


def test_the_name_of_a_class_is_never_hidden():
    hiding.remember("WORD", "augment")
    settings = {"_target_": "deephash_cli.data.augment.ShiftFlip", "note": "augment", "list": ["augment"]}
    assert runs.redact(settings) == {**settings, "note": "<hidden>", "list": ["<hidden>"]}


@pytest.mark.parametrize("key", ["group", "dataset.name", "dataset.protocol", "model.name"])
def test_the_name_of_a_folder_or_of_a_result_is_refused(deephash, monkeypatch, key):
    monkeypatch.setenv("DB_URL", MARKER)
    result = deephash("train", "logger=none", f"{key}=${{oc.env:DB_URL}}")
    assert result.code == 2
    assert result.err.startswith(f"error: {key} is taken from an environment variable")
    assert MARKER not in result.err
    assert list(Path().iterdir()) == []


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A sweep of a job that is finished and one that fails, with a secret in every text that takes one."""
    place = tmp_path_factory.mktemp("logged")
    photos = write_photos(place / "photos")
    (place / "home").mkdir()
    words = [
        "train", "-m", "dataset=image_folder", f"dataset.root={photos}", *QUICK[:-1], "bits=12", "gallery=false",
        "trainer.max_epochs=1", "optimizer.lr=0.001,1e30", "logger.project=${oc.env:DB_URL}", "logger.mode=offline",
        "logger.entity=${oc.env:DB_URL}", "logger.tags=[a,'${oc.env:DB_URL}']", "loader.batch_size=16",
        "++augment.note=see ${oc.env:DB_URL}", "augment=none",
    ]  # fmt: skip
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.chdir(place)
        patch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
        patch.setenv("HOME", str(place / "home"))
        patch.setenv("DB_URL", MARKER)
        assert cli.run(words) == 6
    return place, said.getvalue()


def test_a_secret_is_in_no_file_of_a_run_and_not_on_the_screen(logged):
    place, said = logged
    assert MARKER not in said
    assert "W&B does not get it" in said
    assert files_with(MARKER, place / "runs") == []
    assert not [path for path in place.rglob("*") if MARKER in path.name]
    folders = [folder for folder, _ in runs.scan(place / "runs")]
    assert len(folders) == 2
    for folder in folders:
        shown = inspect(folder)
        assert MARKER not in shown
        assert "hidden" in shown
        assert runs.read_config(folder)["logger"]["tags"] == ["a", "<hidden>"]


def test_the_error_of_a_run_has_no_secret(deephash, photos, monkeypatch):
    monkeypatch.setenv("DB_URL", MARKER)
    result = deephash("train", *photos, "run_dir=run", "model.weights=${oc.env:DB_URL}", "bits=12")
    assert result.code in (2, 3, 4)
    assert MARKER not in result.err
    assert files_with(MARKER, Path()) == []


def test_a_path_that_the_user_typed_is_not_repeated(deephash, photos, monkeypatch):
    monkeypatch.setenv("DB_URL", MARKER)
    assert deephash("train", *photos, "run_dir=${oc.env:DB_URL}", "bits=12", "trainer.max_epochs=1").code == 0
    assert runs.read_config(Path(MARKER))["run_dir"] == "<hidden>"
    assert files_with(MARKER, Path(MARKER)) == []
    assert deephash("train", *photos, f"resume={MARKER}", "bits=12", "trainer.max_epochs=1").code == 0


def test_a_job_in_another_process_hides_too(monkeypatch):
    """A launcher may run a job of a sweep in a process that has not checked the command."""
    monkeypatch.setenv("DB_URL", MARKER)
    config = train_settings()
    config.group = "${oc.env:DB_URL}"
    OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    assert fit._settings(config)["group"] == "<hidden>"
