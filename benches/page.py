"""docs/performance.md and its plots, from the results that compare.py keeps."""

import ast
import math
from html import escape
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAMS = REPOSITORY / "benches" / "pytorch"
# In place of an arithmetic: whatever is fastest for each side.
BEST = "best"
# Other programs' use of the processor, as a share of all cores, up to which the machine counts as quiet.
QUIET = 0.05


def files(cases, growth, parts):
    """What is written, by name."""
    made = {"performance.md": page(cases, growth, parts), "performance.svg": plot(cases)}
    if growth:
        made["growth.svg"] = growth_plot(growth)
    return made


# ---- The page ----------------------------------------------------------------------------------------------------------


def page(results, growth, parts):
    machines = []
    for result in [*results, *growth]:
        if result["machine"] not in machines:
            machines.append(result["machine"])
    versions = sorted({result[side]["impl"] for result in results for side in ("suite", "pytorch")}, reverse=True)
    rounds = sorted({result["rounds"] for result in results})
    lines = [
        "# Performance",
        "",
        "How fast tch-suite is beside PyTorch in Python: the same networks from the same initial values on the same batches, "
        "run alternately on one machine. A ratio above 1 means that tch-suite is faster.",
        "",
        "![Ratios of tch-suite to PyTorch](performance.svg)",
        "",
        *table(results, with_workload=True),
        "",
        *means(results),
        "",
        "## Method",
        "",
        f"- Versions: {' and '.join(versions)}, the wheel that pip installs.",
        f"- Rounds: {' or '.join(map(str, rounds))}. In each, both sides run once, as fresh processes, PyTorch first in every "
        "other one. A figure is the median of the rounds' medians; the range is that of the rounds' ratios. A run during which other "
        "programs use the processor is repeated.",
        "- tch-suite times what its verbs run: the whole training step with its sums for the log (loss, accuracy), the gradient "
        "norm and the watch for values that are not finite; for inference the forward pass of `predict`. PyTorch times an ordinary "
        "loop in eager mode without any of these, with the fused optimizer, which is its fastest on a CPU.",
        "- Both have the same number of threads and the same `OMP_WAIT_POLICY`. tch-suite's programs tell the C library to keep large "
        "blocks of memory for reuse and MKL to choose its kernels by the processor's instructions instead of its maker; PyTorch runs as it "
        "comes.",
        "- bf16 is autocast in training. In inference tch-suite computes under autocast, as `predict --precision bf16` does, with weights that are cast and "
        "packed once; PyTorch has weights of that type.",
        "- `best` is each side's fastest of float32 and bf16, of both memory layouts for images, for PyTorch also of eager mode and `torch.compile`, "
        "with jemalloc preloaded where it is installed: one run of each and one more of the two that are ahead decide, then the two are run alternately.",
        "- Memory is the peak of the resident set of the whole process.",
        "",
        f"To measure again: `scripts/compare_with_pytorch.sh{' WORKLOAD…'}`; the figures of this page are in `performance.json`.",
        "",
        f"## Machine{'s' if len(machines) > 1 else ''}",
        "",
    ]
    lines += [f"{number}. {describe(one)}" if len(machines) > 1 else describe(one) for number, one in enumerate(machines, 1)]
    lines += growth_section(growth) + parts_section(parts)
    for workload in dict.fromkeys(result["workload"] for result in results):
        own = [result for result in results if result["workload"] == workload]
        lines += ["", f"## {workload}", "", "```text", *specification(workload), "```", "", *table(own), ""]
        lines += notes(own, machines)
    return "\n".join(lines).rstrip() + "\n"


def means(results):
    """Geometric means of the ratios of networks, by arithmetic, training apart from what uses a model."""
    groups = {}
    for result in results:
        if result["unit"] == "samples/s":
            use = "training" if "train" in result["case"] else "inference"
            groups.setdefault((use, result["dtype"]), []).append(math.log(result["ratio"]))
    told = [f"{use} {dtype} {math.exp(sum(ratios) / len(ratios)):.2f} ({len(ratios)} cases)" for (use, dtype), ratios in sorted(groups.items(), reverse=True)]
    return [f"Geometric means of the ratios: {', '.join(told)}."] if told else []


def table(results, with_workload=False):
    head = ["case", "arithmetic", "tch-suite", "PyTorch", "ratio", "range", "memory, MiB"]
    rows = []
    for result in results:
        ours, theirs = result["suite"], result["pytorch"]
        low, high = result["ratio_range"]
        rows.append(
            [
                result["case"],
                arithmetic(result),
                quantity(ours["median"], result["unit"]),
                quantity(theirs["median"], result["unit"]),
                f"**{result['ratio']:.2f}**",
                f"{low:.2f} to {high:.2f}",
                f"{ours['rss_mb']:.0f} / {theirs['rss_mb']:.0f}",
            ]
        )
    if with_workload:
        head.insert(0, "workload")
        rows = [[result["workload"], *row] for result, row in zip(results, rows)]
    left = 3 if with_workload else 2
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def arithmetic(result):
    """Of the fastest settings, both sides'."""
    if result["dtype"] != BEST:
        return result["dtype"]
    return f"best: {result['settings']['suite']} / {result['settings']['pytorch']}"


