"""Fixtures: the command line in this process, a folder of tiny images, isolation from the user's own machine."""

import builtins
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny tensors are slower on several threads
os.environ["COLUMNS"] = "200"  # of whatever starts the tests: consoles look when they are made

import browser
import numpy as np
import pytest
from PIL import Image

from deephash_cli import choices
from deephash_cli.cli import main as cli

# As in the documentation: one folder of choices, read from the disk, so that a new file is a tested file.
METHODS = choices.choices("method")


def sampled(cases, every: int = 2) -> list:
    """Each second case, or third, ..., as parameters of a test; the cases in between are slow tests."""
    return [pytest.param(case, marks=[pytest.mark.slow] * (n % every > 0)) for n, case in enumerate(cases)]


# A run of seconds: a network from scratch on small images, two epochs.
QUICK = (
    "model=small_cnn",
    "model.image_size=16",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "loader.num_workers=0",
    "checkpoint.every_seconds=0",
    "logger=none",
)


# What `retrieval.caveats` says of few queries, few items, and bits that so few items do not need.
TINY = re.compile(
    r"warning: (every metric is an estimate from only|the database has only|\d+ of \d+ bits are the same|"
    r"the \d+ database items have only|all \d+ database items have the same code)"
)


@dataclass(frozen=True)
class Result:
    """What a command left behind on the screen, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def surprises(self) -> str:
        """Return the error output without the warnings that the tiny data sets of the tests deserve."""
        lines = self.err.splitlines(keepends=True)
        return "".join(line for line in lines if not TINY.match(line))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch finds no CUDA device")


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with empty caches, no W&B key, and no colours."""
    place = tmp_path_factory.mktemp("place")
    for name in ("work", "home", "cache"):
        (place / name).mkdir()
    monkeypatch.chdir(place / "work")
    monkeypatch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
    monkeypatch.setenv("HOME", str(place / "home"))
    for name in [name for name in os.environ if name.startswith(("WANDB_", "DEEPHASH_DATA", "DEEPHASH_OUTPUT"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def deephash(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """``deephash("train", "bits=12")``: run a command line in this process."""

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = cli.run(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def write_photos(root: Path, classes: Sequence[str] = ("bag", "boot", "coat"), each: int = 20) -> Path:
    """A folder of small JPEG files, one sub-folder a class; each class has a colour of its own."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 120, (20, 20, 3))
            pixels[..., number % 3] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:03}.jpg")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Overrides that train on 60 tiny images of three classes."""
    return ["dataset=image_folder", f"dataset.root={write_photos(tmp_path / 'photos')}", *QUICK]


@pytest.fixture
def uninstall(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``uninstall("faiss")``: from here on, importing it fails."""

    def call(package: str) -> None:
        original = builtins.__import__

        def without(name, *arguments, **options):
            if name.split(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)
            return original(name, *arguments, **options)

        monkeypatch.setattr(builtins, "__import__", without)

    return call


@pytest.fixture
def page(tmp_path: Path) -> Iterator[browser.Page]:
    """A page of a real browser."""
    if browser.CHROMIUM is None:
        pytest.skip("there is no Chromium or Chrome on the path")
    with browser.page(tmp_path / "profile") as opened:
        yield opened


@dataclass(frozen=True)
class Hashed:
    """A finished run on tiny photos. Not to be written to: tests share it."""

    run: Path
    photos: Path


@pytest.fixture(scope="session")
def hashed(tmp_path_factory: pytest.TempPathFactory) -> Hashed:
    """ITQ, 12 bits, on 60 photos of three classes."""
    place = tmp_path_factory.mktemp("hashed")
    photos = write_photos(place / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
        data = ("dataset=image_folder", f"dataset.root={photos}")
        assert cli.run(["train", "method=itq", "bits=12", *QUICK, *data, f"run_dir={place / 'run'}"]) == 0
    return Hashed(place / "run", photos)
