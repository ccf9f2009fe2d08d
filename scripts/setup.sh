#!/usr/bin/env bash
# Makes libtorch/ in the repository; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: scripts/setup.sh [--cpu | --cuda] [--from WHEEL|ARCHIVE|FOLDER]

Makes libtorch/ in the repository, where cargo looks for headers and libraries.

  --cpu          the CPU set, about 0.5 GB (on macOS with Metal); the default
  --cuda         the CUDA 13 set, about 4 GB (Linux x86-64)
  --from SOURCE  no download of torch; SOURCE is
                   a torch wheel: NVIDIA packages it needs are taken from beside it, else downloaded;
                   an official libtorch archive (.zip), CPU or CUDA, taken as it is (CUDA 12 users have one);
                   a libtorch folder, taken as it is, or the torch folder of a Python environment. A folder is
                   copied, so that an upgrade or a removal there cannot change what binaries were built with;
                   to use it in place, set LIBTORCH to it instead of running this with --from.
  --help         this text

Without --from, python3 -m pip downloads the wheels that scripts/libtorch.lock pins, and their SHA-256 is verified.
The set is made beside libtorch/ and renamed at the end: an interrupted run leaves nothing half-made. A complete
set of the right version and kind is left alone; without --cpu and --cuda either kind is right.

A LIBTORCH that is set, or LIBTORCH_USE_PYTORCH, is honoured: it is checked and nothing is made.

Exit status: 0 ready, 1 the machine failed (network, disk), 2 wrong usage or something is missing.
END
}

lock=$repository/scripts/libtorch.lock
case $(uname -s) in
    Darwin) library_suffix=.dylib ;;
    *) library_suffix=.so ;;
esac
libtorch=$repository/libtorch
# Libraries that only the CUDA set or only Python needs, as patterns of file names.
cuda_libraries=('libtorch_cuda*' 'libc10_cuda*' 'libtorch_nvshmem*' 'libcaffe2_nvrtc*')
python_libraries=('libtorch_python*' 'libshm*' 'libtorch_global_deps*')

# lock_lines WORD PLATFORM: the rest of the lock file's lines that begin so.
lock_lines() {
    sed -n "s/^$1 $2 //p" "$lock"
}

# The version that the pinned wheels have, and the only one that the Rust bindings accept.
pinned_version=$(sed -n 's/^wheel .* torch-\([0-9.]*\)-.*/\1/p' "$lock" | head -n 1)
python_remedy="set LIBTORCH to a libtorch $pinned_version folder"

# find_platform: sets `platform` to the lock file's name for this machine, or says why there is none.
find_platform() {
    local system machine suffix="get or build libtorch $pinned_version for it and set LIBTORCH to its folder."
    system=$(uname -s)
    machine=$(uname -m)
    case $system-$machine in
        Linux-x86_64) platform=linux-x86_64 ;;
        Linux-aarch64 | Linux-arm64) platform=linux-aarch64 ;;
        Darwin-arm64) platform=macos-arm64 ;;
        *) fail_input "there is no prebuilt libtorch for $system on $machine: $suffix" ;;
    esac
    # The oldest system that the wheel runs on stands in its file name.
    local tag have
    tag=$(lock_lines wheel "$platform" | sed -n 's/.* torch-.*-\(.*\)\.whl$/\1/p')
    case $tag in
        manylinux_*)
            have=$(getconf GNU_LIBC_VERSION 2>/dev/null) || have=
            [[ $tag =~ ^manylinux_([0-9]+)_([0-9]+)_ ]]
            version_at_least "${have#glibc }" "${BASH_REMATCH[1]}.${BASH_REMATCH[2]}" ||
                fail_input "the prebuilt libtorch needs glibc ${BASH_REMATCH[1]}.${BASH_REMATCH[2]} or newer and this system has ${have:-another C library}: $suffix"
            ;;
        macosx_*)
            have=$(sw_vers -productVersion)
            [[ $tag =~ ^macosx_([0-9]+)_([0-9]+)_ ]]
            version_at_least "$have" "${BASH_REMATCH[1]}.${BASH_REMATCH[2]}" ||
                fail_input "the prebuilt libtorch needs macOS ${BASH_REMATCH[1]} or newer and this is $have: $suffix"
            ;;
    esac
}

