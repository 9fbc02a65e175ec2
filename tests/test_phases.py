"""The time of each phase: a stopwatch, and what a run records of it."""

import time

import digests
import pytest

from deephash_cli import phases, runs
from deephash_cli.runs import records


def test_one_phase_is_running_at_any_moment(monkeypatch):
    clock = iter([10.0, 11.0, 13.0, 17.0, 25.0, 41.0, 41.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))

    @phases.phase("features")  # from 13 to 17
    def compute():
        pass

    @phases.phase("training")  # from 11 to 25
    def train():
        compute()
        raise ValueError("diverged")

    phases.restart()
    with pytest.raises(ValueError, match="diverged"):
        train()
    seconds = phases.seconds()
    assert seconds == {"start": 17, "data": 0, "features": 4, "training": 10, "codes": 0, "metrics": 0}
    assert sum(seconds.values()) == 41 - 10


def timed(deephash, *arguments):
    """Run ``deephash train``; return its output and the seconds that it took."""
    began = time.monotonic()
    result = deephash("train", *arguments)
    assert result.code == 0, result
    return result.out, time.monotonic() - began


def test_a_run_records_its_phases_and_a_resumed_one_those_of_its_last_start(deephash, photos, tmp_path):
    folder = tmp_path / "run"
    arguments = [*photos, "model.frozen=true", "method=dpsh", "bits=8", f"run_dir={folder}"]
    found = []
    for more in ((), ("resume=auto", "trainer.max_epochs=3")):
        out, whole = timed(deephash, *arguments, *more)
        found.append(records.phases(folder))
        assert list(found[-1]) == ["start", "data", "features", "training", "codes", "metrics"]
        assert min(found[-1].values()) >= 0
        assert min(found[-1][name] for name in ("start", "training", "codes", "metrics")) > 0
        assert whole / 2 < sum(found[-1].values()) <= whole + 0.01
        (line,) = [line for line in out.splitlines() if line.startswith("time: ")]
        assert line == "time: " + ", ".join(f"{name} {value:.1f} s" for name, value in found[-1].items())
    assert found[0] != found[1]
    out, _ = timed(deephash, *arguments, "resume=auto", "trainer.max_epochs=3")
    assert "already done" in out
    assert records.phases(folder) == found[1]
    for damaged in (None, [], {"start": 1.0}, {**found[1], "codes": "long"}):  # the first as in earlier versions
        digests.edit(folder / runs.RECORD, phases=damaged)
        assert records.phases(folder) == {}
        out, _ = timed(deephash, *arguments, "resume=auto", "trainer.max_epochs=3")
        assert "time: " not in out
