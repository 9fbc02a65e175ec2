"""Read what W&B wrote offline."""

import subprocess
import sys
from pathlib import Path


def inspect(folder: Path, *options: str) -> str:
    """What W&B itself reads from the one offline run in a run folder."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(file), "--json", *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return result.stdout


def files_with(text: str, *folders: Path) -> list[Path]:
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    return [file for file in files if text.encode() in file.read_bytes()]
