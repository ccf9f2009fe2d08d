#!/usr/bin/env bash
# Everything that must hold before a change is kept; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: scripts/test.sh [--strict]

Sets libtorch up, then checks formatting, lints (clippy), all tests, the documentation's build, and these scripts. A
check that fails does not stop the others.

  --strict  a test that is skipped because its data are missing is a failure
  --help    this text

Tests that need larger data look for them in the folder that TCH_SUITE_DATA names, and are skipped without it.

The last line is "test: N passed, N failed, N skipped". Exit status: 0 all passed, 1 something failed, 2 wrong usage or
something is missing.
END
}

strict=
while (($# > 0)); do
    case $1 in
        --strict) strict=yes ;;
        --help | -h)
            usage
            exit
            ;;
        *) fail_input "unknown argument '$1': --help lists what there is." ;;
    esac
    shift
done

if [[ -n ${TCH_SUITE_DATA:-} ]]; then
    [[ -d $TCH_SUITE_DATA ]] || fail_input "TCH_SUITE_DATA names $TCH_SUITE_DATA, which is no folder: correct or unset it."
    TCH_SUITE_DATA=$(cd "$TCH_SUITE_DATA" && pwd)
    export TCH_SUITE_DATA
fi
require_cargo
"$repository/scripts/setup.sh"
cd "$repository"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A harness captures what passing tests print, so a skipped test also appends a line to this file.
export TCH_SUITE_SKIP_LOG=$work/skipped
: >"$TCH_SUITE_SKIP_LOG"

passed=0
failed=0
ignored=0
failures=()

# heading TEXT
heading() {
    printf '\n== %s\n' "$1"
}

# check NAME COMMAND...: one check that passes or fails as a whole.
check() {
    local name=$1 start=$SECONDS
    shift
    heading "$name"
    if "$@"; then
        passed=$((passed + 1))
        say "$name: passed ($((SECONDS - start)) s)"
    else
        failed=$((failed + 1))
        failures+=("$name")
        say "$name: FAILED ($((SECONDS - start)) s)"
    fi
}

# check_tests NAME COMMAND...: a command that ends its parts with "N passed; N failed; N ignored", counted one by one.
check_tests() {
    local name=$1 start=$SECONDS status=0 counts good bad left
    shift
    heading "$name"
    "$@" | tee "$work/output" || status=$?
    counts=$(awk '
        match($0, /[0-9]+ passed; [0-9]+ failed; [0-9]+ ignored/) {
            split(substr($0, RSTART, RLENGTH), word, " ")
            good += word[1]; bad += word[3]; left += word[5]
        }
        END { print good + 0, bad + 0, left + 0 }' "$work/output")
    read -r good bad left <<<"$counts"
    # It may also fail without a failing test: something does not compile, or a process died.
    if ((status != 0 && bad == 0)); then
        bad=1
    fi
    passed=$((passed + good))
    failed=$((failed + bad))
    ignored=$((ignored + left))
    if ((bad > 0)); then
        failures+=("$name")
    fi
    say "$name: $good passed, $bad failed ($((SECONDS - start)) s)"
}

check formatting cargo fmt --check
check lints cargo clippy --release --all-targets -- -D warnings
check_tests tests cargo test --release --no-fail-fast
check documentation env RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps
check_tests scripts "$repository/scripts/tests/run.sh"

heading summary
skipped=$(wc -l <"$TCH_SUITE_SKIP_LOG" | tr -d ' ')
# To its harness a skipped test has passed.
passed=$((passed > skipped ? passed - skipped : 0))
if ((skipped > 0)); then
    sort "$TCH_SUITE_SKIP_LOG" | sed 's/^/  /'
    if [[ -z ${TCH_SUITE_DATA:-} ]]; then
        reason="TCH_SUITE_DATA is not set"
    else
        reason="$TCH_SUITE_DATA lacks their data"
    fi
    say "$skipped $([[ $skipped == 1 ]] && echo test || echo tests) skipped ($reason)"
    if [[ -n $strict ]]; then
        failures+=("$skipped skipped tests, because of --strict")
    fi
fi
if ((${#failures[@]} > 0)); then
    for name in "${failures[@]}"; do
        say "failed: $name"
    done
fi
say "$passed passed, $failed failed, $((skipped + ignored)) skipped"
((${#failures[@]} == 0))
