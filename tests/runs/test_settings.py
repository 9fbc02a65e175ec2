"""The settings of a run: which of them make two runs the same."""

import datetime

import yaml

from deephash_cli import runs

SETTINGS = {"bits": 12, "optimizer": {"lr": 1.0, "betas": [0.9, 1.0]}, "trainer": {"max_epochs": 4}, "run_dir": None}


def changed(**changes):
    return {**SETTINGS, **changes}


def test_the_identity_changes_with_settings_that_a_resumed_run_must_keep():
    for other in (changed(bits=24), changed(seed=1), changed(optimizer={"lr": 2.0}), changed(new=[1])):
        assert runs.forbidden_changes(SETTINGS, other)
        assert runs.identity(other) != runs.identity(SETTINGS)


def test_the_identity_is_that_of_all_settings_that_may_continue_a_run():
    betas = {"lr": 1, "betas": [0.9, True]}  # Python takes these numbers for equal
    download = {"dataset": {"download": True}}
    for other in (changed(trainer={}), changed(run_dir="x", resume="auto"), changed(optimizer=betas), changed(a=None),
                  changed(fit_rows=500_000, trial=None), changed(**download)):  # fmt: skip
        assert not runs.forbidden_changes(SETTINGS, other)
        assert runs.identity(other) == runs.identity(SETTINGS)


def test_the_identity_is_the_same_after_writing_and_reading():
    settings = changed(
        text="1e-3", rate=1e-3, none="null", day=datetime.date(2026, 1, 2), big=float("inf"), nested=[{}]
    )
    assert runs.identity(yaml.safe_load(yaml.safe_dump(settings))) == runs.identity(settings)
