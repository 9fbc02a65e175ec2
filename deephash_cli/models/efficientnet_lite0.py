"""EfficientNet-Lite0, the default backbone, built without timm, whose import takes longer than a search.

It is timm's ``tf_efficientnet_lite0`` class by class: the modules have the same names, weights are drawn in the same
order from the same distributions, and outputs and features' keys are the same to the bit, which a test compares.
Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019; "Lite" leaves out
squeeze-and-excitation and has ReLU6 as activation.
"""

import math

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from deephash_cli.data.preprocessing import Preprocessing
from deephash_cli.models import weights as files
from deephash_cli.models.origin import Origin, count, trained_on

NAME = "tf_efficientnet_lite0"
_OWN_SIZE = 224  # side in pixels of the images that the weights were trained with
# Stages of inverted residual blocks: number of blocks, side of the kernel, stride of the first block, channels.
_STAGES = ((2, 3, 2, 24), (2, 5, 2, 40), (3, 3, 2, 80), (3, 5, 1, 112), (4, 5, 2, 192), (1, 3, 1, 320))
_EXPANSION = 6
_EPS = 1e-3  # of batch normalization, as in TensorFlow


class Conv2dSame(nn.Conv2d):
    """Convolution whose zero padding is TensorFlow's "same": if it is uneven, the end gets one more than the start."""

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d height width"]:  # noqa: A002
        """Pad and convolve."""
        (top, bottom), (left, right) = (
            _same(size, kernel, stride)
            for size, kernel, stride in zip(input.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        return super().forward(F.pad(input, (left, right, top, bottom)))


class BatchNormAct2d(nn.BatchNorm2d):
    """Batch normalization and an activation.

    Args:
        channels: Number of channels.
        is_active: Whether the activation is ReLU6; otherwise there is none.
    """

    def __init__(self, channels: int, is_active: bool = True):
        super().__init__(channels, eps=_EPS)
        self.drop = nn.Identity()
        self.act = nn.ReLU6(inplace=True) if is_active else nn.Identity()

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:  # noqa: A002
        """Normalize and activate."""
        return self.act(super().forward(input))


class DepthwiseSeparableConv(nn.Module):
    """The first block: a convolution of each channel for itself, then one across the channels.

    Args:
        inputs: Number of channels of the input.
        outputs: Number of channels of the output.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv_dw = _convolution(inputs, inputs, 3, groups=inputs)
        self.bn1 = BatchNormAct2d(inputs)
        self.aa, self.se = nn.Identity(), nn.Identity()
        self.conv_pw = _convolution(inputs, outputs, 1)
        self.bn2 = BatchNormAct2d(outputs, is_active=False)
        self.drop_path = nn.Identity()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """Compute the output of the block."""
        return self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))


class InvertedResidual(nn.Module):
    """Widen the channels, convolve each for itself, and narrow them again; add the input if it has the same shape.

    Args:
        inputs: Number of channels of the input.
        outputs: Number of channels of the output.
        kernel: Side of the kernel in pixels.
        stride: Stride of the convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        wide = _EXPANSION * inputs
        self.conv_pw = _convolution(inputs, wide, 1)
        self.bn1 = BatchNormAct2d(wide)
        self.conv_dw = _convolution(wide, wide, kernel, stride, groups=wide)
        self.bn2 = BatchNormAct2d(wide)
        self.aa, self.se = nn.Identity(), nn.Identity()
        self.conv_pwl = _convolution(wide, outputs, 1)
        self.bn3 = BatchNormAct2d(outputs, is_active=False)
        self.drop_path = nn.Identity()
        self._is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d height width"]:
        """Compute the output of the block."""
        y = self.bn3(self.conv_pwl(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))))
        return y + x if self._is_residual else y


class SelectAdaptivePool2d(nn.Module):
    """Average over the pixels."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
        """Compute the average of each channel."""
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def __repr__(self) -> str:
        printed = {"pool_type": "avg", "flatten": nn.Flatten(1)}
        return f"SelectAdaptivePool2d({', '.join(f'{name}={value}' for name, value in printed.items())})"


class EfficientNet(nn.Module):
    """EfficientNet-Lite0 with its classifier of ImageNet, with random weights."""

    num_features = 1280

    def __init__(self):
        super().__init__()
        channels = 16
        self.conv_stem = _convolution(3, 32, 3, stride=2)
        self.bn1 = BatchNormAct2d(32)
        for _ in range(2):  # timm tries out squeeze-and-excitation here; without it, other weights would be drawn
            nn.Conv2d(8, 8, 1)
        stages = [nn.Sequential(DepthwiseSeparableConv(32, channels))]
        for blocks, kernel, stride, outputs in _STAGES:
            sides = [(channels, stride), *[(outputs, 1)] * (blocks - 1)]
            stages.append(nn.Sequential(*(InvertedResidual(inputs, outputs, kernel, step) for inputs, step in sides)))
            channels = outputs
        self.blocks = nn.Sequential(*stages)
        self.conv_head = _convolution(channels, self.num_features, 1)
        self.bn2 = BatchNormAct2d(self.num_features)
        self.global_pool = SelectAdaptivePool2d()
        self.classifier: nn.Module = nn.Linear(self.num_features, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.uniform_(module.weight, -(1000**-0.5), 1000**-0.5)

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n outputs"]:
        """Compute the outputs of the classifier for preprocessed images."""
        x = self.blocks(self.bn1(self.conv_stem(x)))
        return self.classifier(self.global_pool(self.bn2(self.conv_head(x))))


def build(weights: str, image_size: int | None) -> EfficientNet:
    """Build EfficientNet-Lite0 without its classifier, with the origin that ``timm_backbone`` would give it.

    Args:
        weights: Source of the weights: ``none`` (random) or ``packaged``.
        image_size: Side of the input in pixels; None means that of the weights.

    Raises:
        ArtifactError: If the package of the weights is missing or damaged.
    """
    network = EfficientNet()
    known = {}
    if weights == "packaged":
        files.load_by_position(network, files.packaged(NAME))
        pretraining, labelled = trained_on("in1k")
        known = {"licence": "apache-2.0", "pretraining": pretraining, "labelled": labelled}
    network.classifier = nn.Identity()
    half = (0.5, 0.5, 0.5)
    form = Preprocessing(image_size or _OWN_SIZE, 0.875, "center", "bicubic", half, half)
    network.origin = Origin(NAME, NAME, count(network), weights=weights, preprocessing=form, pooling="avg", **known)  # type: ignore[assignment]
    return network


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution with TensorFlow's padding, which does not depend on the size of the image at stride 1."""
    if stride == 1:
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return Conv2dSame(inputs, outputs, kernel, stride, groups=groups, bias=False)


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding before and after one dimension of an image."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
