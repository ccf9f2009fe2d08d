#!/usr/bin/env python3
"""startup: seconds from process start to the first training step done, for the network `keras` of mlp_small, batch 10.

Each of --steps runs (after --warmup untimed ones, for the files to be in memory) starts a fresh process that loads
torch, makes the network, Adam and one batch, and runs forward, backward and update. The clock is the parent's: from
just before the start to the arrival of a line that the child writes when it has got so far. Unit: s, lower is better.
import_s: until the libraries are loaded; exit_s: until the process is gone; rss_mb: the child's peak memory.
"""

import json
import subprocess
import sys
import time

import harness


def main():
    parser = harness.arguments(__doc__)
    parser.add_argument("--child", action="store_true", help="be the process that is timed")
    options = parser.parse_args()
    options.mode = "train"
    if options.child:
        return child(options)
    steps = 10 if options.steps is None else options.steps
    warmup = 2 if options.warmup is None else options.warmup
    clock = time.perf_counter
    loaded, stepped, ended, peaks = [], [], [], []
    for run in range(warmup + steps):
        began = clock()
        process = subprocess.Popen([sys.executable, __file__, "--child", *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
        times = []
        for expected in ("loaded", "stepped"):
            line = process.stdout.readline().strip()
            times.append(clock() - began)
            if line != expected:
                sys.exit(f"startup.py: the child said `{line}`, not `{expected}`")
        peak = json.loads(process.stdout.readline())
        if process.wait() != 0:
            sys.exit("startup.py: the child failed")
        if run >= warmup:
            ended.append(clock() - began)
            loaded.append(times[0])
            stepped.append(times[1])
            peaks.append(peak)
    medians = {"startup_s": stepped, "import_s": loaded, "exit_s": ended, "rss_mb": peaks}
    medians = {key: harness.significant(harness.percentile(values, 50)) for key, values in medians.items()}
    harness.emit("startup", harness.variant(options, "mlp_small"), "s", stepped, **medians)


def child(options):
    torch = harness.prepare(options)
    print("loaded", flush=True)
    network = torch.nn.Sequential(torch.nn.Linear(100, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    batch = torch.randn(10, 100), torch.randint(2, (10, 1)).float()

    def make_optimizer(parameters, **flags):
        return torch.optim.Adam(parameters, lr=1e-3, **flags)

    criterion = torch.nn.functional.binary_cross_entropy_with_logits
    harness.trainer(options, network, criterion, make_optimizer, lambda number: batch)(0)
    print("stepped", flush=True)
    import resource

    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


if __name__ == "__main__":
    main()
