"""The record of a backbone in tables: a run folder may come from anybody."""

import pytest
from synthetic import backbone

from deephash_cli.runs.backbones import backbone_of


def test_a_record_becomes_a_line():
    known = backbone_of(backbone(on_classes=True))
    assert str(known) == "backbone toy_net: 5.3 M parameters, pretraining ImageNet-1k, licence mit"
    assert known.on_classes is True
    assert backbone_of(backbone()).on_classes is None
    assert str(backbone_of(backbone(weights="none"))) == "backbone toy_net: 5.3 M parameters, random weights"


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"backbone": None},
        {"backbone": []},
        {"backbone": {}},
        backbone(name=5),
        backbone(name="x" * 10_000),
        backbone(parameters=True),
        backbone(parameters=-1),
        backbone("vectors", parameters=0, weights="none"),
        backbone(parameters="5"),
        backbone(parameters=float("inf")),
        backbone(weights=None),
    ],
    ids=lambda metrics: str(metrics)[:60],
)
def test_an_edited_record_is_no_record(metrics):
    assert backbone_of(metrics) is None


def test_an_edited_text_is_not_known():
    changed = backbone(licence=["mit"], pretraining="x" * 10_000)
    assert str(backbone_of(changed)).endswith("pretraining not known, licence not known")
    assert backbone_of({**changed, "pretrained_on_classes": "yes"}).on_classes is None
