"""Training: which images a run sees, which checkpoint it chooses and why, and settings that cannot work."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deephash_cli.data.augment import ShiftFlip
from deephash_cli.data.image_folder import image_folder
from deephash_cli.data.protocol import hold_out_validation, load_split
from deephash_cli.errors import ArtifactError, DivergedError, Stopped
from deephash_cli.files import read_json, sha256_file
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.dpsh import DPSH
from deephash_cli.models import HashingNetwork, SmallCNN, packed_codes
from deephash_cli.retrieval.codes_folder import load_codes
from deephash_cli.training.checkpoints import BEST, LAST, read_checkpoint
from deephash_cli.training.inputs import Loading, Source
from deephash_cli.training.validation import Validation

SMALL = ("bits=12", "loader.batch_size=16")


@pytest.fixture
def train(photos, deephash, tmp_path):
    """Return a function: ``train("seed=1")`` trains on the photos; the result and the run folder are returned."""

    def run(*overrides, name="run"):
        folder = tmp_path / name
        return deephash("train", *photos, *SMALL, f"run_dir={folder}", *overrides), folder

    return run


@pytest.fixture
def steps(monkeypatch):
    """Record what each training step sees: the epoch, the batch, and whether the network is in training mode."""
    seen = []
    step = HashingModule.training_step

    def noting(module, batch, batch_idx):
        seen.append((module.current_epoch, batch, module.network.hidden.training))
        return step(module, batch, batch_idx)

    monkeypatch.setattr(HashingModule, "training_step", noting)
    return seen


def values(folder, name):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def codes(folder):
    return {file.name: file.read_bytes() for file in (folder / "codes").glob("*.npy")}


def checkpoint(folder, name):
    return read_checkpoint(folder / "checkpoints" / name)


# what a run sees


def test_every_epoch_sees_every_training_image_once_in_an_order_of_its_own(train, steps):
    assert train("trainer.max_epochs=3")[0].code == 0
    orders: list[list[int]] = [[], [], []]
    for epoch, batch, _ in steps:
        orders[epoch] += batch.indices.tolist()
    assert all(sorted(order) == list(range(54)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("frozen", [False, True])
def test_it_trains_in_training_mode_and_encodes_in_evaluation_mode(train, steps, monkeypatch, frozen):
    # Without eval(), dropout would stay on while encoding. Without train(), it would stay off in training after a
    # validation or after features were computed.
    encoding = []
    encode = Source.codes

    def noting(source, *arguments, **options):
        forward = source.network.forward

        def looking(inputs):
            encoding.append(source.network.training or source.network.hidden.training)
            return forward(inputs)

        source.network.forward = looking
        return encode(source, *arguments, **options)

    monkeypatch.setattr(Source, "codes", noting)
    settings = ("model.network.hidden_units=16", "model.network.dropout=0.5", "validation.queries=6")
    assert train(*settings, f"model.frozen={str(frozen).lower()}")[0].code == 0
    assert len(steps) == 2 * 3
    assert all(training for _, _, training in steps)
    assert len(encoding) > 1
    assert not any(encoding)


def test_images_are_changed_for_training_only(train, monkeypatch):
    # If queries and database were augmented too, the code of an image would be that of a random crop of it.
    changed = []
    forward = ShiftFlip.forward

    def noting(augment, images):
        changed.append(len(images))
        return forward(augment, images)

    monkeypatch.setattr(ShiftFlip, "forward", noting)
    assert train("trainer.max_epochs=2", "validation.queries=6", "module.buffer_init=first_pass")[0].code == 0
    assert sum(changed) == 2 * 48


def test_a_frozen_backbone_trains_on_its_features(train, steps):
    result, folder = train("model.frozen=true", "model.network.standardize=true")
    assert result.code == 0
    assert all(batch.inputs.shape[1:] == (128,) for _, batch, _ in steps)
    state = checkpoint(folder, LAST)["state_dict"]
    other = checkpoint(train("model.frozen=true", "trainer.max_epochs=1", name="other")[1], LAST)["state_dict"]
    backbone = [name for name in state if name.startswith("network.backbone.")]
    assert backbone
    assert all(torch.equal(state[name], other[name]) for name in backbone)
    assert not torch.equal(state["network.hash_layer.weight"], other["network.hash_layer.weight"])


def test_the_schedule_ends_with_the_training(train):
    folder = train("trainer.max_epochs=4", "optimizer.lr=0.001", "model.backbone_lr=0.0001")[1]
    rates = values(folder, "lr/new_layers")
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert values(folder, "lr/backbone") == pytest.approx([rate / 10 for rate in rates])


def test_biases_and_scales_of_normalization_do_not_decay(train):
    folder = train("trainer.max_epochs=1", "optimizer.weight_decay=0.1")[1]
    groups = checkpoint(folder, LAST)["optimizer_states"][0]["param_groups"]
    assert [(group["name"], group["weight_decay"], len(group["params"])) for group in groups] == [
        ("new_layers", 0.1, 1), ("new_layers", 0.0, 1), ("backbone", 0.1, 3), ("backbone", 0.0, 6),
    ]  # fmt: skip


def test_a_head_is_learned_before_the_backbone_as_if_that_were_frozen(train):
    settings = ("model.network.hidden_units=16", "model.network.standardize=true", "scheduler=constant")
    # AdamW multiplies its weight decay by the learning rate, so these settings leave the weights unchanged
    still = ("optimizer.lr=0.0", "model.backbone_lr=0.0", "model.network.frozen_norm=true")
    head = ("head.epochs=3", "head.lr=0.01", "head.batch_size=16", "trainer.max_epochs=1")
    result, folder = train(*settings, *still, *head)
    assert result.code == 0
    assert result.out.count("head: epoch") == 3
    frozen = train(*settings, "model.frozen=true", "optimizer.lr=0.01", "trainer.max_epochs=3", name="frozen")[1]
    one, other = checkpoint(folder, LAST)["state_dict"], checkpoint(frozen, LAST)["state_dict"]
    for name in ("network.hash_layer.weight", "network.hidden.1.weight", "network.backbone.stages.0.weight"):
        assert torch.allclose(one[name], other[name], atol=1e-4), name  # the weights have moved by about 0.1
    assert [json.loads(line)["step"] for line in (folder / "head.jsonl").read_text().splitlines()][-1] == 12


def test_a_head_before_a_frozen_backbone_is_refused(train):
    result, folder = train("head.epochs=3", "model.frozen=true")
    assert result.code == 2
    assert "head.epochs=3 needs model.frozen=false" in result.err
    assert not folder.exists()


def test_gradients_are_clipped_under_mixed_precision_too(train):
    # Under mixed precision, Lightning refuses to clip with a fused optimizer ("Are you using a 'fused' optimizer?").
    result, folder = train("trainer.gradient_clip_val=1", "trainer.precision=bf16-mixed", "trainer.max_epochs=1")
    assert result.code == 0
    assert not checkpoint(folder, LAST)["optimizer_states"][0]["param_groups"][0]["fused"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_losses_are_computed_in_single_precision(train, monkeypatch, precision):
    seen = set()
    losses = DPSH.losses

    def noting(module, u, batch):
        seen.add((u.dtype, torch.is_autocast_enabled("cpu"), (u @ u.T).dtype))
        return losses(module, u, batch)

    monkeypatch.setattr(DPSH, "losses", noting)
    result, _ = train(f"trainer.precision={precision}", "trainer.max_epochs=1")
    assert result.code == 0, result
    assert seen == {(torch.float32, False, torch.float32)}


def test_the_average_of_weights_is_what_is_encoded(train, monkeypatch):
    weights = []
    end = HashingModule.on_train_batch_end

    def noting(module, *arguments):
        weights.append(module.network.hash_layer.weight.detach().clone())
        end(module, *arguments)

    monkeypatch.setattr(HashingModule, "on_train_batch_end", noting)
    folder = train("ema.decay=0.9", "optimizer.lr=0.03")[1]
    average = weights[0]
    for weight in weights[1:]:
        average = 0.9 * average + 0.1 * weight
    state = checkpoint(folder, LAST)["state_dict"]
    assert torch.allclose(state["network.hash_layer.weight"], average, atol=1e-5)
    assert not torch.allclose(average, weights[-1], atol=1e-3)
    network = HashingNetwork(
        SmallCNN(), 12, 16, [0.5] * 3, [0.5] * 3, frozen=False, frozen_norm=False,
        standardize=False, hidden_units=0, dropout=0.0, channels_last=False, mirrored=False,
    )  # fmt: skip
    network.load_state_dict(
        {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    )
    query = load_codes(folder / "codes")[0]
    data = image_folder(folder.parent / "photos")
    rows = np.array([data.ids.index(name) for name in query.ids])
    with torch.no_grad():
        u = network.eval()(torch.from_numpy(data.images.batch(rows)))
    assert np.array_equal(packed_codes(u), query.packed)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on the CPU")
def test_a_compiled_backbone_learns_the_same(photos, tmp_path):
    states = []
    for switch in ("true", "false"):  # in separate processes: the compiler warns and does not work with the type checks
        settings = (*photos, *SMALL, "trainer.max_epochs=1", "optimizer=sgd", f"run_dir={tmp_path / switch}")
        script = "from deephash_cli.cli.main import main; main()"
        subprocess.run([sys.executable, "-c", script, "train", *settings, f"compile={switch}"], check=True)
        states.append(checkpoint(tmp_path / switch, LAST)["state_dict"])
    assert states[0].keys() == states[1].keys()
    for name, value in states[1].items():
        assert torch.allclose(states[0][name], value, atol=1e-4), name


# which checkpoint


def fake_validation(monkeypatch, scores):
    """Replace the validation mAP of each epoch by the given scores."""
    validate = Validation.on_validation_epoch_end

    def told(callback, trainer, module):
        module.log = lambda name, _: type(module).log(module, name, scores[module.current_epoch])
        validate(callback, trainer, module)
        del module.log

    monkeypatch.setattr(Validation, "on_validation_epoch_end", told)


def test_without_validation_queries_the_last_epoch_is_the_result(train):
    folder = train()[1]
    metrics = read_json(folder / "metrics.json")
    assert metrics["selection"] == "last epoch"
    assert metrics["validation"] is None
    assert metrics["checkpoint"] == {
        "file": f"checkpoints/{LAST}", "sha256": sha256_file(folder / "checkpoints" / LAST)
    }  # fmt: skip
    assert not (folder / "checkpoints" / BEST).exists()


def test_the_epoch_that_finds_the_validation_queries_best_is_the_result(train, monkeypatch):
    fake_validation(monkeypatch, [0.5, 0.8, 0.8, 0.3])
    settings = ("validation.queries=6", "scheduler=constant")
    result, folder = train(*settings, "trainer.max_epochs=4")
    assert result.code == 0
    assert values(folder, "validation/map") == pytest.approx([0.5, 0.8, 0.8, 0.3])
    assert checkpoint(folder, BEST)["epoch"] == 1  # the first of two that are equal
    assert checkpoint(folder, LAST)["epoch"] == 3
    metrics = read_json(folder / "metrics.json")
    assert metrics["selection"] == "best on validation queries"
    assert metrics["validation"] == {"queries": 6, "map": pytest.approx(0.8)}
    assert metrics["checkpoint"]["sha256"] == sha256_file(folder / "checkpoints" / BEST)
    # the codes are those of a run that ended at the best epoch, not those of the last weights
    assert codes(folder) == codes(train(*settings, "trainer.max_epochs=2", name="shorter")[1])
    assert codes(folder) != codes(train("scheduler=constant", "trainer.max_epochs=4", name="last")[1])


def stop():
    raise Stopped(130)


def test_the_best_epoch_stays_the_best_over_an_interruption(train, monkeypatch):
    fake_validation(monkeypatch, [0.5, 0.8, 0.7, 0.3])
    settings = ("validation.queries=6", "trainer.max_epochs=4")
    whole = train(*settings)[1]
    start = HashingModule.on_train_batch_start
    with monkeypatch.context() as patch:
        patch.setattr(
            HashingModule,
            "on_train_batch_start",
            lambda module, *rest: stop() if module.current_epoch == 3 else start(module, *rest),
        )
        assert train(*settings, name="cut")[0].code == 130
    result, cut = train(*settings, "resume=auto", name="cut")
    assert result.code == 0
    assert checkpoint(cut, BEST)["epoch"] == 1
    assert codes(cut) == codes(whole)
    assert values(cut, "validation/map") == values(whole, "validation/map") == pytest.approx([0.5, 0.8, 0.7, 0.3])


def test_validation_queries_are_taken_from_the_training_set_and_its_map_is_that_of_the_loop(train, steps):
    result, folder = train("validation.queries=6")
    assert result.code == 0
    data = image_folder(folder.parent / "photos")
    split = load_split(folder / "split.json", data)
    train_rows, queries = hold_out_validation(split, data, 6, seed=0)
    assert set(queries) | set(train_rows) == set(split.train)
    assert not set(queries) & (set(train_rows) | set(split.query))
    assert {len(batch.indices) for _, batch, _ in steps} == {16}  # 48 images are left to train on: three batches of 16
    labels = torch.from_numpy(data.labels).float()
    for epoch, batch, _ in steps:
        assert torch.equal(batch.labels, labels[train_rows][batch.indices]), epoch

    network = HashingNetwork(
        SmallCNN(), 12, 16, [0.5] * 3, [0.5] * 3, frozen=False, frozen_norm=False,
        standardize=False, hidden_units=0, dropout=0.0,
        channels_last=False, mirrored=False,
    )  # fmt: skip
    state = {name.removeprefix("network."): value for name, value in checkpoint(folder, LAST)["state_dict"].items()}
    network.load_state_dict({name: value for name, value in state.items() if name in network.state_dict()})
    network.eval()
    source = Source(data, network, torch.device("cpu"), Loading(16, 64, 0, False))
    with torch.no_grad():
        query, database = (
            torch.cat([network(batch.inputs) for batch in source.in_order(rows)]) >= 0 for rows in (queries, train_rows)
        )
    precisions = []
    for one, label in zip(query, data.labels[queries], strict=True):
        distances = (one != database).sum(dim=1).numpy()
        relevant = (data.labels[train_rows] @ label) > 0
        total = 0.0
        for distance in np.unique(distances):  # the mean over all orders of tied images, as in the metric's papers
            tie, before = distances == distance, distances < distance
            n, r, n0, r0 = tie.sum(), relevant[tie].sum(), before.sum(), relevant[before].sum()
            for position in range(1, n + 1):
                hits = r0 + 1 + (position - 1) * ((r - 1) / (n - 1) if n > 1 else 0)
                total += r / n * hits / (n0 + position)
        precisions.append(total / relevant.sum())
    assert values(folder, "validation/map")[-1] == pytest.approx(np.mean(precisions), rel=1e-5)


def test_the_labels_of_test_queries_have_no_say(deephash, tmp_path):
    # Choosing the epoch by the mAP of the test queries is the usual mistake of the field. The two runs here differ only
    # in the labels of the test queries: every weight and code must be the same, and only the metrics may differ.
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 120, (20, 20, 3))
        pixels[..., i % 2] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
    folders = []
    for name, swap in (("right", 0), ("wrong", 1)):
        queries = [f"{i}.png,{'ab'[(i + swap) % 2]},query" for i in range(10)]
        others = [f"{i}.png,{'ab'[i % 2]},train;database" for i in range(10, 40)]
        table = tmp_path / f"{name}.csv"
        table.write_text("\n".join(["path,labels,split", *queries, *others, ""]))
        folders.append(tmp_path / name)
        result = deephash(
            "train", "dataset=csv", f"dataset.file={table}", "dataset.protocol=official", "model=small_cnn",
            "model.image_size=16", "trainer=cpu", "trainer.max_epochs=3", "loader.num_workers=0", "logger=none", *SMALL,
            "validation.queries=6", f"run_dir={folders[-1]}",
        )  # fmt: skip
        assert result.code == 0, result.err
    right, wrong = folders
    for name in (BEST, LAST):
        one, other = (checkpoint(folder, name)["state_dict"] for folder in folders)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert values(right, "validation/map") == values(wrong, "validation/map")
    assert np.array_equal(load_codes(right / "codes")[0].packed, load_codes(wrong / "codes")[0].packed)
    assert read_json(right / "metrics.json")["map"] != read_json(wrong / "metrics.json")["map"]


def test_validation_every_second_epoch(train):
    result, folder = train("validation.queries=6", "validation.every_n_epochs=2", "trainer.max_epochs=3")
    assert (result.code, result.surprises) == (0, "")
    assert len(values(folder, "validation/map")) == 1
    assert checkpoint(folder, BEST)["epoch"] == 1


def test_without_a_validated_epoch_the_last_is_the_result_and_says_so(train):
    result, folder = train("validation.queries=6", "validation.every_n_epochs=3")
    assert result.code == 0
    assert "training ended before the first validation" in result.err
    assert read_json(folder / "metrics.json")["selection"] == "last epoch"


def test_checkpoints_every_third_epoch_include_the_final_one(train):
    result, folder = train("checkpoint.every_n_epochs=3", "trainer.max_epochs=4")
    assert result.code == 0
    assert checkpoint(folder, LAST)["epoch"] == 3
    assert checkpoint(folder, "previous.ckpt")["epoch"] == 2


def test_epochs_that_end_soon_after_a_checkpoint_get_none_but_the_final_one_does(train):
    result, folder = train("checkpoint.every_seconds=1000", "trainer.max_epochs=4")
    assert result.code == 0
    assert checkpoint(folder, LAST)["epoch"] == 3
    assert checkpoint(folder, "previous.ckpt")["epoch"] == 0


def test_a_time_limit_ends_the_training_with_a_checkpoint(train):
    result, folder = train("checkpoint.every_n_epochs=1000", "trainer.max_epochs=1000", "trainer.max_time=00:00:00:01")
    assert (result.code, result.surprises) == (0, "")
    epochs = read_json(folder / "metrics.json")["epochs"]
    assert 0 < epochs < 1000
    assert checkpoint(folder, LAST)["global_step"] == checkpoint(folder, LAST)["loops"]["fit_loop"][
        "epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]  # fmt: skip


def test_an_epoch_that_is_cut_short_logs_the_loss_so_far(train, monkeypatch):
    # trainer.max_time ends an epoch in this way: its last batch never comes.
    original = HashingModule.training_step

    def stop(self, batch, batch_idx):
        self.trainer.should_stop = batch_idx == 1
        return original(self, batch, batch_idx)

    monkeypatch.setattr(HashingModule, "training_step", stop)
    result, folder = train("loader.batch_size=4")
    assert (result.code, result.surprises) == (0, "")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "train/loss" in line] == [0]


@pytest.mark.parametrize("settings", [("module.buffer_init=first_pass",), ("module.pairs=batch",)])
def test_the_forms_of_dpsh_run(train, settings):
    result, folder = train(*settings)
    assert result.code == 0
    name, value = settings[0].removeprefix("module.").split("=")
    assert read_json(folder / "metrics.json")["module"][name] == value
    assert f"{name}={value}" in result.out  # the results say that this is not DPSH as published


# settings that cannot work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["scheduler.warmup=2"], "warmup is a share of the training"),
        (["optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0"], "Nesterov momentum requires a momentum"),
        (["augment.flip=2"], "flip in [0, 1]"),
        (["+module.typo=1"], "typo"),
        (["+optimizer.typo=1"], "typo"),
    ],
)
def test_settings_that_cannot_work_are_one_sentence(train, settings, message):
    result, folder = train(*settings)
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert not (folder / "error.txt").exists()


def test_worker_processes_change_nothing(tmp_path, deephash):
    # images of different sizes are decoded when they are needed, by worker processes if there are any
    rng = np.random.default_rng(0)
    for i in range(24):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png")
    states = []
    for workers in (0, 2):
        folder = tmp_path / f"run{workers}"
        result = deephash(
            "train", "dataset=image_folder", f"dataset.root={tmp_path / 'photos'}", "model=small_cnn", "trainer=cpu",
            "model.image_size=16", "trainer.max_epochs=2", "logger=none", "bits=12", "loader.batch_size=8",
            "module.buffer_init=first_pass", f"loader.num_workers={workers}", f"run_dir={folder}",
        )  # fmt: skip
        assert (result.code, result.surprises) == (0, "")
        states.append(checkpoint(folder, LAST)["state_dict"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def full_disk(path, content):
    raise ArtifactError(f"could not write {path}: No space left on device; nothing was changed there")


def test_a_record_that_cannot_be_written_says_why_and_leaves_nothing(deephash, photos, monkeypatch):
    monkeypatch.setattr("deephash_cli.runs.folder.write_sealed", full_disk)
    result = deephash("train", *photos, "method=itq", "bits=8", "run_dir=run")
    assert result.code == 4
    assert result.err.startswith("error: could not write run/run.json: No space left on device")
    assert result.err.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.parametrize(("error", "code"), [(DivergedError("the loss is nan"), 5), (Stopped(130), 130)])
def test_an_end_that_cannot_be_written_down_does_not_hide_its_cause(deephash, photos, monkeypatch, error, code):
    def fail(*_):
        monkeypatch.setattr("deephash_cli.runs.folder.write_sealed", full_disk)
        raise error

    monkeypatch.setattr("deephash_cli.training.fit.fit", fail)
    result = deephash("train", *photos, "method=itq", "bits=8", "run_dir=run")
    assert result.code == code
    assert "warning: could not write run/run.json: No space left on device" in result.err
    assert ("error: the loss is nan" in result.err) == (code == 5)
    assert Path("run/run.json").exists()
