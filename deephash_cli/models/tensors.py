"""Read files of tensors: the only place of the package that opens what ``torch.save`` writes."""

from pathlib import Path
from typing import Any

import torch

from deephash_cli.errors import ArtifactError, first_line


def load_tensors(file: Path, what: str) -> Any:
    """Read a file of ``torch.save`` onto the CPU. Only tensors and plain values are unpickled, so no code can run.

    Args:
        file: File to read, which may come from somebody else.
        what: What the file should be, for messages, such as "a checkpoint".

    Raises:
        ArtifactError: If the file is missing or damaged, or holds anything other than tensors and plain values.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise ArtifactError(f"{file} could not be read as {what}: {reason}") from error
    except Exception as error:  # damaged bytes can make torch.load raise any kind of error
        # PyTorch's own message advises to switch the protection off
        foreign = "GLOBAL" in str(error)
        reason = (
            "it holds objects other than tensors and plain values, which deephash never loads because they can run code"
            if foreign
            else "it is damaged, or torch.save did not write it"
        )
        raise ArtifactError(f"{file} could not be read as {what}: {reason}") from error
