"""Base classes of methods: ``HashingModule`` learns by gradient, ``ShallowHasher`` is fitted on features."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from deephash_cli import processes
from deephash_cli.data.augment import Views
from deephash_cli.data.loaders import Batch, DirectLoader, Loader
from deephash_cli.data.pairs import require_pairs
from deephash_cli.errors import ConfigError, first_line
from deephash_cli.methods.parts.hash_layers import FeatureScaling
from deephash_cli.methods.parts.step_losses import LossSums, StepLosses
from deephash_cli.models import Backbone, HashingNetwork, packed_codes


class Hasher(LightningModule):
    """A network that gives continuous codes.

    Args:
        network: Backbone and hash layer, giving continuous codes.
        train_labels: Multi-hot labels of the training set, in the order of ``Batch.indices``.
        seed: Seed of everything random in the training.

    Raises:
        DataError: If the method learns from labels, and either no two training images share a label or all of them
            do.
    """

    # What the method learns from. none: the images alone. pairs: which pairs share a label. triplets: a query, an image
    # that shares a label with it and one that does not. labels: the labels themselves.
    supervision: ClassVar[Literal["none", "pairs", "triplets", "labels"]]
    # Whether the paper says what to do with several labels. If not, the method's docstring says what is done.
    multi_label: ClassVar[bool] = True

    def __init__(self, network: HashingNetwork, train_labels: Float[Tensor, "n classes"], seed: int):
        super().__init__()
        if self.supervision != "none":
            require_pairs(train_labels.cpu().numpy().astype(np.uint8))
        self.network = network
        self.seed = seed
        self.register_buffer("train_labels", train_labels, persistent=False)  # the data set provides them on a resume
        self.train_labels: Tensor

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; torch would look for a tensor in the hook that Lightning notes 60 times in a step."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> UInt8[Tensor, "n bytes"]:
        """Return the packed codes of a batch, which ``training.validation`` collects.

        Raises:
            DivergedError: If an output of the network is NaN.
        """
        return torch.from_numpy(packed_codes(self.network(batch.inputs).float().cpu()))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch to a device, without Lightning's recursive search for tensors."""
        return Batch(*(part.to(device, non_blocking=True) for part in batch))


