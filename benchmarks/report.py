"""Draw the tables and the plot from results.json: `python benchmarks/report.py [FOLDER]`.

The tables go to standard output, and between the markers in the folder's README.md if it has one.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
SMALTI, OTHER = "#1f6f8b", "#c98b2b"
Figures = dict[str, Any]


def main() -> None:
    """Report."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    results = json.loads((folder / "results.json").read_text())
    text = "\n\n".join(sections(results))
    print(text)
    readme = folder / "README.md"
    if readme.exists():
        between = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
        readme.write_text(between.sub(lambda _: f"{BEGIN}\n{text}\n{END}", readme.read_text()))
    draw(results["parts"], folder / "serving.png")


# --- tables ------------------------------------------------------------------------------------------------


def sections(results: Figures) -> list[str]:
    """Return what was measured, as Markdown."""
    parts = results["parts"]
    drawn = {"a": engine_table, "b": http_table, "c": arrivals_table, "d": others_table, "e": empty_table}
    return [setting(results), *(drawn[part](parts) for part in sorted(parts))]


def setting(results: Figures) -> str:
    """Return on what it was measured."""
    times = sorted(part["measured_at"] for part in results["parts"].values())
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    text = (
        f"Machine: {results['machine']}; device {results['device']}, {results['num_threads']} compute threads"
        f" in each case. {versions}. Weights: `{results['pipeline']}`."
        f" Measured from {times[0]} to {times[-1]}."
    )
    if results["scale"] != 1:
        text += f" **A quick run, {results['scale']:g} of the usual length: its figures are rough.**"
    return text


def engine_table(parts: Figures) -> str:
    part = parts["a"]
    rows = [
        (row["batch_size"], f"{row['images_per_s']:.1f}", f"{row['share_of_matrix_rate']:.0%}")
        for row in part["by_batch_size"]
    ]
    return "\n".join(
        [
            "### (a) The engine alone",
            "",
            f"{part['num_steps']} steps of `{part['sampler']}`, guidance scale {part['guidance_scale']:g}."
            f" The prior's matrix products are {part['prior_flops_per_image'] / 1e9:.2f} GFLOP an image; the"
            f" machine's best rate in large bf16 linear layers is {part['matrix_flops_per_s'] / 1e9:.0f}"
            " GFLOP/s.",
            "",
            *table(("images at once", "images/s", "share of the matrix rate"), rows),
        ]
    )


def http_table(parts: Figures) -> str:
    part = parts["b"]
    rate = f"{part['images_per_s']:.1f} images/s"
    rows = [
        ("from `smalti up` to READY", f"{part['ready_s']:.1f} s", ""),
        ("from `smalti up` to the first image", f"{part['first_image_s']:.1f} s", ""),
        ("one image, warm, p50 / p99", pair_ms(part["one_image"]), ""),
        (f"at saturation, {part['num_connections']} connections", rate, ""),
    ]
    if "a" in parts:
        best = max(row["images_per_s"] for row in parts["a"]["by_batch_size"])
        rows.append(("… of the engine alone", f"{part['images_per_s'] / best:.0%}", "≥ 90 %"))
    return "\n".join(["### (b) Over HTTP, through `smalti up`", "", *table(("", "measured", "aim"), rows)])


def arrivals_table(parts: Figures) -> str:
    part = parts["c"]
    ways = [part["joining"], part["together"], part["whole"]]
    measured: list[tuple[str, str, list[float], str]] = [
        ("p50", "s", [way["p50_s"] for way in ways], ""),
        ("p99", "s", [way["p99_s"] for way in ways], ""),
    ]
    for number in ways[0]["by_num_steps"]:
        p99s = [way["by_num_steps"][number]["p99_s"] for way in ways]
        measured.append((f"p99 of requests of {number} steps", "s", p99s, ""))
    for which in ("p50", "p99"):
        aim = "≤ 0.3" if which == "p99" else ""
        measured.append((f"slowdown, {which}", "×", [way[f"slowdown_{which}"] for way in ways], aim))
    lines = [
        (
            name,
            *(f"{value:.2f} {unit}" for value in values),
            *(f"{values[0] / each:.2f}" for each in values[1:]),
            aim,
        )
        for name, unit, values, aim in measured
    ]
    return "\n".join(
        [
            f"### (c) Random arrivals at {part['load']:.0%} of the capacity",
            "",
            f"{part['num_requests']} requests over HTTP, {part['requests_per_s']:.1f} a second, the same each"
            f" time. Steps {shares(part['num_steps'])}; images a request {shares(part['num_images'])}."
            " The slowdown is a request's latency over that of the same request with nothing else running.",
            "",
            *table(
                (
                    "",
                    "joining between steps",
                    "whole batches",
                    "whole batches, each answered when done",
                    "first over second",
                    "first over third",
                    "aim",
                ),
                lines,
            ),
        ]
    )