# megabytes BYTES: rounded up, for people.
megabytes() {
    echo "$((($1 + 999999) / 1000000)) MB"
}

# read_version FOLDER: the version of a libtorch folder or of a torch package, with its +suffix; nothing if none.
read_version() {
    if [[ -f $1/build-version ]]; then
        head -n 1 "$1/build-version"
    elif [[ -f $1/version.py ]]; then
        sed -n "s/^__version__ = '\(.*\)'.*/\1/p" "$1/version.py"
    fi
}

# right_processor LIB_FOLDER: whether its libtorch_cpu.so is for this one. macOS has one kind only.
right_processor() {
    local machine
    if [[ -f $1/libtorch_cpu.so ]]; then
        # e_machine of the ELF header: 62 is x86-64, 183 is arm64.
        machine=$(od -An -tu2 -j18 -N2 "$1/libtorch_cpu.so" | tr -d ' ')
        case $(uname -m)-$machine in
            x86_64-62 | aarch64-183 | arm64-183) return 0 ;;
            *) return 1 ;;
        esac
    fi
}

# check FOLDER: whether it is a complete libtorch of the right version. Sets `kind` (cpu, cuda) or else `defect`, a clause
# that continues "FOLDER ...".
check() {
    local folder=$1 version library
    kind=cpu
    defect=
    if [[ ! -d $folder ]]; then
        defect="is no folder"
        return 1
    fi
    version=$(read_version "$folder")
    if [[ ! -d $folder/include/torch/csrc ]]; then
        defect="has no headers (include/torch/csrc)"
    elif [[ -z $version ]]; then
        defect="does not say its version (no build-version or version.py)"
    elif [[ ${version%%+*} != "$pinned_version" ]]; then
        defect="is version $version where $pinned_version is needed"
    fi
    for library in torch_cpu c10 torch; do
        if [[ -z $defect && ! -f $folder/lib/lib$library$library_suffix ]]; then
            defect="has no lib/lib$library$library_suffix"
        fi
    done
    if [[ -z $defect ]] && ! right_processor "$folder/lib"; then
        defect="holds libraries for another processor than this $(uname -m)"
    fi
    if [[ -e $folder/lib/libtorch_cuda.so ]]; then
        kind=cuda
    fi
    [[ -z $defect ]]
}

# What a kind is called in a sentence.
name_of() {
    case $1 in
        cpu) echo CPU ;;
        cuda) echo CUDA ;;
    esac
}

