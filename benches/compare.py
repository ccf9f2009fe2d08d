#!/usr/bin/env python3
"""Runs workloads in tch-suite and in PyTorch alternately, and writes the page on performance.

    benches/compare.py --suite PROGRAM --pytorch PYTHON [WORKLOAD...]

scripts/compare_with_pytorch.sh builds the program and finds the Python. Results are kept in docs/performance.json, a
case (workload, what of it, arithmetic) replacing its earlier result; docs/performance.md and docs/performance.svg are
made anew from all of them. Only the standard library is used.
"""

import argparse
import ast
import json
import math
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from html import escape
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAMS = REPOSITORY / "benches" / "pytorch"
DOCS = REPOSITORY / "docs"
DTYPES = ("fp32", "bf16")
# In place of an arithmetic: whatever is fastest for each side.
BEST = "best"
# Whose images may lie in memory with their channels innermost.
IMAGE_WORKLOADS = ("lenet5", "cnn_small", "resnet20_cifar", "resnet18_224")

# Stands for the folder of CIFAR-10's training images, which `with_data` makes.
CIFAR10 = "CIFAR10"
# And for the folder that photographs.py fills.
PHOTOGRAPHS = "PHOTOGRAPHS"
# And for what TCH_SUITE_DATA names.
DATA = "DATA"

# Per workload, its cases: a name, the flags that both sides understand, the arithmetics that it makes sense in. The steps make a run last
# some seconds. Adding a workload: its entry here, a program of its name in benches/pytorch/, a variant in
# benches/workloads/main.rs.
CASES = {
    "lenet5": [
        ("train", ["--steps", "600"], DTYPES),
        ("infer", ["--mode", "infer", "--steps", "1000"], DTYPES),
    ],
    "mlp_small": [
        ("100-2-1 train", ["--net", "keras", "--steps", "400"], DTYPES),
        ("100-2-1 infer", ["--net", "keras", "--mode", "infer", "--steps", "2000"], DTYPES),
        ("784-256-10 train", ["--net", "mnist", "--steps", "300"], DTYPES),
        ("784-256-10 infer", ["--net", "mnist", "--mode", "infer", "--steps", "800"], DTYPES),
    ],
    "cnn_small": [
        ("train", ["--steps", "400"], DTYPES),
        ("infer", ["--mode", "infer", "--steps", "800"], DTYPES),
    ],
    "resnet20_cifar": [
        ("train", ["--steps", "30"], DTYPES),
        ("infer", ["--mode", "infer", "--steps", "80"], DTYPES),
    ],
    "resnet18_224": [
        ("train, batch 16", ["--steps", "8", "--warmup", "3"], DTYPES),
        ("infer, batch 1", ["--mode", "infer", "--batch", "1", "--steps", "120"], DTYPES),
        ("infer, batch 16", ["--mode", "infer", "--batch", "16", "--steps", "15", "--warmup", "3"], DTYPES),
    ],
    "bert_minilm_finetune": [
        ("train, 64 tokens", ["--steps", "8", "--warmup", "2"], DTYPES),
        ("train, drawn lengths", ["--lengths", "dynamic", "--steps", "8", "--warmup", "2"], DTYPES),
        ("train, sorted lengths", ["--lengths", "bucketed", "--steps", "8", "--warmup", "2"], DTYPES),
        ("infer, batch 1", ["--mode", "infer", "--batch", "1", "--seq", "32", "--steps", "120", "--warmup", "10"], DTYPES),
        ("infer, batch 32", ["--mode", "infer", "--steps", "20"], DTYPES),
    ],
    "seq2seq_transformer": [
        ("train", ["--steps", "15", "--warmup", "2"], DTYPES),
        ("greedy", ["--mode", "infer", "--steps", "10"], DTYPES),
        ("beam 5", ["--mode", "infer", "--beam", "5", "--steps", "4"], DTYPES),
    ],
    "gpt": [
        ("train", ["--steps", "100"], DTYPES),
        ("write, 1 text", ["--mode", "infer", "--steps", "20"], DTYPES),
        ("write, 16 texts", ["--mode", "infer", "--batch", "16", "--steps", "15"], DTYPES),
    ],
    "lstm_charlm": [
        ("train", ["--steps", "60"], DTYPES),
        ("infer", ["--mode", "infer", "--steps", "150"], DTYPES),
    ],
    "lstm_generate": [
        ("one token at a time", ["--steps", "20"], DTYPES),
    ],
    "dataloading": [
        ("CIFAR-10 as JPEG files", ["--folder", CIFAR10, "--steps", "12"], ("fp32",)),
        ("photographs of 500 x 375", ["--photographs", "--folder", PHOTOGRAPHS, "--steps", "8", "--warmup", "4"], ("fp32",)),
    ],
    "tokenising": [
        ("67,349 sentences", ["--folder", DATA], ("fp32",)),
    ],
    "startup": [
        ("first step", [], ("fp32",)),
    ],
}

