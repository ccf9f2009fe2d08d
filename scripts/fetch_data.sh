#!/usr/bin/env bash
# Fetches public data sets into data/; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: scripts/fetch_data.sh NAME... [--mirror DIR|URL] [--out DIR]
       scripts/fetch_data.sh --list

Fetches data sets from their official addresses, verifies the checksums that scripts/data.lock pins, and lays each out
in data/NAME in the repository, for --data data/NAME.

  --mirror DIR   no download: take the files from this folder, where they lie under their official names, either directly
                 or in a folder NAME, or in the layout of the folder that TCH_SUITE_DATA names
  --mirror URL   download the same file names from below this address instead
  --out DIR      lay the sets out in DIR/NAME instead
  --list         what there is: names, sizes of the downloads, contents, licences
  --help         this text

A set is made in DIR/NAME.partial and renamed at the end: an interrupted run leaves nothing half-made, and the next one
goes on with what has arrived. A complete set is left alone; to fetch it again, remove it. Nothing that was put into
DIR/NAME by anybody else is deleted. Check the licence of a set before you redistribute it or what you make of it.

Exit status: 0 ready, 1 the network or the machine failed, 2 wrong usage or something is missing.
END
}

names=()
mirror=
out=$repository/data
list=
while (($# > 0)); do
    case $1 in
        --mirror | --out)
            [[ -n ${2:-} ]] || fail_input "$1 needs a folder$([[ $1 == --out ]] || echo " or an address")."
            if [[ $1 == --mirror ]]; then
                mirror=$2
            else
                out=$2
            fi
            shift
            ;;
        --mirror=?*) mirror=${1#--mirror=} ;;
        --out=?*) out=${1#--out=} ;;
        --list) list=yes ;;
        --help | -h)
            usage
            exit
            ;;
        -*) fail_input "unknown argument '$1': --help lists what there is." ;;
        *) names+=("$1") ;;
    esac
    shift
done

if [[ -n $list ]]; then
    ((${#names[@]} == 0)) || fail_input "--list lists all data sets: leave out ${names[0]}, or --list."
else
    ((${#names[@]} > 0)) || fail_input "name a data set: --list shows what there is."
fi
require_python "fetch by hand what scripts/data.lock lists"
lock=$repository/scripts/data.lock
if [[ -n $list ]]; then
    exec python3 "$repository/scripts/fetch_data.py" list "$lock"
fi
exec python3 "$repository/scripts/fetch_data.py" fetch "$lock" "$out" "$mirror" "${names[@]}"
