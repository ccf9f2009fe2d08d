#!/usr/bin/env bash
# Throughput beside PyTorch's; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=python_environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_environment.sh"

usage() {
    cat <<'END'
usage: scripts/compare_with_pytorch.sh [WORKLOAD... | --growth] [--dtype fp32|bf16|best] [--rounds N] [--threads N]
           [--omp-wait default|passive|active] [--patience SECONDS] [--python PATH]

Runs workloads (all, unless some are named) in tch-suite and in PyTorch alternately, and writes docs/performance.md with
its plots from all results so far, which docs/performance.json keeps.

  --growth       in place of workloads: how the cost grows with the sizes of batches, texts, layers and data sets
  --dtype D      arithmetic of both sides (default: fp32); best: what is fastest for each side, as docs/performance.md says
  --rounds N     how often each side runs a case (default: 5)
  --threads N    threads of both sides (default: all cores)
  --omp-wait P   OMP_WAIT_POLICY of both sides (default: unset)
  --patience S   how many seconds a case repeats runs that other programs disturb (default: 120)
  --python PATH  a Python with the packages of benches/pytorch/requirements.txt; without it an environment is made in
                 target/python
  --help         this text

Exit status: 0 done, 1 something failed, 2 wrong usage or something is missing.
END
}

arguments=()
given=
while (($# > 0)); do
    case $1 in
        --help | -h)
            usage
            exit
            ;;
        --python)
            (($# > 1)) || fail_input "--python needs the path of a Python."
            given=$2
            shift
            ;;
        --dtype | --rounds | --threads | --omp-wait | --patience)
            (($# > 1)) || fail_input "$1 needs a value: --help tells more."
            arguments+=("$1" "$2")
            shift
            ;;
        --growth) arguments+=("$1") ;;
        -*) fail_input "unknown argument '$1': --help lists what there is." ;;
        *) arguments+=("$1") ;;
    esac
    shift
done

find_python "$given"
require_cargo
"$repository/scripts/setup.sh"
cd "$repository"
say "building the workloads."
# The name of the program has a hash in it, which only cargo knows.
suite=$(cargo build --release --bench workloads --message-format=json-render-diagnostics |
    "$python" -c 'import json, sys
print(*[m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable") and m["target"]["name"] == "workloads"])')
"$python" benches/compare.py --suite "$suite" --pytorch "$python" "${arguments[@]}"