# honour_environment: LIBTORCH and LIBTORCH_USE_PYTORCH win over libtorch/ in every build, so there is nothing to make:
# checks what they name and ends. Returns if neither is set.
honour_environment() {
    local folder variable python package
    # Set means set: the bindings' build script looks at the presence of this variable only.
    if [[ -n ${LIBTORCH_USE_PYTORCH+set} ]]; then
        variable=LIBTORCH_USE_PYTORCH
        python=python3
        if [[ -n ${VIRTUAL_ENV:-} ]]; then
            python=python
        fi
        package=$("$python" -c '
import importlib.util
for name in "torch", "setuptools":
    if importlib.util.find_spec(name) is None:
        raise SystemExit(1)
print(importlib.util.find_spec("torch").submodule_search_locations[0])' 2>/dev/null) ||
            fail_input "LIBTORCH_USE_PYTORCH is set but $python has no torch with setuptools: run $python -m pip install torch==$pinned_version setuptools, or unset it."
        folder=$package
    elif [[ -n ${LIBTORCH+set} ]]; then
        variable=LIBTORCH
        folder=$LIBTORCH
        if [[ $folder -ef $libtorch || $folder == "$libtorch" ]]; then
            return
        fi
        [[ $folder == /* ]] ||
            fail_input "LIBTORCH is '$folder', which is no absolute path, so every build script would look elsewhere: set it to the whole path, or unset it."
    else
        return 0
    fi
    [[ -z $from ]] ||
        fail_input "$variable is set and wins over libtorch/, so --from would have no effect: unset $variable first."
    check "$folder" ||
        fail_input "$variable names $folder, which $defect: set it to a libtorch $pinned_version, or unset it and run this again."
    [[ $wanted != cuda || $kind == cuda ]] ||
        fail_input "$variable names $folder, which has no CUDA (lib/libtorch_cuda.so): unset it and run this again."
    say "using libtorch $(read_version "$folder") ($(name_of "$kind")) in $folder, as $variable says."
    exit 0
}

# clean_partials: removes what interrupted runs left; sets `busy` to the process of a run that is still at work.
clean_partials() {
    local partial process
    busy=
    for partial in "$libtorch".partial-*; do
        process=${partial##*-}
        if [[ $process =~ ^[0-9]+$ ]] && runs_setup "$process"; then
            busy=$process
        elif [[ -e $partial ]]; then
            discard "$partial"
        fi
    done
}

# discard FOLDER: renamed before it is deleted, because a pip that outlived its script may still write by the old name.
discard() {
    local doomed=${1%.discarded}.discarded
    if [[ $1 != "$doomed" ]]; then
        mv "$1" "$doomed"
    fi
    rm -rf "$doomed"
}

# runs_setup PROCESS: whether this process lives and is a set-up, not some other that got its number later.
runs_setup() {
    kill -0 "$1" 2>/dev/null || return 1
    if [[ -r /proc/$1/cmdline ]]; then
        tr '\0' ' ' <"/proc/$1/cmdline" | grep -q 'setup\.sh'
    elif command -v ps >/dev/null; then
        ps -o args= -p "$1" | grep -q 'setup\.sh'
    fi
}

# pip takes half a second to say its version: asked once.
require_pip() {
    if [[ -n ${has_pip:-} ]]; then
        return
    fi
    python3 -m pip --version >/dev/null 2>&1 ||
        fail_input "python3 has no pip: install it (Debian: apt-get install python3-pip; elsewhere: python3 -m ensurepip), or bring libtorch with --from."
    has_pip=yes
}

# require_space BYTES: before anything is written.
require_space() {
    local free
    free=$(($(df -Pk "$repository" | awk 'NR == 2 { print $4 }') * 1024))
    (($1 <= free)) ||
        fail_input "making libtorch/ needs $(megabytes "$1") and only $(megabytes "$free") are free where $repository is: make room."
}

# verify FILE SHA256: whether the file is the pinned one.
verify() {
    [[ $(python3 "$repository/scripts/unpack.py" sha256 "$1") == "$2" ]]
}

# fetch FILE SHA256: sets `wheel` to the pinned wheel, found beside the one that --from names or downloaded by its name.
fetch() {
    local file=$1 sha256=$2 distribution version tag errors
    if [[ -f $from && -f $(dirname "$from")/$file ]] && verify "$(dirname "$from")/$file" "$sha256"; then
        wheel=$(dirname "$from")/$file
        return
    fi
    require_pip
    # NAME-VERSION-PYTHON-ABI-PLATFORM.whl; several platforms are joined by dots and any of them selects the wheel.
    IFS=- read -r distribution version _ _ tag <<<"${file%.whl}"
    mkdir -p "$stage/download" "$stage/tmp"
    errors=$stage/errors
    local quiet=(--quiet)
    if [[ -t 1 ]]; then
        quiet=()
    fi
    # pip copies through TMPDIR: kept in the stage, where room was checked for. It is asked for a platform and for one Python
    # version, so that this machine's Python does not matter.
    if ! TMPDIR=$stage/tmp python3 -m pip download ${quiet[@]+"${quiet[@]}"} --disable-pip-version-check --no-deps \
        --only-binary=:all: --implementation cp --python-version "${python_tag#cp}" --abi "$python_tag" \
        --platform "${tag%%.*}" --dest "$stage/download" "${distribution//_/-}==$version" 2>"$errors"; then
        fail "pip could not download ${distribution//_/-} $version ($(sed -n 's/^ERROR: //p' "$errors" | tail -n 1)): check the network, or bring libtorch with --from."
    fi
    wheel=$stage/download/$file
    [[ -f $wheel ]] || fail "pip brought another file than $file, which scripts/libtorch.lock pins: try again with another package index."
    verify "$wheel" "$sha256" ||
        fail "$file is not the file that scripts/libtorch.lock pins (its SHA-256 differs): the download is damaged or was changed, so try again."
}

# unpack FILE PATTERN...: into the stage's site-packages; a downloaded wheel goes afterwards, it is no longer needed.
unpack() {
    local file=$1
    python3 "$repository/scripts/unpack.py" extract "$file" "$packages" "${@:2}" || exit
    if [[ $file == "$stage"/* ]]; then
        rm "$file"
    fi
}

# from_wheels TORCH_WHEEL: unpacks the torch wheel (none: the pinned one) and the pinned NVIDIA packages into the stage.
from_wheels() {
    local torch=${1:-} set bytes sha256 file library patterns=('torch/include/*' 'torch/lib/*' torch/version.py)
    local nvidia=('nvidia/*')
    if [[ $wanted != cuda ]]; then
        for library in "${cuda_libraries[@]}" "${python_libraries[@]}"; do
            patterns+=("!torch/lib/$library")
        done
        nvidia=('nvidia/*/lib/libcudart.so.*' 'nvidia/*/lib/libcupti.so.*')
    fi
    if [[ -n $torch ]]; then
        unpack "$torch" "${patterns[@]}"
    fi
    while read -r set bytes sha256 file <&3; do
        if [[ $set == cuda && $wanted != cuda ]]; then
            continue
        fi
        case $file in
            torch-*)
                if [[ -z $torch ]]; then
                    say "fetching torch $pinned_version for $platform ($(megabytes "$bytes"))."
                    fetch "$file" "$sha256"
                    unpack "$wheel" "${patterns[@]}"
                fi
                ;;
            *)
                if built_with_cuda; then
                    if [[ $wanted == cuda ]]; then
                        say "fetching ${file%%-*} ($(megabytes "$bytes"))."
                    fi
                    fetch "$file" "$sha256"
                    unpack "$wheel" "${nvidia[@]}"
                fi
                ;;
        esac
    done 3< <(lock_lines wheel "$platform")
}

# Whether the torch package in the stage was compiled with CUDA, whatever was taken of it.
built_with_cuda() {
    grep -q "^cuda.*= '" "$packages/torch/version.py"
}

# from_package TORCH_FOLDER: copies what the set needs of a Python environment's torch folder, and of nvidia/ beside it.
from_package() {
    local package=$1 file library
    mkdir -p "$packages/torch/lib"
    # -L: an environment may consist of links into a cache that is pruned some day.
    copy "$package/include" "$package/version.py" "$packages/torch"
    if [[ $wanted == cuda ]]; then
        copy "$package/lib/." "$packages/torch/lib"
        if [[ -d $package/../nvidia ]]; then
            copy "$package/../nvidia" "$packages"
        fi
        return
    fi
    for file in "$package"/lib/lib*.*; do
        for library in "${cuda_libraries[@]}" "${python_libraries[@]}"; do
            # shellcheck disable=SC2053  # a pattern
            if [[ ${file##*/} == $library ]]; then
                continue 2
            fi
        done
        copy "$file" "$packages/torch/lib"
    done
    if built_with_cuda; then
        mkdir -p "$packages/nvidia/runtime/lib"
        for file in "$package"/../nvidia/*/lib/libcudart.so.* "$package"/../nvidia/*/lib/libcupti.so.*; do
            if [[ -f $file ]]; then
                copy "$file" "$packages/nvidia/runtime/lib"
            fi
        done
    fi
}