# Other programs' use of the processor, as a share of all cores, up to which the machine counts as quiet.
QUIET = 0.05


def main():
    options = parse()
    DOCS.mkdir(exist_ok=True)
    path = DOCS / "performance.json"
    results = json.loads(path.read_text())["cases"] if path.is_file() else []
    for workload in options.workloads or CASES:
        for case, flags, dtypes in CASES[workload]:
            if options.dtype not in dtypes and (options.dtype != BEST or dtypes != DTYPES):
                continue
            result = measure(options, workload, case, flags)
            identity = ("workload", "case", "dtype")
            results = [old for old in results if any(old[key] != result[key] for key in identity)] + [result]
            results.sort(key=order)
            # After each case, so that an interruption loses one.
            path.write_text(json.dumps({"cases": results}, indent=1) + "\n")
    (DOCS / "performance.svg").write_text(plot(results))
    (DOCS / "performance.md").write_text(page(results))
    print(f"wrote {path.relative_to(REPOSITORY)}, performance.md and performance.svg", file=sys.stderr)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(CASES)}; all if none is named")
    add("--suite", required=True, metavar="PROGRAM", help="the built benches/workloads")
    add("--pytorch", required=True, metavar="PYTHON", help="a Python with benches/pytorch/requirements.txt")
    add("--rounds", type=int, default=5, metavar="N", help="how often each side is run (default: 5)")
    add(
        "--dtype",
        choices=[*DTYPES, BEST],
        default="fp32",
        help="arithmetic (default: fp32); best: each side's fastest of the arithmetics, memory layouts, and for PyTorch torch.compile, with jemalloc",
    )
    add("--threads", type=int, default=os.cpu_count(), metavar="N", help="threads of both sides (default: all cores)")
    add("--omp-wait", choices=["default", "passive", "active"], default="default", help="OMP_WAIT_POLICY of both sides")
    add("--patience", type=float, default=120, metavar="SECONDS", help="how long a case repeats runs that others disturb")
    options = parser.parse_args()
    for workload in options.workloads:
        if workload not in CASES:
            parser.error(f"there is no workload {workload}: choose of {', '.join(CASES)}")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def order(result):
    """The order of the page: that of CASES, fp32 first."""
    names = [case for case, *_ in CASES.get(result["workload"], [])]
    place = names.index(result["case"]) if result["case"] in names else len(names)
    workloads = list(CASES)
    known = result["workload"] in CASES
    return workloads.index(result["workload"]) if known else len(workloads), place, [*DTYPES, BEST].index(result["dtype"])


# ---- Measuring ---------------------------------------------------------------------------------------------------------