def quantity(value, unit):
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f} {unit}"


def specification(workload):
    """The docstring of the PyTorch program, which both sides follow."""
    docstring = ast.get_docstring(ast.parse((PROGRAMS / f"{workload}.py").read_text())) or ""
    return docstring.splitlines()


def notes(results, machines):
    """How these cases were taken, where that is not the same for all."""
    lines = []
    settings = {(result["threads"], result["omp_wait"]) for result in results}
    for threads, policy in sorted(settings):
        which = "OMP_WAIT_POLICY unset" if policy == "default" else f"OMP_WAIT_POLICY={policy}"
        lines.append(f"{threads} thread{'s' if threads > 1 else ''}, {which}.")
    if len(machines) > 1:
        numbers = sorted({machines.index(result["machine"]) + 1 for result in results})
        lines.append(f"Machine {' and '.join(map(str, numbers))}.")
    loud = [f"{result['case']} {result['dtype']}" for result in results if result["others_busy"] > QUIET]
    if loud:
        lines.append(f"Other programs used the processor in some rounds of: {', '.join(loud)}.")
    return [" ".join(lines)]


def describe(one):
    return (
        f"{one['processor']}, {one['cores']} core{'s' if one['cores'] > 1 else ''}, {one['memory_gib']} GiB of memory; "
        f"{one['system']}; Python {one['python']}."
    )