copy() {
    cp -RL "$@" || fail "copying into ${stage##*/} failed: see the line above, mend it and run this again."
}

# arrange: makes the stage's libtorch/ out of its site-packages.
arrange() {
    local version=$1 file
    if [[ ! -f $packages/torch/lib/libtorch_cpu$library_suffix ]] || ! right_processor "$packages/torch/lib"; then
        fail_input "${from:-the pinned wheel} is torch for another platform than $platform: bring one for this."
    fi
    mkdir "$made"
    if [[ $wanted == cuda ]]; then
        # The libraries find each other as in site-packages (their rpath is $ORIGIN/../../nvidia/...), so that layout is kept.
        mv "$packages" "$made/site-packages"
        ln -s site-packages/torch/include site-packages/torch/lib "$made"
        echo "$version" >"$made/build-version"
        return
    fi
    mv "$packages/torch/include" "$packages/torch/lib" "$made"
    echo "${version%%+*}" >"$made/build-version"
    if built_with_cuda; then
        # libtorch_cpu.so of a CUDA build needs CUDA's runtime and its profiling interface; they work without a driver.
        for file in "$packages"/nvidia/*/lib/*; do
            if [[ -f $file ]]; then
                mv "$file" "$made/lib"
            fi
        done
        # Its libtorch.so needs libtorch_cuda.so. One in its place that needs only what is there: a linker script would do to
        # link, but libtorch.so is also loaded by name at run time.
        "${compiler[@]}" -shared -nostdlib -o "$made/lib/libtorch.so" -Wl,-soname,libtorch.so \
            -Wl,--no-as-needed "$made/lib/libtorch_cpu.so" "$made/lib/libc10.so" "-Wl,-rpath,\$ORIGIN" ||
            fail "${compiler[*]} could not link libtorch.so: see the lines above and set CXX to a working compiler."
    fi
}

# check_made: the new set is complete and, on Linux, finds every library that it needs.
check_made() {
    local missing
    check "$made" || fail_input "what ${from:-pip} gave $defect: bring another libtorch $pinned_version with --from."
    if [[ $(uname -s) == Linux ]] && command -v ldd >/dev/null; then
        missing=$(env -u LD_LIBRARY_PATH ldd "$made/lib/libtorch.so" 2>/dev/null | sed -n 's/^[[:space:]]*\(.*\) => not found.*/\1/p' | sort -u | tr '\n' ' ')
        [[ -z $missing ]] ||
            fail_input "the libraries of ${from:-the pinned wheels} need ${missing% }, which neither they nor this system have: bring another libtorch $pinned_version (its CPU build, or an official archive) with --from."
    fi
}

