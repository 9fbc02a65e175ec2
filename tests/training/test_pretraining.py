"""What is said of the weights of a backbone before a training, and what is recorded."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import QUICK
from fitting import network_on
from synthetic import backbone

from deephash_cli.cli.checking import train_settings
from deephash_cli.errors import ConfigError
from deephash_cli.files import read_json
from deephash_cli.training import pretraining


def record(**changes):
    return backbone(**changes)["backbone"]


@pytest.mark.parametrize(
    ("labelled", "known", "entry"),
    [
        (["imagenet"], ["imagenet"], {"pretrained_on_classes": True}),
        (["places", "imagenet"], ["imagenet"], {"pretrained_on_classes": True}),
        (["imagenet"], [], {"pretrained_on_classes": False}),
        ([], ["imagenet"], {"pretrained_on_classes": False}),
        (["imagenet"], None, {}),
    ],
)
def test_whether_the_weights_know_the_classes(labelled, known, entry):
    assert pretraining.on_classes(record(labelled=labelled), known) == entry
    assert pretraining.on_classes(None, known) == {}


@pytest.mark.parametrize("licence", ["apache-2.0", "MIT", "bsd-3-clause", "cc-by-4.0", "cc0-1.0"])
def test_free_licences_are_not_spoken_of(licence):
    assert pretraining.cautions(record(licence=licence), [], "toys") == []


@pytest.mark.parametrize("licence", ["cc-by-nc-4.0", "dinov3-license", "other", "mit-like"])
def test_other_licences_are(licence):
    (said,) = pretraining.cautions(record(licence=licence), [], "toys")
    assert f"have the licence {licence}, which does not allow every use" in said


@pytest.mark.parametrize(("weights", "count"), [("hf-hub:toys/net@1", 1), ("file net.pth sha256 12", 0), ("none", 0)])
def test_a_licence_that_is_not_known_is_said_of_weights_that_were_fetched(weights, count):
    said = pretraining.cautions(record(licence=None, weights=weights), ["imagenet"], "toys")
    assert sum("the licence of the weights of toy_net is not known" in sentence for sentence in said) == count
    assert sum("was pretrained with labels of imagenet" in sentence for sentence in said) == (weights != "none")


@pytest.mark.parametrize(
    ("dataset", "known"), [("cifar10", ["imagenet"]), ("fashion_mini", []), ("image_folder", None)]
)
def test_data_sets_say_which_labels_have_their_classes(dataset, known):
    assert pretraining.known_to(train_settings(f"dataset={dataset}")) == known


def test_the_setting_is_a_list_of_names():
    config = train_settings("dataset=image_folder", "dataset.classes_known_to=imagenet")
    with pytest.raises(ConfigError, match=r"must be a list of names, such as \[imagenet\], got imagenet"):
        pretraining.known_to(config)


def test_the_record_is_that_of_the_origin_of_the_backbone():
    network = network_on(width=4, bits=2)
    network.backbone.origin = SimpleNamespace(record=record)
    assert pretraining.record_of(network) == record()


def test_a_run_warns_once_and_records_it(deephash, photos, monkeypatch):
    monkeypatch.setattr(pretraining, "record_of", lambda _: record(licence="cc-by-nc-4.0"))
    words = (*QUICK, *photos, "method=itq", "bits=12", "dataset.classes_known_to=[imagenet]", "run_dir=run")
    result = deephash("train", *words)
    assert result.code == 0
    first, second = result.err.splitlines()[:2]
    assert first.startswith(
        "warning: toy_net was pretrained with labels of imagenet, which has the classes of image_fo"
    )
    assert second.startswith(
        "warning: the weights of toy_net have the licence cc-by-nc-4.0, which does not allow every "
    )
    assert read_json(Path("run/metrics.json"))["pretrained_on_classes"] is True
    assert "warning" not in deephash("train", *words[:-1], "resume=run").err
