"""How fast a data set becomes codes: `python -m benchmarks.bulk --out FOLDER [--pictures 5000]`.

Makes JPEG files of 256x256 pixels, measures the tokenizer alone on pixels in memory and one process that
decodes alone, encodes all files in bulk with `smalti encode --out`, and measures the tokenizer again. With
``--kills``, a second run is killed so often, and must end in the same bytes. Writes FOLDER/bulk.json.
"""

import argparse
import io
import json
import os
import platform
import random
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from bulk.pictures import read_picture
from models.media.image import ImageSpec, load_image
from models.media.isolated import IsolatedProcess, Limits

ROOT = Path(__file__).parent.parent
SIDE_PX, QUALITY = 256, 90
NUM_ALONE = 256  # pictures for a measure of a stage alone
SHARD_SIZE = 250


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--pipeline", default="emoji-64")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the tokenizer alone, twice")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = options.out / "pictures"
    write_pictures(pictures, options.pictures)
    before = tokenizer_rate(options.pipeline, pictures, options.seconds)
    decoding = decoding_rate(options.pipeline, pictures)
    run = encode(options.out / "codes", pictures, options.pipeline)
    after = tokenizer_rate(options.pipeline, pictures, options.seconds)
    tokenizer = statistics.mean([before, after])
    num_cores = os.cpu_count() or 1
    # One picture takes 1 / tokenizer of all cores and 1 / decoding of one: what both together leave.
    ceiling = 1 / (1 / tokenizer + 1 / (decoding * num_cores))
    figures = {
        "machine": f"{platform.machine()}, {num_cores} cores",
        "pictures": options.pictures,
        "tokenizer_alone_per_s": [round(before, 1), round(after, 1)],
        "decoding_alone_per_s_and_core": round(decoding, 1),
        "limit_of_both_per_s": round(ceiling, 1),
        **run,
        "share_of_tokenizer": round(run["per_s"] / tokenizer, 3),
        "share_of_limit_of_both": round(run["per_s"] / ceiling, 3),
    }
    if options.kills:
        figures["same_bytes_after_kills"] = kill_and_compare(options, pictures, run["elapsed_s"])
    print(json.dumps(figures, indent=2))
    (options.out / "bulk.json").write_text(json.dumps(figures, indent=2) + "\n")


def write_pictures(folder: Path, num_pictures: int) -> None:
    """Write JPEG files of smooth colours with noise, in folders of 1000, those that are missing."""
    for number in range(num_pictures):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        chance = np.random.default_rng(number)
        coarse = Image.fromarray(chance.integers(0, 256, (6, 6, 3), np.uint8))
        smooth = np.asarray(coarse.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = smooth + chance.integers(-12, 13, (SIDE_PX, SIDE_PX, 1), np.int16)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
        path.write_bytes(buffer.getvalue())


def some_files(folder: Path) -> list[bytes]:
    """Return the bytes of some pictures."""
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:NUM_ALONE]]


def medium_of_pipeline(name: str) -> ImageSpec:
    """Return what a pipeline takes."""
    from workers.catalog import Catalog

    medium = Catalog.load(ROOT / "weights").spec(name).medium
    assert isinstance(medium, ImageSpec)
    return medium


def tokenizer_rate(name: str, pictures: Path, seconds: float) -> float:
    """Return pictures a second of the tokenizer alone, on pixels in memory, in a process of its own."""
    call = f"measure_tokenizer({name!r}, {str(pictures)!r}, {seconds})"
    script = f"from benchmarks.bulk import measure_tokenizer; {call}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(run.stdout)


