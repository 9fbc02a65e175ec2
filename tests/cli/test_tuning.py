"""A search chooses settings by validation queries alone, and continues its study when it is started again."""

import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from deephash_cli.cli import sweep
from deephash_cli.errors import ArtifactError


@pytest.fixture
def search(tmp_path):
    """Return a function that runs a search of two trials in a separate process, because SQLAlchemy warns."""
    kinds = np.arange(120) % 4
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(4, 8))[kinds] + rng.normal(size=(120, 8)))
    np.save(tmp_path / "y.npy", kinds)
    settings = (
        "tune=rates", "method=dhn", "bits=16", "dataset=vectors", f"dataset.vectors={tmp_path / 'x.npy'}",
        f"dataset.labels={tmp_path / 'y.npy'}", "trainer=cpu", "trainer.max_epochs=1", "logger=none", "group=mine",
        f"runs={tmp_path / 'runs'}", "hydra.sweeper.n_trials=2", "loss.quantization_weight=interval(0.001,0.1)",
    )  # fmt: skip
    command = [sys.executable, "-c", "from deephash_cli.cli.main import main; main()", "train", "-m", *settings]
    return lambda *overrides: subprocess.run([*command, *overrides], capture_output=True, text=True, timeout=120)


def trials(folder):
    with sqlite3.connect(folder / "runs" / ".sweeps" / "mine" / sweep.STUDY) as study:
        query = "select state, value from trials left join trial_values on trials.trial_id = trial_values.trial_id"
        return study.execute(query).fetchall()


@pytest.mark.slow
def test_a_search_goes_on_with_its_study(search, tmp_path):
    for found in (2, 4):
        result = search("validation.queries=20")
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("\njob ") == 2
        states, values = zip(*trials(tmp_path), strict=True)
        assert states == ("COMPLETE",) * found
        assert f"validation_map {max(values):.4f}" in result.stdout
    assert all(0.2 < value <= 1 for value in values)
    assert "precision_at_100" not in result.stdout  # a number of the test queries
    best = result.stdout.splitlines()[-1]
    assert best.startswith("best settings in this study so far: ")
    assert "optimizer.lr=" in best
    assert best.endswith(f"validation_map {max(values):.4f}")


@pytest.mark.slow
def test_a_search_needs_validation_queries(search):
    result = search("validation.queries=0")
    assert result.returncode == 2
    assert "a search needs validation queries" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_trials_that_fail_do_not_end_the_search(search, tmp_path):
    result = search(
        "validation.queries=20", "model.network.hidden_units=choice(0,16)", "model.network.dropout=choice(2)"
    )
    assert "from 0 to 1" in result.stderr
    result = search("validation.queries=20", "optimizer.lr=choice(1e38)", "hydra.sweeper.n_trials=1")
    assert "lower optimizer.lr" in result.stderr
    assert [state for state, _ in trials(tmp_path)] == ["FAIL"]


@pytest.mark.parametrize("damage", ["text", "lock"])
def test_a_study_that_cannot_be_used_ends_the_sweep_before_it_begins(tmp_path, monkeypatch, damage):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda file, **_: connect(file, timeout=0.01))
    file = tmp_path / sweep.STUDY
    file.write_text("this is not a database, and long enough to be looked at as one " * 50 if damage == "text" else "")
    other = connect(file, isolation_level=None)
    if damage == "lock":
        other.execute("create table t (x)")
        other.execute("begin exclusive")
    with pytest.raises(ArtifactError, match=r"cannot be used \((file is not a database|database is locked)\)"):
        sweep.begun(tmp_path).__enter__()
    other.close()