# put_in_place: the only moment in which libtorch/ changes.
put_in_place() {
    echo "$source_record" >"$made/setup-source"
    local replaced=
    if [[ -e $libtorch || -L $libtorch ]]; then
        replaced=yes
        mv "$libtorch" "$stage/replaced"
    fi
    mv "$made" "$libtorch"
    discard "$stage"
    stage=
    # The bindings' build script does not see that the libraries behind the same path are others.
    if [[ -n $replaced && -d $repository/target ]] && command -v cargo >/dev/null; then
        (cd "$repository" && cargo clean --quiet --release --offline -p torch-sys -p tch-suite) ||
            say "what was built with the former libtorch/ could not be removed: run cargo clean."
    fi
}

clean_up() {
    if [[ -n ${stage:-} ]]; then
        # Interrupted between the two renames of put_in_place: the former set goes back.
        if [[ -e $stage/replaced && ! -e $libtorch ]]; then
            mv "$stage/replaced" "$libtorch"
        fi
        if [[ -e $stage ]]; then
            discard "$stage"
        fi
    fi
}

wanted=
from=
while (($# > 0)); do
    case $1 in
        --cpu | --cuda)
            [[ -z $wanted || $wanted == "${1#--}" ]] || fail_input "--cpu and --cuda exclude each other: give one."
            wanted=${1#--}
            ;;
        --from)
            [[ -n ${2:-} ]] || fail_input "--from needs a wheel, an archive or a folder."
            from=$2
            shift
            ;;
        --from=*) from=${1#--from=} ;;
        --help | -h)
            usage
            exit
            ;;
        *) fail_input "unknown argument '$1': --help lists what there is." ;;
    esac
    shift
done

require_compiler
honour_environment
if [[ -n $from ]]; then
    [[ -e $from ]] || fail_input "--from names $from, which does not exist: give a torch wheel, a libtorch archive or a folder."
    from=$(cd "$(dirname "$from")" && pwd -P)/$(basename "$from")
    from=${from%/.}
fi

# What made libtorch/ is kept in it, so that the same --from twice does the work once.
source_record=${from:-pip}
clean_partials
if check "$libtorch" && [[ -z $wanted || $wanted == "$kind" ]]; then
    if [[ -z $from || ($(cat "$libtorch/setup-source" 2>/dev/null) == "$source_record" && ! $from -nt $libtorch/setup-source) ]]; then
        say "libtorch $(read_version "$libtorch") ($(name_of "$kind")) is already in libtorch/."
        exit 0
    fi
