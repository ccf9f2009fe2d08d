#!/usr/bin/env python3
"""Runs workloads in tch-suite and in PyTorch alternately, and writes the page on performance.

    benches/compare.py --suite PROGRAM --pytorch PYTHON [WORKLOAD...]
    benches/compare.py --suite PROGRAM --pytorch PYTHON --growth
    benches/compare.py --parts FOLDER

scripts/compare_with_pytorch.sh builds the program and finds the Python. Results are kept in docs/performance.json, a
case (workload, what of it, arithmetic) replacing its earlier result; docs/performance.md and its plots are made anew
from all of them. Only the standard library is used.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import page
from page import BEST, PROGRAMS, QUIET, REPOSITORY

DOCS = REPOSITORY / "docs"
DTYPES = ("fp32", "bf16")
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
        (
            "photographs after the first epoch, kept decoded",
            ["--photographs", "--folder", PHOTOGRAPHS, "--cache-mb", "1500", "--steps", "8", "--warmup", "70"],
            ("fp32",),
        ),
    ],
    "tokenising": [
        ("67,349 sentences", ["--folder", DATA], ("fp32",)),
    ],
    "startup": [
        ("first step", [], ("fp32",)),
    ],
}

# What grows, its flag and values; the workload with its further flags; the unit of the rate.
GROWTH = [
    ("images in a batch", "--batch", (1, 4, 16, 64, 256, 1024), "cnn_small", ["--warmup", "3"], "samples"),
    ("tokens in a text", "--seq", (16, 32, 64, 128, 256, 512), "bert_minilm_finetune", ["--batch", "8", "--warmup", "2"], "tokens"),
    ("inner width", "--width", (64, 256, 1024, 4096), "mlp_small", ["--net", "mnist"], "samples"),
    ("images in the data set", "--folder", (500, 1500, 5000, 15000, 50000), "dataloading", ["--warmup", "3"], "images"),
]
# Seconds that a point of GROWTH is timed for.
GROWTH_SECONDS = 3


def main():
    options = parse()
    DOCS.mkdir(exist_ok=True)
    path = DOCS / "performance.json"
    kept = {"cases": [], "growth": [], "parts": []}
    if path.is_file():
        kept.update(json.loads(path.read_text()))

    def save(**changed):
        """After each case, so that an interruption loses one."""
        kept.update(changed)
        path.write_text(json.dumps(kept, indent=1) + "\n")

    if options.parts is not None:
        save(parts=parts(options.parts))
    elif options.growth:
        for row in GROWTH:
            result = grow(options, *row)
            save(growth=[old for old in kept["growth"] if old["grows"] != result["grows"]] + [result])
    else:
        for workload in options.workloads or CASES:
            for case, flags, dtypes in CASES[workload]:
                if options.dtype not in dtypes and (options.dtype != BEST or dtypes != DTYPES):
                    continue
                result = measure(options, workload, case, flags)
                identity = ("workload", "case", "dtype")
                others = [old for old in kept["cases"] if any(old[key] != result[key] for key in identity)]
                save(cases=sorted([*others, result], key=order))
    for name, content in page.files(**kept).items():
        (DOCS / name).write_text(content)
    print(f"wrote {path.relative_to(REPOSITORY)} and what is made of it", file=sys.stderr)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(CASES)}; all if none is named")
    add("--suite", metavar="PROGRAM", help="the built benches/workloads")
    add("--pytorch", metavar="PYTHON", help="a Python with benches/pytorch/requirements.txt")
    add("--growth", action="store_true", help="in place of workloads: how the cost grows with batch, length, width and data")
    add("--parts", type=Path, metavar="FOLDER", help="in place of workloads: takes over what `cargo bench --bench parts` left in this folder")
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
    if options.parts is None and (options.suite is None or options.pytorch is None):
        parser.error("--suite and --pytorch are needed")
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
    preloaded = {"suite": None, "pytorch": jemalloc() if options.dtype == BEST else None}
    if options.dtype == BEST:
        settings = {side: fastest([*programs[side], *shared], side, workload, preloaded[side], options) for side in programs}
    commands = {side: [*programs[side], *shared, *(word for setting in settings[side] for word in setting)] for side in programs}
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


def grow(options, grows, flag, values, workload, flags, unit):
    """The rates and the memory of both sides at each value of a flag."""
    points = []
    shared = ["--threads", str(options.threads), "--omp-wait", options.omp_wait, "--steps", "1000", "--max-seconds", str(GROWTH_SECONDS)]
    programs = {"suite": [options.suite, "--workload", workload], "pytorch": [options.pytorch, str(PROGRAMS / f"{workload}.py")]}
    for value in values:
        given = str(images_folder(value)) if flag == "--folder" else str(value)
        lines = {"suite": [], "pytorch": []}
        deadline = time.monotonic() + options.patience
        for number in range(options.rounds):
            for side in ("suite", "pytorch") if number % 2 == 0 else ("pytorch", "suite"):
                lines[side].append(undisturbed([*programs[side], *flags, flag, given, *shared], options, deadline, None)[0])
        point = {"value": value}
        for side in lines:
            rate = statistics.median(line["median"] for line in lines[side])
            memory = statistics.median(line["rss_mb"] for line in lines[side])
            point[side] = {"rate": significant(rate * (value if unit == "tokens" else 1)), "rss_mb": significant(memory)}
        print(f"{workload}, {grows} {value}: {point['suite']['rate']:g} and {point['pytorch']['rate']:g} {unit}/s", file=sys.stderr)
        points.append(point)
    return {"grows": grows, "workload": workload, "unit": f"{unit}/s", "points": points, "rounds": options.rounds, "threads": options.threads, "machine": machine()}


def parts(folder):
    """The medians of Criterion's latest runs, in nanoseconds, with what each goes through."""
    found = []
    for file in sorted(folder.glob("**/new/benchmark.json")):
        about = json.loads(file.read_text())
        estimates = json.loads(file.with_name("estimates.json").read_text())
        found.append(
            {
                "group": about["group_id"],
                "name": about["function_id"],
                "nanoseconds": significant(estimates["median"]["point_estimate"]),
                "throughput": about["throughput"],
            }
        )
    if not found:
        sys.exit(f"compare.py: {folder} holds no results: run `cargo bench --bench parts` first")
    return found


