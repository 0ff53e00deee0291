"""The container files, held against the code they start. No container engine is needed."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import AppSettings
from workers.settings import ENV_PREFIX, WorkerSettings

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = (ROOT / "docker-compose.yml").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_compose_builds_stages_that_exist():
    services = yaml.safe_load(COMPOSE)["services"]
    stages = set(re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.M))
    assert {service["build"]["target"] for service in services.values() if "build" in service} <= stages
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))
    for service in services.values():
        assert set(service.get("build", {}).get("args", {})) <= arguments


def test_images_install_the_extras_that_are_asked_for(tmp_path):
    def told(command: str, extras: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", command], env={"PATH": f"{Path(sys.executable).parent}:/bin:/usr/bin", "EXTRAS": extras},
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    known = PROJECT["project"]["optional-dependencies"]
    (of_api,) = re.findall(r"^RUN (python -c .*) > /tmp/extras.txt$", DOCKERFILE, re.M)
    assert told(of_api, "") == ""
    assert told(of_api, "s3,otel").splitlines() == known["s3"] + known["otel"]
    with pytest.raises(subprocess.CalledProcessError):
        told(of_api, "s4")
    (of_worker,) = re.findall(r"pip install (\".*/wheels/.*\")$", DOCKERFILE, re.M)
    (tmp_path / "smalti-1.whl").touch()
    command = "echo " + of_worker.replace("/wheels", str(tmp_path))
    assert told(command, "") == f"{tmp_path}/smalti-1.whl"
    assert told(command, "s3,otel") == f"{tmp_path}/smalti-1.whl[s3,otel]"


def test_compose_keeps_the_queue_and_shares_the_results():
    compose = yaml.safe_load(COMPOSE)
    services = compose["services"]
    named = {volume.split(":")[0] for service in services.values() for volume in service["volumes"]}
    assert named == set(compose["volumes"])
    assert services["api"]["volumes"] == services["worker"]["volumes"]
    assert "--appendonly yes" in " ".join(services["redis"]["command"])
    assert "ports" not in services["redis"]


def test_the_gpu_reservation_is_right_once_uncommented():
    uncommented = re.sub(
        r"^    # (deploy:(?:\n    # .*)*)",
        lambda found: found[0].replace("    # ", "    "),
        COMPOSE,
        flags=re.M,
    )
    device = yaml.safe_load(uncommented)["services"]["worker"]["deploy"]["resources"]["reservations"][
        "devices"
    ][0]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_images_set_only_settings_that_exist():
    known = {
        f"{ENV_PREFIX}{name.upper()}" for kind in (AppSettings, WorkerSettings) for name in kind.model_fields
    }
    used = set(re.findall(rf"\b{ENV_PREFIX}\w+", DOCKERFILE + COMPOSE))
    assert used
    assert used <= known


def test_images_run_as_an_ordinary_user_and_check_their_health():
    for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]:
        if re.match(r"\S+ AS (api|worker)\n", stage):
            assert re.search(r"^USER [1-9]\d+$", stage, re.M)
            assert "HEALTHCHECK" in stage


def test_the_build_context_has_every_package():
    allowed = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M))
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages | {"pyproject.toml", "weights", PROJECT["project"]["readme"]} <= allowed


def test_the_api_group_bounds_versions_as_the_project_does():
    group = {Requirement(each).name: each for each in PROJECT["dependency-groups"]["api"]}
    project = {Requirement(each).name: each for each in PROJECT["project"]["dependencies"]}
    assert group.items() <= project.items()
    assert "torch" not in group


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_api_needs_no_more_than_its_group():
    source = "import sys; before = set(sys.modules); import app.main, app.cli.main, uvicorn; print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    result = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    owners = packages_distributions()
    used = {canonicalize_name(name) for module in result.stdout.split() for name in owners.get(module, ())}
    # Imported by uvicorn, anyio, redis and what these import, where they happen to be.
    optional = {"smalti", "watchfiles", "sniffio", "psutil", "cryptography"} | _closure(
        PROJECT["project"]["optional-dependencies"]["otel"]
    )
    assert used - _closure(PROJECT["dependency-groups"]["api"]) - optional == set()


def test_the_scripts_of_the_queue_are_packaged():
    packaged = {
        path
        for package, patterns in PROJECT["tool"]["setuptools"].get("package-data", {}).items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    scripts = set((ROOT / "workers").rglob("*.lua"))
    assert scripts
    assert scripts <= packaged


def _closure(requirements: list[str]) -> set[str]:
    """Return the names of all packages that these requirements bring."""
    names: set[str] = set()
    waiting = [Requirement(each) for each in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        is_wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if is_wanted and name not in names:
            names.add(name)
            waiting += [Requirement(each) for each in requires(name) or []]
    return names