fi
[[ -z $busy ]] || fail "another set-up (process $busy) is making libtorch/: wait until it has ended."

SECONDS=0
find_platform
python_tag=$(lock_lines wheel "$platform" | sed -n 's/.* torch-[^-]*-\([^-]*\)-.*/\1/p')
stage=$libtorch.partial-$$
packages=$stage/site-packages
made=$stage/libtorch
trap clean_up EXIT
trap 'exit 130' INT

# need_size: sets `size` to what the lock file says the wanted set takes.
need_size() {
    size=$(lock_lines size "$platform" | sed -n "s/^${wanted:-cpu} //p")
    [[ -n $size ]] ||
        fail_input "the $(name_of "$wanted") set is not pinned for $platform: bring a libtorch archive or folder of it with --from."
}

# require_space_for_wheels: at the worst moment there are the laid-out set, the largest wheel that is downloaded, and pip's
# own copy of it.
require_space_for_wheels() {
    local largest
    largest=$(lock_lines wheel "$platform" | awk -v wanted="$wanted" -v from="$from" '
        $1 == "cuda" && wanted != "cuda" { next }
        $4 ~ /^torch-/ && from != "" { next }
        $2 > largest { largest = $2 }
        END { print largest + 0 }')
    require_space $((size + 2 * largest))
}

# The archive or folder is one libtorch, CPU or CUDA: which one cannot be chosen.
refuse_other_kind() {
    [[ -z $wanted || $wanted == "$kind" ]] ||
        fail_input "$from is a $(name_of "$kind") libtorch and is taken as it is: leave out --$wanted, or bring another."
}

if [[ -z $from ]]; then
    require_python "$python_remedy"
    require_pip
    need_size
    require_space_for_wheels
    mkdir -p "$packages"
    from_wheels
    arrange "$(read_version "$packages/torch")"
elif [[ -f $from ]]; then
    require_python "$python_remedy"
    inspected=$(python3 "$repository/scripts/unpack.py" inspect "$from") || exit
    read -r type version <<<"$inspected"
    case $type in
        wheel)
            [[ ${version%%+*} == "$pinned_version" ]] ||
                fail_input "$from is torch $version where $pinned_version is needed: bring that version."
            need_size
            require_space_for_wheels
            mkdir -p "$packages"
            say "unpacking ${from##*/}."
            from_wheels "$from"
            arrange "$(read_version "$packages/torch")"
            ;;
        libtorch)
            [[ ${version%%+*} == "$pinned_version" ]] ||
                fail_input "$from is libtorch $version where $pinned_version is needed: bring that version."
            mkdir -p "$stage"
            say "unpacking ${from##*/}."
            packages=$stage
            unpack "$from" 'libtorch/include/*' 'libtorch/lib/*' '!libtorch/lib/*.a' libtorch/build-version
            check "$made" || fail_input "$from $defect: bring an official archive of the shared libraries."
            refuse_other_kind
            ;;
    esac
else
    package=
    for folder in "$from" "$from/site-packages/torch"; do
        if [[ -f $folder/version.py ]]; then
            package=$folder
        fi
    done
    check "${package:-$from}" || fail_input "$from $defect: give a libtorch $pinned_version folder or the torch folder of a Python environment."
    if [[ -n $package ]]; then
        [[ $wanted != cuda || $kind == cuda ]] ||
            fail_input "$from has no CUDA (lib/libtorch_cuda.so): leave out --cuda, or bring another."
        mkdir -p "$packages"
        require_space "$(($(du -skL "$package/include" "$package/lib" | awk '{ sum += $1 } END { print sum }') * 1024))"
        say "copying $package."
        from_package "$package"
        arrange "$(read_version "$package")"
    else
        refuse_other_kind
        require_space "$(($(du -skL "$from/include" "$from/lib" | awk '{ sum += $1 } END { print sum }') * 1024))"
        mkdir -p "$made"
        say "copying $from."
        copy "$from/include" "$from/lib" "$from/build-version" "$made"
    fi
fi

check_made
put_in_place
check "$libtorch"
say "libtorch $(read_version "$libtorch") ($(name_of "$kind")) is ready in libtorch/ ($(($(du -sk "$libtorch/" | cut -f1) * 1024 / 1000000)) MB, $SECONDS s)."