def measure(options, workload, case, flags):
    """Runs both sides in turn and returns what is kept of it."""
    flags = with_data(flags, options.pytorch)
    shared = [*flags, "--threads", str(options.threads), "--omp-wait", options.omp_wait]
    programs = {
        "suite": [options.suite, "--workload", workload],
        "pytorch": [options.pytorch, str(PROGRAMS / f"{workload}.py")],
    }
    settings = {side: [("--dtype", options.dtype)] for side in programs}
    if options.dtype == BEST:
        settings = {side: fastest([*program, *shared], side, workload, options) for side, program in programs.items()}
    commands = {side: [*programs[side], *shared, *(word for setting in settings[side] for word in setting)] for side in programs}
    preloaded = {"suite": None, "pytorch": jemalloc() if options.dtype == BEST else None}
    lines = {"suite": [], "pytorch": []}
    deadline = time.monotonic() + options.patience
    busiest = 0.0
    for number in range(options.rounds):
        # Whoever comes second finds a warmer machine: take turns at that, too.
        for side in ("suite", "pytorch") if number % 2 == 0 else ("pytorch", "suite"):
            line, busy = undisturbed(commands[side], options, deadline, preloaded[side])
            busiest = max(busiest, busy)
            lines[side].append(line)
        ours, theirs = (lines[side][-1]["median"] for side in ("suite", "pytorch"))
        print(f"{workload} {case} {options.dtype}, round {number + 1}: {ours:g} and {theirs:g}", file=sys.stderr)
    unit = lines["suite"][0]["unit"]
    ratios = [ratio(unit, ours["median"], theirs["median"]) for ours, theirs in zip(lines["suite"], lines["pytorch"])]
    sides = {side: condense(lines[side]) for side in lines}
    return {
        "workload": workload,
        "case": case,
        "dtype": options.dtype,
        "unit": unit,
        "ratio": significant(ratio(unit, sides["suite"]["median"], sides["pytorch"]["median"])),
        "ratio_range": [significant(min(ratios)), significant(max(ratios))],
        **sides,
        "settings": {side: in_words(settings[side]) for side in settings},
        "rounds": options.rounds,
        "threads": options.threads,
        "omp_wait": options.omp_wait,
        "others_busy": round(busiest, 2),
        "machine": machine(),
    }


def fastest(command, side, workload, options):
    """The settings with which one run of a side is fastest."""
    tried = [[("--dtype", dtype)] for dtype in DTYPES]
    if workload in IMAGE_WORKLOADS:
        tried += [[*setting, ("--channels-last", "1")] for setting in tried]
    preloaded = None
    if side == "pytorch":
        preloaded = jemalloc()
        tried += [[*setting, ("--compile", "1")] for setting in tried]
    rates = []
    for setting in tried:
        line = run([*command, *(word for pair in setting for word in pair)], options, preloaded)
        rates.append(line["median"] if line["unit"] != "s" else -line["median"])
        print(f"{workload}, {side}, {in_words(setting)}: {line['median']:g} {line['unit']}", file=sys.stderr)
    return tried[rates.index(max(rates))]


def in_words(setting):
    """As the table tells it."""
    words = {"--channels-last": "channels last", "--compile": "compiled"}
    return ", ".join(value if flag == "--dtype" else words[flag] for flag, value in setting)


