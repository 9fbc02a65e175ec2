"""The cores that a process may use are those of its affinity, less what its control group limits."""

import os

import pytest

from deephash_cli import cores


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"": "max 100000"}, 8),
        ("0::/\n", {"": "300000 100000"}, 3),
        ("0::/job/step\n", {"job/step": "max 100000", "job": "150000 100000"}, 2),
        ("0::/job\n", {"job": "20000 100000"}, 1),
        ("0::/job\n", {"job": "6400000 100000"}, 8),
        ("4:memory:/x\n0::/job\n", {"job": "nonsense"}, 8),
        ("4:cpu:/x\n", {"x": "100000 100000"}, 8),
        (None, {"": "100000 100000"}, 8),
    ],
)
def test_usable_cores(tmp_path, monkeypatch, own, limits, expected):
    groups = tmp_path / "groups"
    for group, limit in limits.items():
        (groups / group).mkdir(parents=True, exist_ok=True)
        (groups / group / "cpu.max").write_text(limit)
    if own is not None:
        (tmp_path / "own").write_text(own)
    monkeypatch.setattr(cores, "_GROUPS", groups)
    monkeypatch.setattr(cores, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores.usable_cores() == expected