def fastest(command, side, workload, preloaded, options):
    """The settings with which a side is fastest: of one run each, and, the machine being what it is, one more of the two that are ahead."""
    tried = [[("--dtype", dtype)] for dtype in DTYPES]
    if workload in IMAGE_WORKLOADS:
        tried = [[*setting, ("--channels-last", last)] for last in "01" for setting in tried]
    if side == "pytorch":
        tried += [[*setting, ("--compile", "1")] for setting in tried]

    def rate(setting):
        line = run([*command, *(word for pair in setting for word in pair)], options, preloaded)
        print(f"{workload}, {side}, {in_words(setting)}: {line['median']:g} {line['unit']}", file=sys.stderr)
        return line["median"] if line["unit"] != "s" else -line["median"]

    rates = [rate(setting) for setting in tried]
    ahead = sorted(range(len(tried)), key=rates.__getitem__)[-2:]
    return tried[max(ahead, key=lambda number: max(rates[number], rate(tried[number])))]


def in_words(setting):
    """As the table tells it."""
    words = {"--channels-last": {"0": "channels first", "1": "channels last"}, "--compile": {"1": "compiled"}}
    return ", ".join(words[flag][value] if flag in words else value for flag, value in setting)


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


def images_folder(count):
    """A folder with so many of CIFAR-10's training images, the classes in equal parts, as links."""
    folder = REPOSITORY / "target" / "bench-data" / f"cifar10-{count}"
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        classes = sorted(cifar10_folder().iterdir())
        for images in classes:
            (partial / images.name).mkdir(parents=True)
            for image in sorted(images.iterdir())[: count // len(classes)]:
                os.link(image, partial / images.name / image.name)
        partial.rename(folder)
    return folder


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


if __name__ == "__main__":
    main()
