"""requirements.lock names every package of the environment of a developer, with its version and its hashes."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
ENTRY = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?: ; (?P<marker>.+?))? \\\n(?P<rest>(?:    .*\n)*)", re.M)


def entries():
    text = (ROOT / "requirements.lock").read_text()
    found = [match.groupdict() for match in ENTRY.finditer(text)]
    assert (
        len(found) == len(re.findall(r"^[^ #\n]", text, re.M)) > 100
    )  # nothing else stands in it: no address, no path
    return found


def test_every_entry_has_hashes_and_only_packages_of_the_index():
    for entry in entries():
        hashes = [line for line in entry["rest"].splitlines() if not line.startswith("    #")]
        assert hashes, entry["name"]
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes), entry["name"]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_it_satisfies_what_the_project_asks_for(python):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": sys.platform}
    locked = {
        entry["name"]: entry["version"]
        for entry in entries()
        if entry["marker"] is None or Marker(entry["marker"]).evaluate(environment)
    }
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        asked = Requirement(text)
        assert locked[canonicalize_name(asked.name)] in asked.specifier, f"make lock: {text}"