def others_table(parts: Figures) -> str:
    part, own = parts["d"], parts.get("b", {})
    uniform, mixed = own.get("images_per_s"), own.get("mixed_images_per_s")
    litserve = f"LitServe {part['litserve_version']}, over HTTP"
    measured = [
        ("Smalti, over HTTP", own.get("images_per_s"), None, ""),
        (litserve, part["litserve_images_per_s"], uniform, "≥ 1.3"),
        ("a plain loop, one request at a time, without HTTP", part["loop_images_per_s"], uniform, "≥ 2"),
        ("Smalti, requests of different steps", mixed, None, ""),
        (f"{litserve}, requests of different steps", part["litserve_mixed_images_per_s"], mixed, "≥ 2.5"),
    ]
    rows = [
        (name, f"{rate:.1f}", f"{ours / rate:.2f} ×" if ours else "", aim)
        for name, rate, ours, aim in measured
        if rate is not None
    ]
    return "\n".join(
        ["### (d) The same work otherwise", "", *table(("", "images/s", "Smalti's over it", "aim"), rows)]
    )


def empty_table(parts: Figures) -> str:
    part = parts["e"]
    rows = [
        ("one at a time, p50 / p99", pair_ms(part), "p50 < 15 ms"),
        ("many at once", f"{part['jobs_per_s']:.0f} jobs/s", ""),
    ]
    return "\n".join(
        ["### (e) A job that computes nothing, over HTTP", "", *table(("", "measured", "aim"), rows)]
    )


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> list[str]:
    """Return the lines of a table."""
    lines = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def pair_ms(part: Figures) -> str:
    return f"{1000 * part['p50_s']:.1f} / {1000 * part['p99_s']:.1f} ms"


def shares(distribution: dict[str, float]) -> str:
    return ", ".join(f"{value} ({share:.0%})" for value, share in distribution.items())


# --- the plot ----------------------------------------------------------------------------------------------


def draw(parts: Figures, path: Path) -> None:
    """Draw the latencies of (c) and the bars of (d), of what there is."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    if "c" in parts:
        part = parts["c"]
        for key, label, colour in (
            ("joining", "Smalti: joining between steps", SMALTI),
            ("together", "the same engine, whole batches", OTHER),
            ("whole", "… each request answered when done", "#8a8a8a"),
        ):
            left.plot(part[key]["percentiles_s"], range(101), label=label, color=colour)
            left.plot(part[key]["p99_s"], 99, "o", color=colour)
        left.set(xscale="log", xlabel="latency (s); the dot is p99", ylabel="% of requests", ylim=(0, 101))
        left.set_title(f"Random arrivals at {part['load']:.0%} load, mixed requests")
        left.grid(alpha=0.3, which="both")
        left.legend()
    bars = {}
    if "b" in parts:
        bars |= {
            "Smalti": parts["b"]["images_per_s"],
            "Smalti,\nmixed steps": parts["b"]["mixed_images_per_s"],
        }
    if "d" in parts:
        bars["LitServe"] = parts["d"]["litserve_images_per_s"]
        bars["LitServe,\nmixed steps"] = parts["d"]["litserve_mixed_images_per_s"]
        bars["plain loop"] = parts["d"]["loop_images_per_s"]
    order = sorted(bars, key=lambda name: "mixed" in name)
    colours = [SMALTI if name.startswith("Smalti") else OTHER for name in order]
    right.bar_label(right.bar(order, [bars[name] for name in order], color=colours), fmt="%.1f")
    right.set_title("One image a request, as fast as it goes")
    right.set_ylabel("images/s")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
