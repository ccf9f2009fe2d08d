# shellcheck shell=bash
# What several scripts share: where the repository is, how a script speaks and fails, and the checks of tools.

# The repository, so that every script works from any current directory.
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
program=${0##*/}

say() {
    printf '%s: %s\n' "${program%.sh}" "$1"
}

# The caller can mend it (usage, input, a missing tool): one sentence with its remedy, exit status 2.
fail_input() {
    printf '%s: %s\n' "$program" "$1" >&2
    exit 2
}

# The machine failed (network, disk, a broken download): exit status 1.
fail() {
    printf '%s: %s\n' "$program" "$1" >&2
    exit 1
}

# take_help NEEDED [ARGUMENT...]: --help as the first argument prints the script's `usage` and ends it; other flags, and no argument where something is NEEDED
# (in words, or empty), are refused.
take_help() {
    local needed=$1
    case ${2:-} in
        --help | -h)
            usage
            exit
            ;;
        '') [[ -z $needed ]] || fail_input "give $needed: --help tells more." ;;
        -*) fail_input "unknown argument '$2': --help lists what there is." ;;
    esac
}

# version_at_least HAVE NEEDED: compares dotted numbers; a suffix such as -nightly is ignored.
version_at_least() {
    local have needed part
    IFS=. read -ra have <<<"${1%%[!0-9.]*}"
    IFS=. read -ra needed <<<"$2"
    for part in "${!needed[@]}"; do
        if ((10#${have[part]:-0} != 10#${needed[part]})); then
            ((10#${have[part]:-0} > 10#${needed[part]}))
            return
        fi
    done
}

# The compiler that cargo's build scripts will use for C++, as the words of a command, in the array `compiler`.
find_compiler() {
    read -ra compiler <<<"${CXX:-c++}"
}

# libtorch's headers are C++20: compiles two lines of it instead of trusting a version number.
require_compiler() {
    find_compiler
    command -v "${compiler[0]}" >/dev/null ||
        fail_input "there is no C++ compiler (${compiler[0]}): install one (Debian: apt-get install g++; macOS: xcode-select --install) or set CXX."
    printf '%s\n' '#include <concepts>' 'template <std::integral T> T same(T x) { return x; } int main() { return same(0); }' |
        "${compiler[@]}" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null ||
        fail_input "the C++ compiler (${compiler[*]}) cannot compile C++20: install GCC 11 or Clang 14 or newer, or set CXX to one."
}

# require_python [OTHER_REMEDY]: python3 with its standard library, of a version that the Python files here run on.
require_python() {
    command -v python3 >/dev/null ||
        fail_input "python3 is missing: install it (Debian: apt-get install python3; macOS: xcode-select --install)${1:+, or $1}."
    python3 -c 'import sys, zipfile; sys.exit(sys.version_info < (3, 8))' 2>/dev/null ||
        fail_input "python3 does not run or is older than 3.8: install a newer one."
}

# Rust, at the version that Cargo.toml asks for.
require_cargo() {
    local needed have
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repository/Cargo.toml")
    command -v cargo >/dev/null ||
        fail_input "cargo is missing: install Rust $needed or newer with rustup (https://rustup.rs)."
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2) || have=
    version_at_least "${have:-0}" "$needed" ||
        fail_input "this needs Rust $needed or newer and cargo says ${have:-nothing}: run rustup update stable."
}

# Where cargo puts the programs. The scripts run them from there rather than through cargo, which would set library paths.
# shellcheck disable=SC2034  # for the scripts
binaries=${CARGO_TARGET_DIR:-$repository/target}/release

# build_program NAME: sets up what the build needs, and builds one of the programs.
build_program() {
    require_cargo
    "$repository/scripts/setup.sh"
    (cd "$repository" && cargo build --release --bin "$1")
}