def measure_tokenizer(name: str, pictures: str, seconds: float) -> None:
    """Print pictures a second of the tokenizer's calls alone, as the engine makes them, for some seconds."""
    import torch

    from models.media.image import IMAGE
    from models.stage import Sample, SampleSpec
    from workers.catalog import Catalog
    from workers.engine.loading import load_engine
    from workers.settings import WorkerSettings

    settings = WorkerSettings(weights_dir=ROOT / "weights")
    engine = load_engine(settings, Catalog.load(settings.weights_dir), [name])
    served = engine._served[name]
    medium = served.pipeline.spec.medium
    shape = medium.width_px, medium.height_px, medium.channels
    arrays = [load_image(data, *shape) for data in some_files(Path(pictures))]
    signals = [torch.tensor(IMAGE.to_signal(array)).to(served.pipeline.device) for array in arrays]

    @torch.inference_mode()
    def encode_all() -> None:
        for start in range(0, len(signals), settings.max_batch_size):
            part = signals[start : start + settings.max_batch_size]
            samples = [Sample(SampleSpec(), value=signal) for signal in part]
            served.stages.encode.step(samples, served.run)

    encode_all()
    began_s, num_done = time.perf_counter(), 0
    while time.perf_counter() - began_s < seconds:
        encode_all()
        num_done += len(signals)
    print(num_done / (time.perf_counter() - began_s))


def decoding_rate(name: str, pictures: Path) -> float:
    """Return pictures a second of one process that decodes."""
    medium = medium_of_pipeline(name)
    shape = medium.width_px, medium.height_px, medium.channels
    calls = [(read_picture, (data, *shape)) for data in some_files(pictures)]
    process = IsolatedProcess(Limits())
    try:
        list(process.results(calls[:8]))
        began_s = time.perf_counter()
        for _ in range(4):
            list(process.results(calls))
        return 4 * len(calls) / (time.perf_counter() - began_s)
    finally:
        process.end()


def command(folder: Path, pictures: Path, pipeline: str) -> list[str]:
    """Return the command that encodes the pictures."""
    options = ["--out", str(folder), "--pipeline", pipeline, "--shard-size", str(SHARD_SIZE)]
    return [sys.executable, "-P", "-m", "app.cli.main", "encode", str(pictures), *options]


def environment() -> dict[str, str]:
    """Return that of the commands."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"SMALTI_WEIGHTS_DIR": str(ROOT / "weights"), "PYTHONPATH": path}


def encode(folder: Path, pictures: Path, pipeline: str) -> dict[str, object]:
    """Encode all pictures with the command; return its rate, its last line, and its memory over time."""
    process = subprocess.Popen(
        command(folder, pictures, pipeline), stderr=subprocess.PIPE, text=True, env=environment()
    )
    resident_mib: list[float] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(1.0):
            try:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                return
            resident_mib.append(pages * resource.getpagesize() / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stderr is not None
    lines = process.stderr.read().splitlines()
    is_over.set()
    watcher.join()
    if process.wait():
        raise SystemExit(f"encode failed: {lines[-1]}")
    told = next(line for line in lines if "a second in" in line)
    rate, _, elapsed = told.partition("; ")[2].partition(" a second in ")
    tenth = max(1, len(resident_mib) // 10)
    return {
        "per_s": float(rate),
        "elapsed_s": float(elapsed.partition(" s")[0]),
        "told": told,
        "resident_mib_after_a_tenth": round(statistics.mean(resident_mib[tenth : 2 * tenth]), 0),
        "resident_mib_at_the_end": round(statistics.mean(resident_mib[-tenth:]), 0),
    }


def kill_and_compare(options: argparse.Namespace, pictures: Path, elapsed_s: float) -> bool:
    """Encode once more, killed so often at any moment; say whether the bytes are the same."""
    folder, chance = options.out / "killed", random.Random(0)
    for _ in range(options.kills):
        process = subprocess.Popen(
            command(folder, pictures, options.pipeline), stderr=subprocess.DEVNULL, env=environment()
        )
        time.sleep(8 + chance.random() * 2 * elapsed_s / (options.kills + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(folder, pictures, options.pipeline), check=True, env=environment())
    return contents(folder) == contents(options.out / "codes")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


if __name__ == "__main__":
    main()
