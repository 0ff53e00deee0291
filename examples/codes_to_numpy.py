"""Turn a folder of pictures into one array of codes, and the array into pictures again.

python examples/codes_to_numpy.py encode pictures --out codes.npz
python examples/codes_to_numpy.py decode codes.npz --out decoded
"""

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from smalti import Client, Result

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FILES_PER_JOB = 16  # at most 64, and 64 MiB


def encode(client: Client, folder: Path, out: Path) -> None:
    """Write the codes of all pictures in a folder, their names, and the tokenizer that made them."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    results = list(client.map("encode", chunks(paths), pipeline=client.pipelines()[0].name, progress=True))
    codes = np.concatenate([result.codes.numpy() for result in results if result.codes])
    tokenizer = next(result.codes.tokenizer for result in results if result.codes)
    np.savez_compressed(out, codes=codes, names=[path.name for path in paths], tokenizer=tokenizer)
    print(f"{out}: codes {codes.shape} {codes.dtype} of tokenizer {tokenizer}")


def decode(client: Client, source: Path, out: Path) -> None:
    """Write the pictures that codes stand for, under the names of those they were made of."""
    out.mkdir(parents=True, exist_ok=True)
    kept = np.load(source)
    requests = list(chunks(kept["codes"]))
    results = client.map(
        "decode", (np.stack(each) for each in requests), tokenizer=str(kept["tokenizer"]), progress=True
    )
    names = iter(kept["names"])
    for result in results:
        save(result, names, out)
    print(f"{out}: {len(kept['codes'])} pictures")


def save(result: Result, names: Iterator[str], out: Path) -> None:
    """Write the pictures of one job."""
    for output in result.outputs:
        output.save(out / Path(next(names)).with_suffix(".png"))


def chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield as many items as fit a job, and again."""
    remaining = iter(items)
    while chunk := list(islice(remaining, FILES_PER_JOB)):
        yield chunk


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Turn pictures into an array of codes, and back.")
    parser.add_argument("action", choices=("encode", "decode"))
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    with Client(arguments.url) as client:
        action = encode if arguments.action == "encode" else decode
        action(client, arguments.source, arguments.out)


if __name__ == "__main__":
    main()
