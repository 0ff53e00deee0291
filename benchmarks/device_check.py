"""Check a GPU machine, and measure it: `python benchmarks/device_check.py --out FOLDER`. Under eight minutes.

For a bare machine with only torch, triton and numpy, and no network: `--wheels FOLDER` names wheels of all
else, which are installed into a folder of their own. Parts, each in a process with a time limit of its own:

device     what is here
contract   300 mixed requests, together and alone, bit for bit (contract.py)
suite      the engine's tests on the device, and those that need a GPU
gpu        every figure that has an aim (gpu.py), a process for each of its parts

Each writes its JSON to FOLDER as it ends, so that a late failure loses nothing; summary.txt is written after
each, too, and log.txt has what they said. Exits with 1 if a part failed. `--device cpu --scale small` shows
that it runs.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
ALREADY_THERE = ("torch", "triton", "numpy")  # as others there were built for them
LIMIT_S = 470.0  # of all parts together
OURS = ("torch", "triton", "numpy", "pydantic", "fastapi", "rq", "safetensors")


@dataclass(frozen=True)
class Part:
    """A command, and how long it may take."""

    name: str
    command: Sequence[str | Path]
    limit_s: float


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=["full", "small"], default="full")
    parser.add_argument("--only", help="names of parts, with commas between them: contract, gpu wide, …")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + LIMIT_S
    out, device = arguments.out.resolve(), arguments.device
    with tempfile.TemporaryDirectory() as site, (out / "log.txt").open("wb") as log:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SMALTI_")},
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
            "TEST_DEVICE": device,  # of the engine's tests
        }
        folders = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        if arguments.wheels is not None:
            wheels = sorted(arguments.wheels.glob("*.whl"))
            needed = [wheel for wheel in wheels if wheel.name.partition("-")[0] not in ALREADY_THERE]
            install(needed, Path(site), log)
            folders.insert(1, site)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
        describe(out, device, environment)
        outcomes: dict[str, str] = {}
        chosen = arguments.only.split(",") if arguments.only else None
        for part in parts(out, device, is_small=arguments.scale == "small"):
            if chosen is None or part.name in chosen:
                outcomes[part.name] = take(part, environment, log, ends_at - time.monotonic())
            (out / "summary.txt").write_text(summary(out, outcomes))
    print((out / "summary.txt").read_text())
    sys.exit(0 if all(outcome.startswith("ended") for outcome in outcomes.values()) else 1)


def parts(out: Path, device: str, *, is_small: bool) -> list[Part]:
    """Return the parts in the order of what counts most."""
    python, scale = sys.executable, "small" if is_small else "full"
    contract = [python, HERE / "contract.py", "--out", out, "--device", device]
    tests = [ROOT / "tests" / "workers" / "engine", ROOT / "tests" / "training" / "test_on_gpu.py"]
    suite = [python, "-m", "pytest", "-q", "-m", "not ci and not hours", "-p", "no:cacheprovider"]
    suite += ["-p", "no:benchmark"]  # that plugin, where a machine has it, warns of xdist, which ends the run
    if is_small:
        contract += ["--pipelines", "fashion-mnist", "--requests", "6", "--max-batch-size", "2"]
        contract += ["--max-steps", "4", "--num-probes", "8", "--rows", "2"]
        tests = [ROOT / "tests" / "workers" / "engine" / "test_rows.py", tests[1]]
    else:
        suite += ["--numprocesses", "4"]
    suite += [f"--junitxml={out / 'suite.xml'}", *map(str, tests)]
    figures = [python, HERE / "gpu.py", "--out", out, "--device", device, "--scale", scale, "--only"]
    limits_s = {"wide": 80, "served": 50, "calls": 80, "training": 70, "http": 100, "encode": 70}
    return [
        Part("contract", contract, 110),
        *(Part(f"gpu {name}", [*figures, name], limit_s) for name, limit_s in limits_s.items()),
        Part("suite", suite, 110),
    ]


def take(part: Part, environment: dict[str, str], log: Any, left_s: float) -> str:
    """Run a part to its end, or to its limit; return in words what came of it."""
    limit_s = min(part.limit_s, left_s)
    if limit_s < 1:
        return "not begun: no time was left"
    say(f"{part.name}, at most {limit_s:.0f} s")
    began_at = time.monotonic()
    log.write(f"\n===== {part.name}\n".encode())
    log.flush()
    process = subprocess.Popen(
        part.command,
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        status = None
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)  # it ends the service that it started
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also what it left running
    process.wait()
    seconds = time.monotonic() - began_at
    if status is None:
        return f"cut off after {seconds:.0f} s"
    return f"ended in {seconds:.0f} s" if status == 0 else f"FAILED with {status} after {seconds:.0f} s"


def install(wheels: Sequence[Path], site: Path, log: Any) -> None:
    """Install wheels into a folder, and say there what version of Smalti this is."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(site)]
    say(f"installing {len(wheels)} wheels")
    subprocess.run([*pip, *map(str, wheels)], stdout=log, stderr=subprocess.STDOUT, check=True)
    number = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    about = site / f"smalti-{number}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: smalti\nVersion: {number}\n")


