"""DHD: Deep Hash Distillation for Image Retrieval (Jang, Gu, Ko, Kang and Cho, ECCV 2022).

https://doi.org/10.1007/978-3-031-19781-9_21

    J = mean over images of
        - sum over classes c [ y_c / |y|_1 log p_c ] + lambda_1 (1 - cos(h_s, h_w)) + lambda_2 q(h_w)
    p = softmax over classes of cos(h_w, P_c) / tau,   h = tanh(u)
    q = mean over bits k of H(b_k, g+(h_k)) + H(1 - b_k, g-(h_k)),   b_k = 1 if h_k >= 0, else 0
    H(b, p) = - b log p - (1 - b) log(1 - p),   g+(h) = exp(- (h - 1)^2 / (2 sigma^2)),   g-(h) = g+(-h)

``h_w`` and ``h_s`` are the outputs for a weakly and for a strongly changed copy of an image. Each class has a proxy
``P_c``, a vector that is learned together with the network and is only needed for training. The weak copy learns to
point to the proxies of its classes. The strong copy learns to point where the weak one does, which is the target of
this term and gets no gradient from it (self-distillation). The last term draws each value to the nearer of two
Gaussians at -1 and +1, whose values are the likelihoods of the two bits.

All terms are means over images, and the last one over bits, too. So no weight depends on the batch size or code length.

Where we differ: which copy the first and the last term are computed from, and the values of lambda_1, lambda_2 and
sigma, are from memory of the paper, not checked. tau is published for AlexNet at 64 bits. Images without a label have
no first term. How much of a gain is that of the augmentation alone is told by ``loss.distillation_weight=0``, with the
strong changes in the first view. On images (``model.frozen=false``) the copies are those of ``augment=weak_strong``. A
frozen backbone computes its features once. On them the copies differ by dropout of the features, with the shares
``augment.dropout``, so results on frozen features are not those of the paper. The network and the optimizer are modern
ones.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.limits import above_zero, at_least
from deephash_cli.methods.parts.losses import class_entropy


class DHDLoss(nn.Module):
    """Classification by proxies, self-distillation, and quantization likelihood.

    Args:
        temperature: Temperature tau of the cosines, above 0.
        distillation_weight: Weight lambda_1 of the distillation.
        quantization_weight: Weight lambda_2 of the quantization likelihood.
        sigma: Standard deviation of the two Gaussians, above 0.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, temperature: float, distillation_weight: float, quantization_weight: float, sigma: float):
        super().__init__()
        above_zero(temperature=temperature, sigma=sigma)
        at_least(0, distillation_weight=distillation_weight, quantization_weight=quantization_weight)
        self.temperature = temperature
        self.distillation_weight = distillation_weight
        self.quantization_weight = quantization_weight
        self.sigma = sigma

    def forward(
        self,
        weak: Float[Tensor, "n bits"],
        strong: Float[Tensor, "n bits"],
        proxies: Float[Tensor, "classes bits"],
        labels: Float[Tensor, "n classes"],
    ) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            weak: Relaxed codes of the weakly changed copies, in [-1, 1].
            strong: Relaxed codes of the strongly changed copies of the same images.
            proxies: Proxy of each class; its length does not matter.
            labels: Multi-hot labels of the images. Those without any do not count in the classification.
        """
        log_p = (normalize(weak) @ normalize(proxies).T / self.temperature).log_softmax(dim=1)
        distance = 1 - cosine_similarity(strong, weak.detach())
        return {
            "classification": class_entropy(log_p, labels),
            "distillation": self.distillation_weight * distance.mean(),
            "quantization": self.quantization_weight * gaussian_quantization(weak, self.sigma),
        }


class DHD(HashingModule):
    """Train a network with DHD, on a weak and a strong view. The proxies P are in ``proxies``, a row for each class.

    Args:
        **settings: Arguments of ``HashingModule``.
    """

    supervision = "labels"
    views = 2

    def __init__(self, **settings):
        super().__init__(**settings)
        generator = torch.Generator().manual_seed(self.seed)
        shape = self.train_labels.shape[1], self.network.bits
        self.proxies = nn.Parameter(torch.randn(shape, generator=generator))

    def losses(self, u: Float[Tensor, "n 2 bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the batch; the first view is the weak one."""
        weak, strong = u.tanh().unbind(dim=1)
        return self.loss(weak, strong, self.proxies, batch.labels)


def gaussian_quantization(h: Float[Tensor, "n bits"], sigma: float) -> Float[Tensor, ""]:
    """Return the cross-entropy of the bits by the likelihoods of two Gaussians at -1 and +1, a mean over all values.

    For a value of either sign it is ``(|h| - 1)^2 / (2 sigma^2) - log(1 - exp(-(|h| + 1)^2 / (2 sigma^2)))``: how far
    it is from the nearer Gaussian, and how likely under the other.

    Args:
        h: Relaxed codes.
        sigma: Standard deviation of both Gaussians.
    """
    size, scale = h.abs(), 2 * sigma**2
    return ((size - 1).square() / scale - torch.log(-torch.expm1(-(size + 1).square() / scale))).mean()
