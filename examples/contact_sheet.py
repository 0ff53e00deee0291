"""Draw a sheet of pictures, one row a prompt, in the styles that the service has.

python examples/contact_sheet.py "a smiling cat" "a red apple" --out sheet.png
"""

import argparse

from PIL import Image

from smalti import Client

GAP_PX = 8


def main() -> None:
    arguments = parse()
    with Client(arguments.url) as client:
        pipeline = next(each for each in client.pipelines() if each.takes_prompt)
        styles = pipeline.labels.get("style", ())[: arguments.columns] or (None,)
        requests = [
            {"prompt": prompt, "style": style, "seed": arguments.seed}
            for prompt in arguments.prompts
            for style in styles
        ]
        results = client.map("generate", requests, pipeline=pipeline.name, progress=True)
        pictures = [result.outputs[0].image() for result in results]
    sheet_of(pictures, len(styles)).save(arguments.out)
    print(f"{arguments.out}: {len(arguments.prompts)} prompts in {len(styles)} styles")


def sheet_of(pictures: list[Image.Image], num_columns: int) -> Image.Image:
    """Return pictures of one size in rows."""
    width, height = (side + GAP_PX for side in pictures[0].size)
    num_rows = -(-len(pictures) // num_columns)
    sheet = Image.new("RGB", (num_columns * width + GAP_PX, num_rows * height + GAP_PX), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, num_columns)
        sheet.paste(picture, (column * width + GAP_PX, row * height + GAP_PX))
    return sheet


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw a sheet of pictures, one row a prompt.")
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--out", default="sheet.png")
    parser.add_argument("--columns", type=int, default=4, help="styles, at most")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    return parser.parse_args()


if __name__ == "__main__":
    main()
