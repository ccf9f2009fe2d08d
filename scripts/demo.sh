#!/usr/bin/env bash
# From nothing to a trained, evaluated and exported network; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: scripts/demo.sh

Sets libtorch up, builds the program cnn, trains LeNet-5 on the MNIST images that are compiled into it, evaluates the
result on test images, predicts the digits in assets/digits/, and exports the network for Python. The run goes into
a new folder runs/demo-<date and time>; nothing that exists is changed.

Exit status: 0 done, else that of the step that failed.
END
}

# show COMMAND...: prints the command as one would type it, and runs it.
show() {
    printf '\n$ %s\n' "${*/#"$binaries/"/}"
    "$@"
}

case ${1:-} in
    '') ;;
    --help | -h)
        usage
        exit
        ;;
    *) fail_input "unknown argument '$1': --help lists what there is." ;;
esac

require_cargo
"$repository/scripts/setup.sh"
cd "$repository"
say "building cnn (the first build takes some minutes)."
cargo build --release --bin cnn

run=runs/demo-$(date +%Y%m%d-%H%M%S)
show "$binaries/cnn" train --out "$run"
show "$binaries/cnn" eval "$run"
show "$binaries/cnn" predict "$run" assets/digits
show "$binaries/cnn" export "$run" --format torchscript --out "$run/lenet5.pt"

cat <<END

Done. The names of the predicted files begin with the digit they show.
  curves and images   $repository/$run/report.html
  for Python          torch.jit.load("$repository/$run/lenet5.pt")
  the program         $binaries/cnn --help
END