class HashingModule(Hasher):
    """Train a hashing network with a loss.

    A method supplies ``losses``. If it needs them, it also supplies state and a relaxation. Weights of its own, such as
    those of a classifier, learn as the layers above the backbone do and are in the checkpoint.

    Args:
        loss: The method's loss module.
        optimizer: A function from parameter groups to an optimizer.
        scheduler: A function from the optimizer and ``total_steps`` to a learning-rate scheduler.
        backbone_lr: Learning rate of the backbone's weights; the new layers use the optimizer's rate.
        augment: Random changes of training images ``(n, c, h, w)`` uint8; not applied to features.
        **settings: Arguments of ``Hasher``.

    Raises:
        ConfigError: If the method compares two views of an image and ``augment`` gives one, or the reverse.

    Attributes:
        loss_sums: For each loss term, the sum over the images of the current epoch so far.
    """

    # Number of views of each image (copies with random changes of their own) whose outputs the loss compares.
    views: ClassVar[Literal[1, 2]] = 1
    # Whether it trains on the whole database with its labels, and learns the codes that are searched directly.
    transductive: ClassVar[bool] = False
    # Number of images of an epoch, drawn at random, and number of epochs for which a draw is kept; None for all.
    epoch_sample: tuple[int, int] | None = None
    # Whether the loss compares the backbone's features, which it then gets as the batch's inputs.
    compares_features: ClassVar[bool] = False

    def __init__(
        self,
        loss: nn.Module,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        scheduler: Callable[..., LRScheduler],
        backbone_lr: float,
        augment: nn.Module,
        **settings,
    ):
        super().__init__(**settings)
        if isinstance(augment, Views) != (self.views == 2):
            raise ConfigError(
                f"{type(self).__name__} compares two views of each image: leave out augment, or use augment=two_views "
                "or augment=weak_strong"
                if self.views == 2
                else f"{type(self).__name__} learns from one view of each image: augment=two_views and "
                "augment=weak_strong are for other methods"
            )
        self.loss = loss
        self.augment = augment
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._backbone_lr = backbone_lr
        self.loss_sums = LossSums()
        self._last = StepLosses(("loss",), torch.zeros(1), str)

    @abstractmethod
    def losses(self, u: Float[Tensor, "n *views bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the named terms whose sum is minimised. Each is logged under its name.

        Args:
            u: Continuous codes of the images of the step, ``(n, bits)``; for a method with two views ``(n, 2, bits)``.
            batch: The labels and indices of those images. With several processes, each computes the outputs for its
                part of the images and the loss for all of them, so ``batch.inputs`` are those of this process alone.
                If the method has ``compares_features``, they are instead the backbone's features of all images, without
                a gradient: ``(n, d)``, or ``(n, 2, d)`` with two views.
        """

    def learned_codes(self) -> Float[Tensor, "n bits"]:
        """Return the learned codes of the training images, +1 and -1, of a method that is transductive."""
        raise NotImplementedError

    def on_fit_start(self) -> None:
        """Set training mode: Lightning keeps the current mode, and the network may have been encoding before."""
        self.train()
        # Each process has the whole gradient of these weights, and training_step multiplies it
        for weight in self._own_weights():
            weight.register_hook(lambda gradient: gradient / processes.count())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the random choices of this step by its number, so that a resumed run repeats it bit for bit.

        The choices are each process's augmentation of its own images and the units that it drops.
        """
        self._seed_step(1 + processes.rank())

    def _seed_step(self, stream: int) -> None:
        # Mix the numbers well, because on the CPU torch uses only 32 bits of a seed.
        mixed = np.random.SeedSequence([self.seed, self.global_step, stream]).generate_state(1)[0]
        # torch.manual_seed records a stack trace for each kind of accelerator, which takes a tenth of a step.
        (torch.default_generator if self.device.type == "cpu" else torch).manual_seed(int(mixed))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one step.

        With several processes, each holds a part of the images and computes the loss of all of them, with a gradient
        through the outputs for its own images.

        Raises:
            DivergedError: If the loss is NaN or infinite. On a CPU this is raised before the loss can reach the
                weights; on a GPU in the next step, because nothing waits for its losses.
        """
        features = self._features(batch.inputs)
        u = processes.of_all(self._by_image(self.network(features)))
        if processes.count() > 1:
            indices = processes.of_all(batch.indices)
            batch = Batch(batch.inputs, self.train_labels[indices], indices)
        if self.compares_features:
            batch = batch._replace(inputs=_single(processes.of_all(self._by_image(features.detach()))))
        self._seed_step(0)  # a loss draws the same random numbers in every process
        with torch.autocast(u.device.type, enabled=False):  # half-precision inner products lose digits
            terms = self.losses(_single(u), batch)
        stacked = torch.stack(list(terms.values()))
        total = stacked.sum()
        names, values = (*terms, "loss"), torch.cat([stacked, total[None]]).detach()
        losses = StepLosses(names, values, lambda: f"epoch {self.current_epoch}, batch {batch_idx}")
        (self._last if u.is_cuda else losses).require_finite()
        self._last = losses
        self.loss_sums.add(names, values, len(u))
        if processes.count() == 1:
            return total
        return total * processes.count()  # DDP averages gradients, but each process holds only its share of the sum

    def _features(self, inputs: Tensor) -> Float[Tensor, "m d"]:
        """Return the backbone's features of a batch: those of its first views, then those of its second views."""
        if self.views == 2:
            inputs = torch.cat(self.augment(inputs))  # in one pass, so that batch normalization sees all of them
        elif inputs.ndim > 2:
            inputs = self.augment(inputs)
        return inputs if inputs.ndim == 2 else self.network.features(inputs)

    def _by_image(self, rows: Float[Tensor, "m d"]) -> Float[Tensor, "n *views d"]:
        """Bring the two views of each image together, if there are two."""
        return rows if self.views == 1 else torch.stack(rows.chunk(2), dim=1)

    def _own_weights(self) -> list[nn.Parameter]:
        """Return the weights that are the method's and not the network's."""
        return [weight for name, weight in self.named_parameters() if not name.startswith("network.")]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log means over images when an epoch ends, even early: Lightning's own sums take a tenth of a step."""
        if self.trainer.is_last_batch or self.trainer.should_stop:
            self._last.require_finite()
            means = {f"train/{name}": value for name, value in self.loss_sums.means().items()}
            self.log_dict(means, on_step=False, on_epoch=True)
            self.loss_sums = LossSums()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and the schedule, which advances once per step.

        The new layers and the backbone have separate learning rates. Weight decay is not applied to parameters of one
        dimension: biases, and scales of normalization.

        Raises:
            ConfigError: If the optimizer or the scheduler rejects its settings.
        """
        groups = _groups([*self.network.new_layers(), *self._own_weights()], name="new_layers")
        groups += _groups(self.network.backbone.parameters(), name="backbone", lr=self._backbone_lr)
        steps = int(self.trainer.estimated_stepping_batches)
        clipped = isinstance(self.trainer.precision_plugin, MixedPrecision) and self.trainer.gradient_clip_val
        fused = getattr(self._optimizer, "keywords", {}).get("fused")
        # A fused optimizer unscales gradients inside its step, which is too late for Lightning to clip them.
        options = {"fused": False} if clipped and fused else {}
        try:
            optimizer = self._optimizer(groups, **options)
            scheduler = self._scheduler(optimizer, total_steps=steps)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer or scheduler: {first_line(error)}") from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class BufferedModule(HashingModule):
    """Keep the last output for every training image in ``u_buffer`` (U), to pair the rows of a batch with.

    The buffer is in the checkpoint, so a resumed run continues with exactly the same pairs.

    Args:
        buffer_init: ``zeros``, as published, or ``first_pass``, the untrained network's outputs. The latter helps
            networks that start from random weights to leave the saddle at u = 0.
        **settings: Arguments of ``HashingModule``.

    Raises:
        ValueError: If ``buffer_init`` is neither of the two.
    """

    def __init__(self, buffer_init: Literal["zeros", "first_pass"], **settings):
        super().__init__(**settings)
        if buffer_init not in ("zeros", "first_pass"):
            raise ValueError(f"buffer_init must be zeros or first_pass, got {buffer_init!r}")
        self.buffer_init = buffer_init
        self.register_buffer("u_buffer", torch.zeros(len(self.train_labels), self.network.bits))
        self.u_buffer: Tensor

    def on_train_epoch_start(self) -> None:
        """Fill the buffer with the untrained network's outputs before the first step, if ``buffer_init`` says so."""
        if self.buffer_init == "first_pass" and self.trainer.global_step == 0:
            first_pass = cast(Loader | DirectLoader, self.trainer.train_dataloader).again()
            self.network.eval()
            with torch.no_grad():
                for batch in first_pass:
                    moved = self.transfer_batch_to_device(batch, self.device, 0)
                    u = self.network(moved.inputs).float()
                    self.u_buffer[processes.of_all(moved.indices)] = processes.of_all(u)
            self.network.train()

    def remember(self, u: Float[Tensor, "n bits"], batch: Batch) -> Float[Tensor, "m bits"]:
        """Write the outputs for a batch into the buffer, detached, and return the whole buffer."""
        self.u_buffer[batch.indices] = u.detach()
        return self.u_buffer


class ShallowHasher(Hasher):
    """Fit the hash layer of a network with a frozen backbone on the features of the whole training set, in one step.

    A method creates its hash layer in the constructor and fills it in ``fit``. The layer has its final shapes from the
    start, because a checkpoint is loaded into it.

    Args:
        scaling: Scaling of the features before fitting: ``none``; ``unit``, each vector to length 1;
            ``centred_unit``, the same after the mean of the training set is subtracted; ``standard``, each feature to
            mean 0 and variance 1 over the training set.
        **settings: Arguments of ``Hasher``.

    Raises:
        ConfigError: If the backbone is not frozen.
    """

    def __init__(self, scaling: Literal["none", "unit", "centred_unit", "standard"], **settings):
        super().__init__(**settings)
        if not self.network.frozen:
            raise ConfigError(
                f"{type(self).__name__} is fitted on features of a frozen backbone: remove model.frozen=false"
            )
        self.width = cast(Backbone, self.network.backbone).num_features  # d, the length of a feature vector
        self.bits = self.network.bits
        self.network.hidden = FeatureScaling(self.width, scaling)

    @abstractmethod
    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Fill ``network.hash_layer``.

        Args:
            x: Features of the training set, after scaling.
            labels: Multi-hot labels of the training set.
            rng: Source of all random numbers.

        Raises:
            ConfigError: If the code length or a setting does not fit the features.
        """

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Fit in a single step: ``batch`` is the whole training set in its original order."""
        scaling = cast(FeatureScaling, self.network.hidden)
        with torch.no_grad():
            scaling.fit(batch.inputs)
            x = scaling(batch.inputs).cpu().numpy().astype(np.float64)
            self.fit(x, batch.labels.cpu().numpy().astype(np.uint8), np.random.default_rng(self.seed))

    def configure_optimizers(self) -> None:
        """Return None: no parameter is learned by gradient."""


def _single(x: Tensor) -> Tensor:
    """Return numbers of half precision in single precision, and others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _groups(weights: Iterable[nn.Parameter], **options: Any) -> list[dict[str, Any]]:
    """Return the parameter groups of the trainable weights: matrices with weight decay, vectors without it."""
    learned = [weight for weight in weights if weight.requires_grad]
    matrices = {"params": [weight for weight in learned if weight.ndim > 1], **options}
    vectors = {"params": [weight for weight in learned if weight.ndim <= 1], "weight_decay": 0.0, **options}
    return [group for group in (matrices, vectors) if group["params"]]
