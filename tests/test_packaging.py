"""The wheel and the source distribution: their content, and that what they install works from any folder."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from deephash_cli import __version__
from deephash_cli.choices import choices

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed, and return its output."""
    result = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def build(source: Path, out: Path, kind: str) -> Path:
    """Build a distribution with the packages that are installed, without the network."""
    call(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, source, cwd=out)
    (made,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def is_of_a_run(name: str) -> bool:
    """Whether a file lies in a folder of runs, and not in the room of the package that has this name."""
    return "/runs/" in name.replace("deephash_cli/runs/", "deephash_cli/")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution, and a wheel that was built from it, as in a release."""
    place = tmp_path_factory.mktemp("dist")
    sdist = build(ROOT, place, "sdist")
    with tarfile.open(sdist) as tar:
        tar.extractall(place, filter="data")
    wheel = build(place / sdist.name.removesuffix(".tar.gz"), place, "wheel")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """A new environment with the wheel, which uses the dependencies of this environment."""
    place = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", place, cwd=place)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    call(
        sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "install", "--no-deps",
        "--no-index", "--quiet", "--target", site, distributions[1], cwd=place,
    )  # fmt: skip
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # it comes after the wheel on the path
    return place / "bin" / "python", site


def deephash(installed, *arguments: str, cwd: Path, **environment: str) -> str:
    python, _ = installed
    code = "import sys; from deephash_cli.cli import main as cli; sys.argv[0] = 'deephash'; cli.main()"
    return call(python, "-c", code, *arguments, cwd=cwd, **environment)


def names_in(archive: Path) -> list[str]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.namelist()
    with tarfile.open(archive) as sdist:
        return sdist.getnames()


def test_what_is_in_the_wheel(distributions):
    wheel = distributions[1]
    assert wheel.stat().st_size < 6_000_000
    assert wheel.name == f"deephash-{__version__}-py3-none-any.whl"
    names = set(names_in(wheel))
    for file in [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "deephash_cli").rglob("*.py")]:
        inside = file.relative_to(ROOT).as_posix()
        assert (f"deephash_cli/{inside}" if inside.startswith("conf/") else inside) in names
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "LICENSE"):
        assert f"deephash_cli/data/fashion_mini/{name}" in names
    for room in ("commands/report", "commands/serve", "cli/help"):
        files = [file.name for file in (ROOT / "deephash_cli" / room).glob("*.*") if file.is_file()]
        assert len(files) > 4
        assert {f"deephash_cli/{room}/{name}" for name in files} <= names
    info = f"deephash-{__version__}.dist-info"
    assert {f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} <= names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"deephash_cli", info}, "nothing else may be installed into site-packages"
    assert not [name for name in names if name.endswith(".pyc") or is_of_a_run(name) or "/tests/" in name]


def test_the_metadata(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        info = f"deephash-{__version__}.dist-info"
        metadata = wheel.read(f"{info}/METADATA").decode()
        scripts = wheel.read(f"{info}/entry_points.txt").decode()
    assert "deephash = deephash_cli.cli.entry:main" in scripts
    assert "Requires-Python: <3.14,>=3.11" in metadata
    assert "Requires-Dist: pytorch-lightning<3,>=2.6.6" in metadata, "versions up to 2.6.5 run code from a checkpoint"
    assert "Requires-Dist: torch>=2.10" in metadata
    assert "License-Expression: Apache-2.0" in metadata


def test_what_is_in_the_source_distribution(distributions):
    top = f"deephash-{__version__}"
    names = set(names_in(distributions[0]))
    for name in ("pyproject.toml", "README.md", "LICENSE", "conf/train.yaml", "deephash_cli/cli/main.py", "PKG-INFO"):
        assert f"{top}/{name}" in names
    assert not [name for name in names if "/.venv" in name or is_of_a_run(name) or name.endswith(".pyc")]


def test_the_wheel_from_the_checkout_is_the_same(distributions, tmp_path):
    assert sorted(names_in(build(ROOT, tmp_path, "wheel"))) == sorted(names_in(distributions[1]))


def test_the_installed_command_works_from_another_folder(installed, tmp_path):
    where = call(
        installed[0],
        "-c",
        "import deephash_cli; from deephash_cli.choices import CONF_DIR; print(deephash_cli.__file__, CONF_DIR)",
        cwd=tmp_path,
    ).split()
    assert where == [str(installed[1] / "deephash_cli" / "__init__.py"), str(installed[1] / "deephash_cli" / "conf")]
    methods = ", ".join(choices("method"))
    assert f"method      {methods}\n" in deephash(installed, "train", "--help", cwd=tmp_path)
    assert "bits: 12\n" in deephash(installed, "train", "bits=12", "--cfg", "job", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "home").mkdir()
    home = {"HOME": str(tmp_path / "home"), "DEEPHASH_CACHE_DIR": str(tmp_path / "cache")}
    short = ["trainer=debug", "model=small_cnn", "model.image_size=16", "bits=12", "run_dir=run"]
    out = deephash(installed, "train", *short, cwd=tmp_path, **home)
    assert "run folder: run" in out
    deephash(installed, "eval", "run=run", "output=again.json", cwd=tmp_path, **home)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "run" / "metrics.json").read_bytes()
    assert list((tmp_path / "home").iterdir()) == []


def test_an_editable_installation_finds_the_configuration_beside_the_package(tmp_path):
    code = "from deephash_cli.choices import CONF_DIR; print(CONF_DIR)"
    where = Path(call(sys.executable, "-c", code, cwd=tmp_path).strip())
    assert (where / "train.yaml").is_file()
    assert where.name == "conf"
