"""Average the weights of a training over its last steps."""

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averaging(EMAWeightAveraging):
    """Keep an exponential average of the weights on the device that trains them, and end with it.

    Lightning makes the average before it moves the network to a GPU, so its own average stays on the CPU: each step
    would copy every weight there, one after the other.

    Args:
        decay: Share of the earlier average that each step keeps, in (0, 1).
    """

    def __init__(self, decay: float):
        super().__init__(decay=decay)
        self._decay = decay

    @property
    def state_key(self) -> str:
        """The key of its state in a checkpoint, which is that of checkpoints of earlier versions."""
        return EMAWeightAveraging.__qualname__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average. Only a GPU averages all weights in one operation, which rounds differently."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None and self._device.type != "cpu":
            self._average_model.avg_fn = None
            self._average_model.multi_avg_fn = get_ema_multi_avg_fn(self._decay)
