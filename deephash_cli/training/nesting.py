"""Nested code lengths: one network whose first outputs are a shorter code, for each of several lengths.

The loss is the sum of the method's losses at all lengths, each with weight 1, as in Matryoshka Representation Learning
(Kusupati et al., NeurIPS 2022). The method is built once for each length, from the same settings, and sees the first
outputs alone. So its buffers, its random draws and whatever else it keeps are those of a method of that length.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float, UInt8
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.errors import ConfigError
from deephash_cli.methods.base import HashingModule
from deephash_cli.models import HashingNetwork

# Hooks that are passed on to the method of each length. One with another hook of its own is refused.
_PASSED_ON = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end",
    "on_train_end", "on_save_checkpoint", "on_load_checkpoint",
)  # fmt: skip
_STEPS = ("training_step", "validation_step", "configure_optimizers", "optimizer_step", "backward")
_HOOKS = {*_STEPS, *(name for name in dir(LightningModule) if name.startswith("on_"))} - {*_PASSED_ON}


class FirstOutputs(HashingNetwork):
    """The first outputs of a network, as a network of a shorter code.

    It has no tensors of its own, and is otherwise the whole network: its settings, layers and functions are those.

    Args:
        network: The whole network, whose tensors stay its own: they are in a checkpoint once.
        bits: Number of outputs.
    """

    def __init__(self, network: HashingNetwork, bits: int):
        nn.Module.__init__(self)
        self._whole = (network,)  # a module in a tuple is not registered
        self.bits = bits

    def forward(self, inputs: UInt8[Tensor, "n c h w"] | Float[Tensor, "n features"]) -> Float[Tensor, "n bits"]:
        """Compute the first continuous outputs for images or features."""
        return self._whole[0](inputs)[:, : self.bits]

    def train(self, mode: bool = True) -> "FirstOutputs":
        """Set training or evaluation mode of the whole network."""
        self._whole[0].train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        if "_whole" not in self.__dict__:  # while it is being copied
            raise AttributeError(name)
        return getattr(self._whole[0], name)


class Nested(HashingModule):
    """Train a network with the losses of a method at several code lengths.

    Everything that is logged has the length in its name, such as ``train/similarity_16``.

    Args:
        methods: The method for each length, built around ``FirstOutputs`` of the network.
        **settings: Arguments of ``HashingModule`` for the whole network.

    Raises:
        ConfigError: If the method has hooks or a training step of its own that cannot be called for each length.
    """

    supervision: ClassVar = "none"  # each of the methods has looked at the labels

    def __init__(self, methods: Mapping[int, HashingModule], **settings):
        first = next(iter(methods.values()))
        self.views, self.compares_features = first.views, first.compares_features  # type: ignore[misc]
        super().__init__(loss=nn.Identity(), **settings)
        self.methods = dict(methods)
        for bits, method in self.methods.items():
            own = sorted(name for name in _HOOKS if getattr(type(method), name) is not getattr(HashingModule, name))
            if own:
                raise ConfigError(
                    f"nested lengths need a method that learns by its losses alone, but {type(method).__name__} has "
                    f"{', '.join(own)} of its own: leave out nested"
                )
            if method.transductive:
                raise ConfigError(
                    f"{type(method).__name__} learns codes for the database, and those of one length do not begin "
                    "those of another: leave out nested"
                )
            self.add_module(f"bits_{bits}", method)
            method.log = _Named(self, bits)  # type: ignore[method-assign]

    def losses(self, u: Float[Tensor, "n *views bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the terms of all lengths. Each length draws the random numbers that it would draw alone."""
        terms = {}
        for bits, method in self.methods.items():
            self._seed_step(0)
            terms |= {f"{name}_{bits}": value for name, value in method.losses(u[..., :bits], batch).items()}
        return terms

    def on_train_start(self) -> None:
        """Call the hook of each length."""
        self._each("on_train_start")

    def on_train_epoch_start(self) -> None:
        """Call the hook of each length."""
        self._each("on_train_epoch_start")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step, and call the hook of each length."""
        super().on_train_batch_start(batch, batch_idx)
        self._each("on_train_batch_start", batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the means of an epoch that ends, and call the hook of each length."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        self._each("on_train_batch_end", outputs, batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        """Call the hook of each length."""
        self._each("on_train_epoch_end")

    def on_train_end(self) -> None:
        """Call the hook of each length."""
        self._each("on_train_end")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Have each length save what it keeps beside its tensors, under its own name."""
        for bits, method in self.methods.items():
            kept: dict[str, Any] = {}
            method.on_save_checkpoint(kept)
            if kept:
                checkpoint[f"bits_{bits}"] = kept

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Have each length restore what it saved."""
        for bits, method in self.methods.items():
            method.on_load_checkpoint({**checkpoint, **checkpoint.get(f"bits_{bits}", {})})

    def _each(self, hook: str, *arguments: Any) -> None:
        for method in self.methods.values():
            getattr(method, hook)(*arguments)


class _Named:
    """Log for the method of one length: Lightning lets only the outermost module log, here with the length."""

    def __init__(self, nested: Nested, bits: int):
        self._nested, self._bits = nested, bits

    def __call__(self, name: str, value: Any, **options: Any) -> None:
        self._nested.log(f"{name}_{self._bits}", value, **options)