def jemalloc():
    """The allocator that is given to PyTorch in its best setting; None where it is not installed."""
    found = [folder / "libjemalloc.so.2" for folder in map(Path, ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"))]
    return next((str(path) for path in found if path.is_file()), None)


def with_data(flags, python):
    """Flags with folders in place of the names of data sets."""
    folders = {CIFAR10: cifar10_folder, PHOTOGRAPHS: lambda: photographs_folder(python), DATA: data_folder}
    return [str(folders[flag]()) if flag in folders else flag for flag in flags]


def photographs_folder(python):
    """Large JPEG files, made once."""
    folder = REPOSITORY / "target" / "bench-data" / "photographs"
    if not folder.is_dir():
        partial = folder.with_name("photographs.partial")
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run([python, str(PROGRAMS / "photographs.py"), str(partial)], check=True)
        partial.rename(folder)
    return folder


def data_folder():
    """Where the data sets are."""
    return Path(os.environ.get("TCH_SUITE_DATA", "data"))


def cifar10_folder():
    """The training images of CIFAR-10 as JPEG files in class folders, unpacked once from the archive in TCH_SUITE_DATA."""
    folder = REPOSITORY / "target" / "bench-data" / "cifar10"
    if not folder.is_dir():
        archive = data_folder() / "cifar10" / "cifar10-jpeg.tar.gz"
        if not archive.is_file():
            sys.exit(f"compare.py: there is no {archive}: let TCH_SUITE_DATA name the folder that holds cifar10/{archive.name}")
        partial = folder.with_name("cifar10.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as members:
            members.extractall(partial, filter="data")
        # Last, so that an interrupted unpacking is begun anew.
        partial.rename(folder)
    return folder / "train"


def undisturbed(command, options, deadline, preloaded):
    """The JSON line of a run during which others left the processor alone, or, once the time is up, of any; and the share of the
    processor that they used."""
    while True:
        before = usage()
        line = run(command, options, preloaded)
        busy = others_share(before, usage())
        if busy <= QUIET or time.monotonic() > deadline:
            return line, busy
        while busy > QUIET and time.monotonic() < deadline:
            before = usage()
            time.sleep(1)
            busy = others_share(before, usage())


def run(command, options, preloaded):
    """The JSON line of one run, in a fresh process that loads the library `preloaded`, if any, before all others."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(options.threads))
    environment.pop("OMP_WAIT_POLICY", None)
    if options.omp_wait != "default":
        environment["OMP_WAIT_POLICY"] = options.omp_wait
    if preloaded is not None:
        environment["LD_PRELOAD"] = preloaded
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or len(lines) != 1:
        sys.exit(f"compare.py: `{' '.join(command)}` failed (exit status {done.returncode})")
    return json.loads(lines[0])


def usage():
    """Processor seconds so far: of all cores, of these the busy ones, and of this program's own children. None where the system does not say."""
    try:
        # user nice system idle iowait irq softirq steal, in ticks
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return None
    second = os.sysconf("SC_CLK_TCK")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(ticks) / second, (sum(ticks) - ticks[3] - ticks[4]) / second, children.ru_utime + children.ru_stime


def others_share(before, after):
    """The share of the processor that programs other than this one's children used; 0 where the system does not say."""
    if before is None or after is None:
        return 0.0
    everything, busy, own = (end - start for start, end in zip(before, after))
    return max(0.0, busy - own) / max(everything, 0.01)


def ratio(unit, ours, theirs):
    """How many times as fast the suite is: of rates ours over theirs, of times the reverse."""
    return theirs / ours if unit == "s" else ours / theirs


def condense(lines):
    medians = [line["median"] for line in lines]
    kept = {"impl": lines[0]["impl"], "variant": lines[0]["variant"], "median": significant(statistics.median(medians))}
    kept["medians"] = medians
    for key in ("rss_mb", "startup_s", "import_s", "exit_s"):
        values = [line[key] for line in lines if line.get(key) is not None]
        if values:
            kept[key] = significant(statistics.median(values))
    return kept


def machine():
    """What the figures depend on besides the programs."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
    }


def processor():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def significant(value):
    return float(f"{value:.4g}")


# ---- The page ----------------------------------------------------------------------------------------------------------


def page(results):
    machines = []
    for result in results:
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
        "- bf16 is autocast in training. In inference tch-suite computes under autocast, as `predict --precision bf16` does; PyTorch has "
        "weights of that type.",
        "- `best` is each side's fastest of float32 and bf16, of both memory layouts for images, for PyTorch also of eager mode and `torch.compile`, "
        "with jemalloc preloaded where it is installed: one run of each decides, then the two are run alternately.",
        "- Memory is the peak of the resident set of the whole process.",
        "",
        f"To measure again: `scripts/compare_with_pytorch.sh{' WORKLOAD…'}`; the figures of this page are in `performance.json`.",
        "",
        f"## Machine{'s' if len(machines) > 1 else ''}",
        "",
    ]
    lines += [f"{number}. {describe(one)}" if len(machines) > 1 else describe(one) for number, one in enumerate(machines, 1)]
    for workload in dict.fromkeys(result["workload"] for result in results):
        own = [result for result in results if result["workload"] == workload]
        lines += ["", f"## {workload}", "", "```text", *specification(workload), "```", "", *table(own), ""]
        lines += notes(own, machines)
    return "\n".join(lines).rstrip() + "\n"


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


# ---- The plot ----------------------------------------------------------------------------------------------------------

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #222 }
  .quiet { fill: #666 }
  .bar { fill: #2b6cb0 } .slower { fill: #b7791f }
  .range { stroke: #222; stroke-width: 1.5 }
  .grid { stroke: #ddd } .one { stroke: #222 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e6e6 } .quiet { fill: #9a9a9a }
    .bar { fill: #63a4e8 } .slower { fill: #e0b050 }
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


if __name__ == "__main__":
    main()
