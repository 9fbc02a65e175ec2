"""Checkpoints: all damage is found, no code in them is run, and one of the last two is valid at every moment."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from deephash_cli import choices, runs
from deephash_cli.errors import ArtifactError
from deephash_cli.files import read_sealed, sha256_file, write_sealed
from deephash_cli.schedules import cosine
from deephash_cli.training import checkpoints
from deephash_cli.training.checkpoints import (
    LAST,
    PREVIOUS,
    Owner,
    WrongCheckpointError,
    epochs_and_steps,
    newest_valid,
    read_checkpoint,
    require_fitting,
    verify_checkpoint,
)
from deephash_cli.training.saving import EpochCheckpoints, VerifiedCheckpointIO
from deephash_cli.training.targets import build

CONTENT = {"state_dict": {"weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 3, "callbacks": {"x": {"best": 0.5}}}


SETTINGS = {"method": "dpsh", "bits": 12, "seed": 0, "model": {"name": "small_cnn"}, "trainer": {"max_epochs": 4}}
OWNER = Owner.of("abc", SETTINGS, classes=3)


def save(path, content=CONTENT, owner=OWNER):
    VerifiedCheckpointIO(owner).save_checkpoint(content, path)
    return path


def sidecar(path):
    return path.with_name(f"{path.name}.json")


def resign(path, **changes):
    """Write a sidecar that matches the current content of the file."""
    sidecar(path).write_text(json.dumps({"format": 1, "deephash": "0", "sha256": sha256_file(path), **changes}))


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path / LAST)


def test_what_is_saved_is_read(saved):
    for checkpoint in (read_checkpoint(saved), VerifiedCheckpointIO().load_checkpoint(saved)):
        assert torch.equal(checkpoint["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
        assert (checkpoint["epoch"], checkpoint["callbacks"]) == (3, CONTENT["callbacks"])
    assert sorted(path.name for path in saved.parent.iterdir()) == [LAST, f"{LAST}.json"]


@pytest.mark.parametrize("optimizer", [name for name in choices.choices("optimizer") if name != "none"])
def test_every_optimizer_goes_on_where_it_was(tmp_path, optimizer):
    # The optimizer's state must be readable without unpickling anything but tensors and plain values.
    create = build(OmegaConf.load(choices.CONF_DIR / "optimizer" / f"{optimizer}.yaml"))

    def make():
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 2)
        steps = create([{"params": network.parameters(), "name": "new_layers"}])
        return network, steps, cosine(steps, total_steps=6, warmup=0.5)

    def step(network, steps, schedule, times):
        for _ in range(times):
            network(torch.ones(1, 3)).square().sum().backward()
            steps.step()
            schedule.step()
            steps.zero_grad()

    whole, cut, again = make(), make(), make()
    step(*whole, 4)
    step(*cut, 2)
    path = save(tmp_path / LAST, {"state_dict": cut[0].state_dict(), "states": [part.state_dict() for part in cut[1:]]})
    read = read_checkpoint(path)
    for part, content in zip(again, [read["state_dict"], *read["states"]], strict=True):
        part.load_state_dict(content)
    step(*again, 2)
    assert torch.equal(again[0].weight, whole[0].weight)


def test_every_flipped_bit_is_found(saved):
    good = saved.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(8 * len(good), 200, replace=False).tolist():
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        saved.write_bytes(bad)
        with pytest.raises(ArtifactError, match="is damaged"):
            read_checkpoint(saved)
    saved.write_bytes(good)
    read_checkpoint(saved)


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_truncated_or_empty_file_is_found(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(ArtifactError, match=rf"{LAST} is damaged"):
        read_checkpoint(saved)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(60), b"\x80\x02]q\x00."])
def test_a_file_that_is_no_checkpoint_is_an_error_even_with_a_matching_digest(saved, content):
    saved.write_bytes(content)
    resign(saved)
    with pytest.raises(ArtifactError, match=LAST):
        read_checkpoint(saved)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": 4}])
def test_a_file_of_something_else_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / LAST)
    resign(tmp_path / LAST)
    with pytest.raises(ArtifactError, match="not a checkpoint of deephash"):
        read_checkpoint(tmp_path / LAST)


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_checkpoint_is_not_run(tmp_path, write):
    # Unpickling can call anything, and the digest in the sidecar is no protection: the sender writes that too.
    path, target = tmp_path / LAST, tmp_path / "it ran"
    write({"state_dict": {}, "gift": Attack(target)}, path)
    resign(path)
    with pytest.raises(ArtifactError, match="could not be read as a checkpoint") as refused:
        read_checkpoint(path)
    assert not target.exists()
    assert "weights_only" not in str(refused.value)  # PyTorch advises to switch the protection off
    reason = "never loads because they can run code" if write is torch.save else "torch.save did not write it"
    assert reason in str(refused.value)
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert target.exists()  # without the protection the code does run


def test_without_a_sidecar_it_is_an_error(saved):
    sidecar(saved).unlink()
    with pytest.raises(ArtifactError, match=rf"{LAST}\.json does not exist"):
        read_checkpoint(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "1"}'])
def test_a_damaged_sidecar_is_an_error(saved, text):
    sidecar(saved).write_text(text)
    with pytest.raises(ArtifactError, match=rf"{LAST}\.json"):
        read_checkpoint(saved)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_newer_format_says_which_version_wrote_it_and_is_not_trained_over(saved, sealed):
    save(saved.with_name(PREVIOUS))
    content = {**read_sealed(sidecar(saved)), "format": checkpoints.FORMAT + 1, "deephash": "9.9"}
    write_sealed(sidecar(saved), content) if sealed else sidecar(saved).write_text(json.dumps(content))
    for read in (read_checkpoint, lambda path: newest_valid(path.parent, pytest.fail)):
        with pytest.raises(WrongCheckpointError, match=r"written by a newer deephash \(9\.9\)"):
            read(saved)


def test_every_flipped_bit_of_a_sidecar_is_found(saved):
    good = sidecar(saved).read_bytes()
    for position in range(0, 8 * len(good), 5):
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        sidecar(saved).write_bytes(bad)
        with pytest.raises(ArtifactError, match=LAST):
            read_checkpoint(saved)
    content = json.loads(good)
    for name in ("seal", "sealed"):
        del content[name]
        sidecar(saved).write_text(json.dumps(content))
        with pytest.raises(ArtifactError, match=LAST):
            read_checkpoint(saved)


def test_a_sidecar_of_format_1_is_read_and_belongs_to_nobody(saved):
    resign(saved)
    assert verify_checkpoint(saved, OWNER) is None
    assert newest_valid(saved.parent, pytest.fail, OWNER) == saved


def test_without_a_sidecar_it_is_read_if_that_is_allowed(saved):
    sidecar(saved).unlink()
    assert read_checkpoint(saved, allow_unverified=True)["epoch"] == 3
    assert checkpoints.digest(saved) == sha256_file(saved)
    torch.save({"state_dict": {}, "gift": Attack(saved.with_name("it ran"))}, saved)
    with pytest.raises(ArtifactError, match="never loads"):
        read_checkpoint(saved, allow_unverified=True)


# whose it is


def test_the_bytes_of_a_checkpoint_do_not_depend_on_whose_it_is(tmp_path):
    for name, owner in (("a", OWNER), ("b", None)):
        (tmp_path / name).mkdir()
        save(tmp_path / name / LAST, owner=owner)
    assert (tmp_path / "a" / LAST).read_bytes() == (tmp_path / "b" / LAST).read_bytes()


def test_the_sidecar_says_whose_it_is(saved):
    content = read_sealed(sidecar(saved))
    assert (content["run"], content["settings"]) == ("abc", runs.identity(SETTINGS))
    assert content["named"] == {"method": "dpsh", "bits": 12, "seed": 0, "model": "small_cnn", "classes": 3}
    assert verify_checkpoint(saved, OWNER) == OWNER


@pytest.mark.parametrize(
    ("run", "change", "expected", "got"),
    [("abc", {"bits": 24}, "run abc (bits=12)", "run abc (bits=24)"),
     ("xyz", {"seed": 1}, "run abc (seed=0)", "run xyz (seed=1)"),
     ("xyz", {"method": "dhn", "model": {"name": "alexnet"}}, "run abc (method=dpsh, model=small_cnn)",
      "run xyz (method=dhn, model=alexnet)"),
     ("xyz", {"classes": 5}, "run abc (classes=3)", "run xyz (classes=5)"), ("xyz", {}, "run abc", "run xyz"),
     ("abc", {"lr": 1}, f"run abc (settings with the digest {OWNER.settings[:12]})", "run abc (settings with")],
)  # fmt: skip
def test_one_of_another_run_is_refused_and_not_trained_over(saved, run, change, expected, got):
    classes = change.pop("classes", 3)
    save(saved.with_name(PREVIOUS))
    save(saved, owner=Owner.of(run, {**SETTINGS, **change}, classes=classes))
    for read in (lambda: newest_valid(saved.parent, pytest.fail, OWNER), lambda: read_checkpoint(saved, OWNER)):
        with pytest.raises(WrongCheckpointError) as refused:
            read()
        assert f"last.ckpt must be a checkpoint of {expected}, got one of {got}" in str(refused.value)


def test_settings_that_a_resumed_run_may_change_are_not_compared(saved):
    assert newest_valid(saved.parent, pytest.fail, Owner.of("abc", {**SETTINGS, "trainer": {}}, classes=3)) == saved


def test_tensors_must_be_those_of_the_network(saved):
    module = torch.nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(ArtifactError, match=r"bias must be a tensor of shape \(2,\), got no such tensor: it"):
        require_fitting(saved, CONTENT["state_dict"], module)
    with pytest.raises(ArtifactError, match=r"weight must be .* shape \(1, 3\), got .* \(2, 3\) \(and 2 other"):
        require_fitting(saved, {**CONTENT["state_dict"], "x": before}, torch.nn.Linear(3, 1))
    require_fitting(saved, module.state_dict(), module)
    with pytest.raises(ArtifactError, match="no number of epochs"):
        epochs_and_steps(saved, {})
    assert epochs_and_steps(saved, {**CONTENT, "global_step": 9}) == (4, 9)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"last\.ckpt does not exist"):
        verify_checkpoint(tmp_path / LAST)


def test_removing_takes_the_sidecar_along(saved):
    VerifiedCheckpointIO().remove_checkpoint(saved)
    assert list(saved.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["replace", "chmod"])
def test_failing_between_writing_and_renaming_keeps_the_old_checkpoint(saved, monkeypatch, name):
    def fail(self, *args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, name, fail)
        with pytest.raises(ArtifactError, match=r"No space left on device .*; nothing was changed"):
            save(saved, {"state_dict": {}, "epoch": 4})
    assert read_checkpoint(saved)["epoch"] == 3
    assert sorted(path.name for path in saved.parent.iterdir()) == [LAST, f"{LAST}.json"]


# newest_valid


def test_there_may_be_none_to_go_on_from(tmp_path):
    assert newest_valid(tmp_path, pytest.fail) is None
    assert newest_valid(tmp_path / "nowhere", pytest.fail) is None


def test_the_last_comes_first(tmp_path):
    save(tmp_path / PREVIOUS)
    assert newest_valid(tmp_path, pytest.fail) == tmp_path / PREVIOUS
    save(tmp_path / LAST)
    assert newest_valid(tmp_path, pytest.fail) == tmp_path / LAST


def test_a_damaged_last_gives_way_to_the_previous_and_is_named(tmp_path):
    save(tmp_path / PREVIOUS)
    save(tmp_path / LAST).write_bytes(b"")
    said = []
    assert newest_valid(tmp_path, said.append) == tmp_path / PREVIOUS
    assert len(said) == 1
    assert str(tmp_path / LAST) in said[0]
    (tmp_path / PREVIOUS).write_bytes(b"")
    assert newest_valid(tmp_path, said.append) is None


# the pair of last and previous


class Power(BaseException):
    """Stands for a power failure."""


def rotate(folder, epoch):
    callback = EpochCheckpoints(folder, every_n_epochs=1, every_seconds=0, monitor=None)
    callback._keep_previous()
    save(folder / LAST, {**CONTENT, "epoch": epoch})


def test_there_is_a_valid_checkpoint_at_every_moment(tmp_path, monkeypatch):
    # Four files are replaced one after the other. If, for example, last.ckpt were renamed before its sidecar, no
    # checkpoint would match its digest in between.
    replace = Path.replace
    for moment in range(1, 10):
        folder = tmp_path / str(moment)
        folder.mkdir()
        save(folder / PREVIOUS, {**CONTENT, "epoch": 0})
        save(folder / LAST, {**CONTENT, "epoch": 1})
        renames = 0

        def rename(self, target, moment=moment):
            nonlocal renames
            renames += 1
            if renames == moment:
                raise Power
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", rename)
            try:
                rotate(folder, 2)
            except Power:
                assert read_checkpoint(newest_valid(folder, lambda _: None))["epoch"] == 1
            else:
                break
    assert moment == 5  # there are four renames, so the fifth moment interrupted none
    assert read_checkpoint(folder / LAST)["epoch"] == 2
    assert read_checkpoint(folder / PREVIOUS)["epoch"] == 1


def test_a_damaged_last_does_not_become_the_previous(tmp_path):
    # It would replace the only checkpoint that the run can continue from.
    save(tmp_path / PREVIOUS, {**CONTENT, "epoch": 0})
    save(tmp_path / LAST).write_bytes(b"damaged")
    rotate(tmp_path, 1)
    assert read_checkpoint(tmp_path / PREVIOUS)["epoch"] == 0
    assert read_checkpoint(tmp_path / LAST)["epoch"] == 1
