"""Draw every line of a file. Those that are drawn already are skipped, so it can be stopped and run again.

python examples/draw_list.py prompts.txt --out pictures
"""

import argparse
import sys
from pathlib import Path

from smalti import Client, SmaltiError


def main() -> int:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    prompts = [line.strip() for line in arguments.prompts.read_text().splitlines() if line.strip()]
    paths = [arguments.out / f"{number:06}.png" for number in range(len(prompts))]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    # The seed is the line's number: the same file gives the same pictures, whatever was done before.
    requests = [{"prompt": prompts[number], "seed": number} for number in missing]
    num_failed = 0
    with Client(arguments.url, retry_s=600) as client:
        results = client.map(
            "generate", requests, priority="batch", return_errors=True, progress=True,
            concurrency=arguments.concurrency,
        )  # fmt: skip
        for number, result in zip(missing, results, strict=True):
            if isinstance(result, SmaltiError):
                num_failed += 1
                print(f"line {number + 1}: {result}", file=sys.stderr)
                continue
            part = paths[number].with_suffix(".part")
            part.write_bytes(result.outputs[0].bytes())
            part.rename(paths[number])  # a file that is there is whole
    print(f"{len(missing) - num_failed} drawn, {num_failed} failed, {len(prompts) - len(missing)} were there")
    return 1 if num_failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw every line of a file.")
    parser.add_argument("prompts", type=Path, help="a text file, one prompt a line")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
