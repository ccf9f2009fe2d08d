"""What the PyTorch workloads share: their flags, the clock, and the JSON line.

How a rate is measured, on both sides of the comparison:

- `--warmup` calls of the step are not timed; the first of them ends the start-up (`startup_s`, from the start of the
  process as the kernel has it, to 10 ms).
- `--steps` samples are timed. One sample is `--inner` calls in a row, one unless the step is so short that the clock
  would count. Its rate is samples of the batch times `inner` over seconds.
- `median`, `p10`, `p90` and `best` are over these rates, `mean` is all samples over all seconds; `step_ms` is the
  median time of a step.
- No value is read back inside the timed part. `loss_first` is of the first step, `loss_last` of one step after the
  timed part (of inference: means of the outputs).
- Batches are made beforehand with a fixed seed and used in turn.
- `rss_mb` is the peak of the resident memory, `rss_now_mb` what is resident at the end, both in MiB.
"""

import argparse
import contextlib
import json
import os
import resource
import time
from pathlib import Path


def arguments(description):
    """A parser with the flags of every workload; a default of None is the workload's."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=int, help="timed samples")
    add("--warmup", type=int, help="calls of the step before the clock starts")
    add("--inner", type=int, help="steps in one timed sample")
    add("--threads", type=int, default=2, help="threads of the kernels")
    add("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast in training, bf16 weights in inference")
    add("--batch", type=int, help="samples in a batch")
    add("--pool", type=int, default=8, help="batches made before the clock starts, used in turn")
    add("--mode", choices=["train", "infer"], default="train", help="what to time")
    add("--channels-last", type=int, choices=[0, 1], default=0, help="store images with the channels innermost")
    add("--compile", type=int, choices=[0, 1], default=0, help="torch.compile the network")
    add("--optimizer-kernel", choices=["fused", "foreach", "loop"], default="fused", help="how torch.optim updates")
    add("--seed", type=int, default=0, help="seed of weights and data")
    add("--max-seconds", type=float, default=0.0, help="stop timing after this long; 0 for no limit")
    add("--omp-wait", choices=["default", "passive", "active"], default="default", help="OMP_WAIT_POLICY")
    return parser


def prepare(options):
    """Sets threads and seed, and returns torch, which must not have been imported before: OpenMP reads its variables when loaded."""
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.omp_wait != "default":
        os.environ["OMP_WAIT_POLICY"] = options.omp_wait
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return torch


def optimizer_flags(options):
    """How torch.optim is asked for its kernels."""
    kernel = options.optimizer_kernel
    return {"fused": kernel == "fused", "foreach": kernel == "foreach"}


def autocast(options):
    """Arithmetic of the forward pass in training."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16) if options.dtype == "bf16" else contextlib.nullcontext()


def trainer(options, network, criterion, make_optimizer, batch_of, clip_norm=None):
    """The step of an ordinary training loop.

    `batch_of(number)` gives inputs and targets; the step returns the loss, detached.
    """
    import torch

    network.train()
    optimizer = make_optimizer(network.parameters(), **optimizer_flags(options))
    forward = torch.compile(network) if options.compile else network

    def step(number):
        inputs, targets = batch_of(number)
        optimizer.zero_grad(set_to_none=True)
        with autocast(options):
            loss = criterion(forward(inputs), targets)
        loss.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
        optimizer.step()
        return loss.detach()

    return step


def measure(workload, variant, options, usual, items, step):
    """Times `step(number)`, which returns the loss or the output, and prints the line."""
    rates, further = timed(options, usual, items, step)
    emit(workload, variant, "samples/s", rates, **further)


def timed(options, usual, items, step):
    """Times `step(number)`: the rates, and the line's further keys.

    `usual` holds the workload's steps, warmup and inner for flags that are not given.
    """
    steps, warmup, inner = (
        given if given is not None else default
        for given, default in zip((options.steps, options.warmup, options.inner), usual, strict=True)
    )
    number = 0
    startup = first = None
    for _ in range(warmup):
        value = step(number)
        number += 1
        if first is None:
            startup, first = seconds_since_process_start(), mean_of(value)
    rates, step_milliseconds = [], []
    clock = time.perf_counter
    began = clock()
    for _ in range(steps):
        start = clock()
        for _ in range(inner):
            step(number)
            number += 1
        seconds = clock() - start
        rates.append(items * inner / seconds)
        step_milliseconds.append(1e3 * seconds / inner)
        if options.max_seconds and clock() - began > options.max_seconds:
            break
    wall = clock() - began
    last = mean_of(step(number))
    return rates, dict(
        best=significant(max(rates)),
        mean=significant(len(rates) * inner * items / wall),
        step_ms=significant(percentile(step_milliseconds, 50)),
        inner=inner,
        startup_s=None if startup is None else significant(startup),
        loss_first=None if first is None else significant(first),
        loss_last=significant(last),
        rss_mb=significant(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        rss_now_mb=resident_megabytes(),
    )


def emit(workload, variant, unit, values, **further):
    """Prints the JSON line of some values, with further keys."""
    import torch

    line = {"workload": workload, "variant": variant, "unit": unit}
    for key, rank in (("median", 50), ("p10", 10), ("p90", 90)):
        line[key] = significant(percentile(values, rank))
    line["steps"] = len(values)
    line["load1"] = round(os.getloadavg()[0], 2)
    line["impl"] = "pytorch " + torch.__version__
    print(json.dumps(line | further, sort_keys=True), flush=True)


def variant(options, *parts):
    """What was run, for people: `train-b128-fused-fp32-t2-eager`."""
    words = [str(part) for part in parts]
    if options.mode == "train":
        words.append(options.optimizer_kernel)
    words += [options.dtype, f"t{options.threads}", "compile" if options.compile else "eager"]
    if options.channels_last:
        words.append("nhwc")
    if options.omp_wait != "default":
        words.append("omp" + options.omp_wait)
    return "-".join(words)


def mean_of(value):
    return value.detach().float().mean().item()


def percentile(values, rank):
    """The value at a rank in percent, linear between neighbours."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * rank / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def significant(value):
    """To six significant digits."""
    return float(f"{value:.6g}")


def seconds_since_process_start():
    """None where the system does not say."""
    try:
        # The name in the second field may hold spaces and ends with the last parenthesis; the start is field 22.
        started = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]
    except OSError:
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")


def resident_megabytes():
    """None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return significant(int(kilobytes) / 1024)
