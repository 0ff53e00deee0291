"""The client's distribution: what is in its wheel, and that it leaves the service's alone."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENT = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())["project"]
SERVICE = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_client_and_service_share_no_package_and_no_command():
    service_packages = {
        name.rstrip("*") for name in SERVICE["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    packages = {path.parent.name for path in (ROOT / "client" / "src").glob("*/__init__.py")}
    assert packages == {"smalti"}
    assert not packages & service_packages
    assert CLIENT["name"] != SERVICE["project"]["name"]
    assert "scripts" not in CLIENT


def test_it_needs_httpx_and_pydantic_alone():
    assert {each.partition(">=")[0] for each in CLIENT["dependencies"]} == {"httpx", "pydantic"}


@pytest.mark.ci
def test_a_wheel_is_built_and_imported_on_its_own(tmp_path):
    shutil.copytree(
        ROOT / "client", tmp_path / "client", ignore=shutil.ignore_patterns("*.egg-info", "build")
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, tmp_path / "client"]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("smalti_client-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert {name.split("/")[0] for name in names} == {
        "smalti",
        f"smalti_client-{CLIENT['version']}.dist-info",
    }
    assert "smalti/py.typed" in names
    source = "import smalti; from smalti.service import _version; print(smalti.__file__, _version())"
    told = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.split() == [str(tmp_path / "installed" / "smalti" / "__init__.py"), CLIENT["version"]]