# --- what came of it ---------------------------------------------------------------------------------------


def describe(out: Path, device: str, environment: dict[str, str]) -> None:
    """Write device.json: the GPU, the machine and versions."""
    code = (
        "import json, torch; from benchmarks.device_check import describe_here;"
        f" print(json.dumps(describe_here(torch, {device!r})))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True
    )
    (out / "device.json").write_bytes(found.stdout)


def describe_here(torch: Any, device: str) -> dict[str, Any]:
    """Return what this process finds."""
    found: dict[str, Any] = {"device": device, "python": platform.python_version(), "cores": os.cpu_count()}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    for name in OURS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def summary(out: Path, outcomes: dict[str, str]) -> str:
    """Return what was aimed at and what was measured, as plain text."""
    lines = [
        " ".join(f"{name} {value}," for name, value in read(out / "device.json").items()).rstrip(","),
        "",
    ]
    lines += [f"{name:<14}{outcome}" for name, outcome in outcomes.items()]
    if contract := read(out / "contract.json"):
        lines += ["", f"contract: {contract['num_differing']} of {contract['num_requests']} requests differ"]
        lines += [f"  {name} {verdict}" for name, verdict in contract["verdicts"].items()]
    if (out / "suite.xml").exists():
        suites = ElementTree.parse(out / "suite.xml").getroot().iter("testsuite")
        counts = [{key: int(suite.get(key, 0)) for key in COUNTED} for suite in suites]
        lines += ["", "suite: " + ", ".join(f"{sum(each[key] for each in counts)} {key}" for key in COUNTED)]
        cases = ElementTree.parse(out / "suite.xml").getroot().iter("testcase")
        lines += [f"  failed: {case.get('name')}" for case in cases if case.find("failure") is not None]
    figures = read(out / "gpu.json")
    if figures:
        lines += ["", f"matrix rate {figures['matrix_tflops_per_s']:.1f} TFLOP/s; scale {figures['scale']}"]
    for each in (figure for part in figures.get("parts", {}).values() for figure in part):
        lines.append(line_of(each))
    return "\n".join(lines) + "\n"


COUNTED = ("tests", "failures", "errors", "skipped")


def line_of(figure: dict[str, Any]) -> str:
    """Return a figure with its aim, in a line."""
    share, aims = figure["share_of_matrix_rate"], []
    if figure["aim"] is not None:
        aims.append(f"{'≤' if figure['unit'] == 'ms' else '≥'} {figure['aim']:g}")
    if figure["aimed_share"] is not None:
        aims.append(f"≥ {figure['aimed_share']:.0%} of the rate")
    met = {True: "met", False: "NOT MET", None: ""}[figure["is_met"]]
    return (
        f"  {figure['name']:<58}{figure['value']:>10.4g} {figure['unit']:<9}"
        f"{'' if share is None else f'{share:.1%}':>7}  {' and '.join(aims):<24}{met}".rstrip()
    )


def read(path: Path) -> dict[str, Any]:
    """Return what a part wrote; nothing where it didn't come to that."""
    return json.loads(path.read_text()) if path.exists() else {}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