def growth_section(growth):
    """How cost grows, in a plot and in figures."""
    if not growth:
        return []
    lines = [
        "",
        "## How cost grows",
        "",
        "![Throughput and memory over the sizes of batches, texts, layers and data sets](growth.svg)",
        "",
        "Both axes are logarithmic; float32, training but for the images, which are loaded. `bert_minilm_finetune` has 8 texts in a batch, `mlp_small` is its "
        "network `mnist`. The memory of PyTorch's loader is that of the main process, its workers' not counted.",
        "",
        "| workload | what grows | | tch-suite | PyTorch | ratio | memory, MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in growth:
        for point in one["points"]:
            ours, theirs = point["suite"], point["pytorch"]
            lines.append(
                f"| {one['workload']} | {one['grows']} | {point['value']:,} | {quantity(ours['rate'], one['unit'])} | {quantity(theirs['rate'], one['unit'])} "
                f"| **{ours['rate'] / theirs['rate']:.2f}** | {ours['rss_mb']:.0f} / {theirs['rss_mb']:.0f} |"
            )
    return lines


def parts_section(parts):
    """The suite's own parts, by themselves."""
    if not parts:
        return []
    lines = [
        "",
        "## Parts",
        "",
        "The suite's own parts by themselves, as `cargo bench --bench parts` times them with Criterion: medians.",
        "",
        "| part | case | time | rate |",
        "| --- | --- | ---: | ---: |",
    ]
    for part in parts:
        seconds = part["nanoseconds"] / 1e9
        scale, unit = next((scale, unit) for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs"), (1e9, "ns")) if seconds * scale >= 1 or unit == "ns")
        rate = ""
        for kind, count in (part["throughput"] or {}).items():
            rate = quantity(count / seconds / 2**20, "MiB/s") if kind.startswith("Bytes") else quantity(count / seconds, "/s")
        lines.append(f"| {part['group']} | {part['name']} | {quantity(seconds * scale, unit)} | {rate} |")
    return lines


# ---- The plots ---------------------------------------------------------------------------------------------------------

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #222 }
  .quiet { fill: #666 }
  .bar { fill: #2b6cb0 } .slower { fill: #b7791f }
  .range { stroke: #222; stroke-width: 1.5 }
  .grid { stroke: #ddd } .one { stroke: #222 }
  .line { fill: none; stroke-width: 2; stroke: #2b6cb0 } .other { stroke: #b7791f; stroke-dasharray: 5 4 }
  .dot { fill: #2b6cb0 } .otherdot { fill: #b7791f }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e6e6 } .quiet { fill: #9a9a9a }
    .bar { fill: #63a4e8 } .slower { fill: #e0b050 }
    .line { stroke: #63a4e8 } .other { stroke: #e0b050 } .dot { fill: #63a4e8 } .otherdot { fill: #e0b050 }
    .range { stroke: #e6e6e6 } .grid { stroke: #3a3a3a } .one { stroke: #e6e6e6 }
  }
"""


def plot(results):
    """A bar for each case from ratio 1 on a logarithmic axis, with the range of its rounds."""
    label_width, width, row_height, top = 270, 760, 24, 34
    height = top + row_height * len(results) + 14
    ends = [end for result in results for end in result["ratio_range"]] + [1.0, 2.0]
    low, high = math.floor(math.log2(min(ends))), math.ceil(math.log2(max(ends)))

    def x(value):
        return label_width + (math.log2(value) - low) / (high - low) * (width - label_width - 60)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="How many times as fast as PyTorch tch-suite is, by workload">',
        f"<style>{STYLE}</style>",
        f'<text x="{label_width - 10}" y="18" text-anchor="end" class="quiet">times as fast as PyTorch</text>',
    ]
    for exponent in range(low, high + 1):
        at = x(2.0**exponent)
        kind = "one" if exponent == 0 else "grid"
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top - 8}" y2="{height - 10}" class="{kind}"/>')
        parts.append(f'<text x="{at:.1f}" y="18" text-anchor="middle" class="quiet">{2.0**exponent:g}</text>')
    for row, result in enumerate(results):
        y = top + row * row_height
        value, (least, most) = result["ratio"], result["ratio_range"]
        left, right = sorted((x(1.0), x(value)))
        name = escape(f"{result['workload']} {result['case']}, {result['dtype']}")
        parts += [
            f'<text x="{label_width - 10}" y="{y + 14}" text-anchor="end">{name}</text>',
            f'<rect x="{left:.1f}" y="{y + 2}" width="{right - left:.1f}" height="16" class="bar{" slower" * (value < 1)}"/>',
            f'<line x1="{x(least):.1f}" x2="{x(most):.1f}" y1="{y + 10}" y2="{y + 10}" class="range"/>',
            f'<text x="{max(right, x(most)) + 6:.1f}" y="{y + 14}">{value:.2f}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def growth_plot(growth):
    """A panel for the rate of each thing that grows, and one for the memory over the size of the data set."""
    panels = [(f"{one['workload']}: {one['unit']}", one["grows"], [(p["value"], p["suite"]["rate"], p["pytorch"]["rate"]) for p in one["points"]]) for one in growth]
    panels += [
        (f"{one['workload']}: memory, MiB", one["grows"], [(p["value"], p["suite"]["rss_mb"], p["pytorch"]["rss_mb"]) for p in one["points"]])
        for one in growth
        if one["workload"] == "dataloading"
    ]
    columns, width, height = 2, 380, 260
    rows = math.ceil(len(panels) / columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * width} {rows * height + 30}" role="img" '
        'aria-label="Throughput and memory of tch-suite and PyTorch over the sizes of batches, texts, layers and data sets">',
        f"<style>{STYLE}</style>",
        '<line x1="20" x2="50" y1="16" y2="16" class="line"/><text x="56" y="20">tch-suite</text>',
        '<line x1="150" x2="180" y1="16" y2="16" class="line other"/><text x="186" y="20">PyTorch</text>',
    ]
    for number, (title, grows, points) in enumerate(panels):
        left, top = number % columns * width, number // columns * height + 30
        parts += panel(left, top, width, height, title, grows, points)
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(left, top, width, height, title, grows, points):
    """Two lines over (value, ours, PyTorch's) on logarithmic axes."""
    x0, x1, y0, y1 = left + 76, left + width - 24, top + 28, top + height - 46
    values = [point[0] for point in points]
    measured = [end for point in points for end in point[1:]]
    # Whole powers of ten, or of two where there is less than one ten.
    base = 10 if max(measured) > 10 * min(measured) else 2
    low, high = math.floor(math.log(min(measured), base) + 1e-9), math.ceil(math.log(max(measured), base) - 1e-9)
    high = max(high, low + 1)

    def x(value):
        return x0 + (x1 - x0) * math.log(value / values[0]) / math.log(values[-1] / values[0])

    def y(value):
        return y1 - (y1 - y0) * (math.log(value, base) - low) / (high - low)

    parts = [f'<text x="{x0}" y="{top + 16}">{escape(title)}</text>']
    for exponent in range(low, high + 1):
        at = y(base**exponent)
        parts.append(f'<line x1="{x0}" x2="{x1}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(f'<text x="{x0 - 6}" y="{at + 4:.1f}" text-anchor="end" class="quiet">{base**exponent:,}</text>')
    for value in values:
        parts.append(f'<text x="{x(value):.1f}" y="{y1 + 18}" text-anchor="middle" class="quiet">{value:,}</text>')
    parts.append(f'<text x="{(x0 + x1) / 2:.0f}" y="{y1 + 36}" text-anchor="middle" class="quiet">{escape(grows)}</text>')
    # PyTorch first, so that ours is not hidden.
    for side, line, dot in ((2, "line other", "otherdot"), (1, "line", "dot")):
        places = [(x(point[0]), y(point[side])) for point in points]
        parts.append(f'<polyline class="{line}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" class="{dot}"/>' for a, b in places]
    return parts
