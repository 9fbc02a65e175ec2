"""The origin of a backbone: names for tables, what weights were trained on, and the record of it."""

import pytest
from torch import nn

from deephash_cli.errors import ArtifactError
from deephash_cli.models import NoBackbone, Origin, readable, small_cnn, torchvision_backbone
from deephash_cli.models.origin import trained_on


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2.lvd142m"),
        ("hf-hub:timm/vit_small_patch14_dinov2.lvd142m@v1", "vit_small_patch14_dinov2.lvd142m"),
        ("hf_hub:org/name", "name"),
        ("local-dir:/home/me/dino@home/", "dino@home"),
        ("local-dir:dino", "dino"),
        ("local-dir:C:\\weights\\dino", "dino"),
        ("local-dir:/", "local-dir:/"),
    ],
)
def test_a_name_for_tables_has_no_folders(name, shown):
    assert readable(name) == shown


@pytest.mark.parametrize(
    ("tag", "data", "labelled"),
    [
        ("in1k", "ImageNet-1k", True),
        ("augreg2_in21k_ft_in1k", "ImageNet-21k, then ImageNet-1k", True),
        ("fb_in22k", "ImageNet-22k", True),
        ("in12k_ft_in1k", "ImageNet-12k, then ImageNet-1k", True),
        ("laion2b_ft_in12k_in1k", "LAION-2B, then ImageNet-12k, then ImageNet-1k", True),
        ("lvd142m", "LVD-142M", False),
        ("dinov3_lvd1689m", "LVD-1689M", False),
        ("openai", "OpenAI's WIT-400M", False),
        ("laion400m_e32", "LAION-400M", False),
        ("dfn2b", "DFN-2B", False),
        ("metaclip_2pt5b", "MetaCLIP", False),
        ("v2_webli", "WebLI", False),
        ("mae", "ImageNet-1k", False),
        ("dino", "ImageNet-1k", False),
        ("in22k_ijepa", "ImageNet-22k", False),
        ("mim_in22k_ft_in1k", "ImageNet-22k, then ImageNet-1k", True),
        ("fcmae_ft_in1k", "ImageNet-1k", True),
        ("", None, False),
        ("somebody", None, False),
    ],
)
def test_what_weights_were_trained_on(tag, data, labelled):
    assert trained_on(tag) == (data, ("imagenet",) if labelled else ())


def test_every_backbone_has_an_origin(tmp_path):
    import numpy as np

    np.save(tmp_path / "vectors.npy", np.zeros((3, 5), np.float32))
    backbones = [small_cnn("none"), torchvision_backbone("resnet18", "none"), NoBackbone(str(tmp_path / "vectors.npy"))]
    for backbone in backbones:
        record = Origin.of(backbone).record()
        assert record["weights"] == "none"
        assert record["parameters"] == sum(weights.numel() for weights in backbone.parameters())
        assert Origin.from_record(record).record() == record
    form = backbones[1].origin.preprocessing  # torchvision resizes to 256 pixels and crops 224
    assert (form.size, form.resized, form.crop_mode, form.interpolation) == (224, 256, "center", "bilinear")
    assert torchvision_backbone("resnet50", "none").origin.preprocessing.resized == 232
    assert Origin.of(nn.Linear(2, 3)).record()["parameters"] == 9


@pytest.mark.parametrize(
    "changes", [{"name": 5}, {"labelled": "imagenet"}, {"preprocessing": {}}, {"architecture": "hf-hub:a/b"}]
)
def test_an_edited_record_is_refused(changes):
    record = {**Origin("a", "b", 1).record(), **changes}
    with pytest.raises(ArtifactError, match="the record of the backbone is damaged or was edited by hand"):
        Origin.from_record(record)
    with pytest.raises(ArtifactError, match="damaged"):
        Origin.from_record({name: value for name, value in record.items() if name != "weights"})
