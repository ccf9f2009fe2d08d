#!/usr/bin/env bash
# Tests of the scripts, on a copy of them with made-up wheels: no network, no real libtorch, nothing of the repository is
# touched. Prints a line for each test and ends with "N passed; N failed; N ignored", as cargo's harness does.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
if [[ $(uname -s) != Linux ]]; then
    # The made-up libraries and the wheels' platform are Linux's.
    echo "scripts: 0 passed; 0 failed; 1 ignored (the tests of the scripts run on Linux)"
    exit 0
fi

work=$(cd "$(mktemp -d)" && pwd -P)
trap 'rm -rf "$work"' EXIT
unset LIBTORCH LIBTORCH_USE_PYTORCH CARGO_TARGET_DIR VIRTUAL_ENV CXX
platform=linux-$(uname -m)
passed=0
failed=0
ignored=0

# A repository to set up: a copy of the scripts with a lock file that pins the made-up wheels.
repo=$work/repo
setup=$repo/scripts/setup.sh
mkdir -p "$repo/scripts/tests"
cp "$repository"/scripts/*.* "$repo/scripts/"
cp "$repository/Cargo.toml" "$repo/"
cp -R "$repository/assets" "$repo/"

# ---- Made-up libtorch ----------------------------------------------------------------------------------------------

# library FILE NEEDED...: a tiny shared library that needs others in its folder.
library() {
    local file=$1
    shift
    # shellcheck disable=SC2046  # words on purpose
    c++ -shared -nostdlib -o "$file" -Wl,-soname,"${file##*/}" -Wl,--no-as-needed -Wl,--allow-shlib-undefined \
        $(printf "${file%/*}/%s " "$@") "-Wl,-rpath,\$ORIGIN:\$ORIGIN/../../nvidia/cu13/lib"
}

# What the wheels hold: a CUDA build of torch and the two NVIDIA packages whose libraries its CPU part needs, too.
tree=$work/tree
mkdir -p "$tree/torch/include/torch/csrc" "$tree/torch/lib/libshm" "$tree/nvidia/cu13/lib" "$tree/nvidia/cudnn/lib"
echo '// a header' >"$tree/torch/include/torch/csrc/header.h"
echo '// a header' >"$tree/torch/lib/libshm/header.h"
printf "__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n" >"$tree/torch/version.py"
for name in libcudart.so.13 libcupti.so.13 libcublas.so.13; do
    c++ -shared -nostdlib -o "$tree/nvidia/cu13/lib/$name" -Wl,-soname,"$name" -x c++ /dev/null
done
c++ -shared -nostdlib -o "$tree/nvidia/cudnn/lib/libcudnn.so.9" -Wl,-soname,libcudnn.so.9 -x c++ /dev/null
lib=$tree/torch/lib
c++ -shared -nostdlib -o "$lib/libc10.so" -Wl,-soname,libc10.so -x c++ /dev/null
library "$lib/libtorch_cpu.so" libc10.so ../../nvidia/cu13/lib/libcudart.so.13 ../../nvidia/cu13/lib/libcupti.so.13
library "$lib/libtorch_cuda.so" libtorch_cpu.so ../../nvidia/cu13/lib/libcublas.so.13
library "$lib/libtorch.so" libtorch_cpu.so libtorch_cuda.so
cp "$lib/libc10.so" "$lib/libtorch_python.so"

# make_wheel FILE TOP...: a wheel of these parts of the tree.
wheels=$work/wheels
mkdir "$wheels"
make_wheel() {
    python3 - "$tree" "$wheels" "$@" <<'END'
import os, sys, zipfile
tree, wheels, file, *tops = sys.argv[1:]
name, version = file.split("-")[:2]
with zipfile.ZipFile(os.path.join(wheels, file), "w", zipfile.ZIP_DEFLATED) as wheel:
    for top in tops:
        for folder, _, files in os.walk(os.path.join(tree, top)):
            for entry in files:
                path = os.path.join(folder, entry)
                wheel.write(path, os.path.relpath(path, tree))
    info = f"{name}-{version}.dist-info/"
    wheel.writestr(info + "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: false\nTag: " + "-".join(file[:-4].split("-")[2:]) + "\n")
    wheel.writestr(info + "RECORD", "")
END
}
torch_wheel=torch-2.13.0-cp311-cp311-manylinux_2_28_$(uname -m).whl
make_wheel "$torch_wheel" torch
make_wheel "nvidia_cuda_runtime-13.0.96-py3-none-manylinux_2_17_$(uname -m).whl" nvidia/cu13
make_wheel "nvidia_cudnn_cu13-9.20.0.48-py3-none-manylinux_2_27_$(uname -m).whl" nvidia/cudnn
# write_lock: pins the wheels as they are now.
write_lock() {
    local file set
    for file in "$torch_wheel" nvidia_cuda_runtime nvidia_cudnn_cu13; do
        file=$(basename "$wheels/$file"*)
        set=both
        if [[ $file == nvidia_cudnn* ]]; then
            set=cuda
        fi
        echo "wheel $platform $set $(wc -c <"$wheels/$file") $(sha256sum "$wheels/$file" | cut -d' ' -f1) $file"
    done
    echo "size $platform cpu 200000"
    echo "size $platform cuda 300000"
}
write_lock >"$work/lock"
cp "$work/lock" "$repo/scripts/libtorch.lock"

# A complete libtorch folder, of which the CPU set consists.
good=$work/good
mkdir -p "$good/lib"
cp -R "$tree/torch/include" "$good/"
cp "$lib/libc10.so" "$good/lib/"
library "$good/lib/libtorch_cpu.so" libc10.so
library "$good/lib/libtorch.so" libtorch_cpu.so
echo 2.13.0+cpu >"$good/build-version"

# variant NAME: a copy of the good folder to spoil; sets `folder`.
variant() {
    folder=$work/$1
    cp -R "$good" "$folder"
}

# ---- Machinery ------------------------------------------------------------------------------------------------------

# pip takes the wheels from a folder and asks no index.
export PIP_NO_INDEX=1 PIP_FIND_LINKS=$wheels PIP_NO_CACHE_DIR=1 PIP_CONFIG_FILE=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1

# run COMMAND...: sets `status`, `output` (both streams) and `errors` (stderr).
run() {
    status=0
    "$@" >"$work/stdout" 2>"$work/stderr" </dev/null || status=$?
    output=$(cat "$work/stdout" "$work/stderr")
    errors=$(cat "$work/stderr")
}

# The test in progress: its name, and what was wrong so far.
name=
wrong=()
begin() {
    finish
    start=$SECONDS
    name=$1
    wrong=()
    rm -rf "$repo/libtorch" "$repo"/libtorch.partial-*
}
finish() {
    if [[ -z $name ]]; then
        return
    fi
    if ((${#wrong[@]} == 0)); then
        passed=$((passed + 1))
        echo "test $name ... ok ($((SECONDS - start)) s)"
    else
        failed=$((failed + 1))
        echo "test $name ... FAILED"
        printf '    %s\n' "${wrong[@]}" "exit status $status, output:" "$output"
    fi
}

# expect STATUS [TEXT...]: the last run's status, and texts that its output holds.
expect() {
    local text
    if [[ $status != "$1" ]]; then
        wrong+=("exit status $status instead of $1")
    fi
    for text in "${@:2}"; do
        if [[ $output != *"$text"* ]]; then
            wrong+=("the output lacks: $text")
        fi
    done
    if [[ $1 == 1 || $1 == 2 ]] && [[ $(wc -l <<<"$errors") != 1 ]]; then
        wrong+=("stderr is not one line")
    fi
}

# that DESCRIPTION CONDITION...
that() {
    if ! "${@:2}"; then
        wrong+=("not so: $1")
    fi
}

# skip SENTENCE: says that a part could not be tested, as the tests in Rust do.
skip() {
    echo "skipped: $1" >&2
    if [[ -n ${TCH_SUITE_SKIP_LOG:-} ]]; then
        echo "$1" >>"$TCH_SUITE_SKIP_LOG"
    fi
}

exists() { [[ -e $1 || -L $1 ]]; }
absent() { ! exists "$1"; }
no_partial() { ! compgen -G "$repo/libtorch.partial-*" >/dev/null; }
loads() { python3 -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1"; }
says() { [[ $(cat "$1") == "$2" ]]; }
is() { [[ $1 == "$2" ]]; }

# tools NAME WITHOUT...: a PATH folder with the ordinary tools but those; sets `bin`. Scripts put in it replace tools.
tools() {
    local tool
    bin=$work/bin-$1
    mkdir -p "$bin"
    for tool in bash env sh dirname basename sed head tail cat grep tr od cut awk df du mkdir rmdir rm mv cp ln uname getconf \
        sort ldd readlink mktemp date sleep wc tee paste python3 c++ cargo touch chmod; do
        if [[ " ${*:2} " != *" $tool "* ]] && command -v "$tool" >/dev/null; then
            ln -sf "$(command -v "$tool")" "$bin/$tool"
        fi
    done
}

# replace TOOL: the script on stdin takes its place in `bin`.
replace() {
    rm -f "$bin/$1"
    cat >"$bin/$1"
    chmod +x "$bin/$1"
}

# wait_for CONDITION...: up to ten seconds.
wait_for() {
    local tries=0
    while ! "$@"; do
        if ((++tries > 200)); then
            wrong+=("waited in vain for: $*")
            return
        fi
        sleep 0.05
    done
}

# ---- setup.sh -------------------------------------------------------------------------------------------------------

begin "setup: --help explains and makes nothing"
run "$setup" --help
expect 0 "usage: scripts/setup.sh" "--from"
that "nothing is made" absent "$repo/libtorch"

begin "setup: wrong usage"
run "$setup" --gpu
expect 2 "unknown argument '--gpu'"
run "$setup" --cpu --cuda
expect 2 "exclude each other"
run "$setup" --from
expect 2 "--from needs"
run "$setup" --from "$work/nowhere"
expect 2 "does not exist"

begin "setup: the CPU set through pip"
run "$setup"
expect 0 "libtorch 2.13.0 (CPU) is ready"
that "libtorch.so loads" loads "$repo/libtorch/lib/libtorch.so"
that "the version is written" says "$repo/libtorch/build-version" 2.13.0
for file in include/torch/csrc/header.h lib/libtorch_cpu.so lib/libcudart.so.13 lib/libcupti.so.13; do
    that "$file is there" exists "$repo/libtorch/$file"
done
for file in lib/libtorch_cuda.so lib/libtorch_python.so lib/libshm lib/libcublas.so.13; do
    that "$file is left out" absent "$repo/libtorch/$file"
done
that "no partial is left" no_partial

begin "setup: the CUDA set keeps the layout of site-packages"
run "$setup" --cuda
expect 0 "libtorch 2.13.0+cu130 (CUDA) is ready"
that "libtorch.so loads" loads "$repo/libtorch/lib/libtorch.so"
that "the NVIDIA packages lie beside torch" exists "$repo/libtorch/lib/../../nvidia/cudnn/lib/libcudnn.so.9"
run "$setup"
expect 0 "(CUDA) is already in libtorch/"
run "$setup" --cpu
expect 0 "(CPU) is ready"
that "the CUDA set is gone" absent "$repo/libtorch/site-packages"

begin "setup: a complete set is left alone"
run "$setup" --from "$good"
expect 0 "is ready"
touch "$repo/libtorch/mark"
for arguments in "" "--cpu" "--from $good" "--from $good/"; do
    # shellcheck disable=SC2086  # words on purpose
    run "$setup" $arguments
    expect 0 "libtorch 2.13.0+cpu (CPU) is already in libtorch/"
    that "it is the same folder" exists "$repo/libtorch/mark"
done
run "$setup" --from "$wheels/$torch_wheel"
expect 0 "is ready"
that "another --from replaces it" absent "$repo/libtorch/mark"

begin "setup: an incomplete set is replaced"
mkdir -p "$repo/libtorch/include/torch/csrc"
echo 2.13.0 >"$repo/libtorch/build-version"
run "$setup" --from "$good"
expect 0 "is ready"
that "it is complete now" exists "$repo/libtorch/lib/libtorch.so"

begin "setup: from a wheel, with the NVIDIA packages beside it"
run env PIP_FIND_LINKS="$work" "$setup" --from "$wheels/$torch_wheel"
expect 0 "(CPU) is ready"
that "libtorch.so loads" loads "$repo/libtorch/lib/libtorch.so"

begin "setup: from a relative path and another current directory"
cd "$wheels"
run "$setup" --from "$torch_wheel"
cd "$work"
expect 0 "(CPU) is ready"
that "it is in the repository" exists "$repo/libtorch/lib/libtorch.so"
that "it is nowhere else" absent "$wheels/libtorch"

begin "setup: from the torch folder of a Python environment"
run "$setup" --from "$tree/torch"
expect 0 "libtorch 2.13.0 (CPU) is ready"
that "libtorch.so loads" loads "$repo/libtorch/lib/libtorch.so"
that "CUDA is left out" absent "$repo/libtorch/lib/libtorch_cuda.so"
run "$setup" --cuda --from "$tree/torch"
expect 0 "(CUDA) is ready"
that "libtorch.so loads with CUDA" loads "$repo/libtorch/lib/libtorch.so"
mv "$repo/libtorch" "$work/cuda-set"
run "$setup" --cuda --from "$work/cuda-set"
expect 0 "(CUDA) is ready"
that "a CUDA set made by the script serves as well" loads "$repo/libtorch/lib/libtorch.so"

begin "setup: from an official archive"
mkdir "$work/archive"
cp -R "$good" "$work/archive/libtorch"
(cd "$work/archive" && python3 -m zipfile -c "$work/official.zip" libtorch)
run "$setup" --from "$work/official.zip"
expect 0 "libtorch 2.13.0+cpu (CPU) is ready"
that "libtorch.so loads" loads "$repo/libtorch/lib/libtorch.so"
run "$setup" --cuda --from "$work/official.zip"
expect 2 "is a CPU libtorch and is taken as it is"
that "what was there stays" exists "$repo/libtorch/lib/libtorch.so"

begin "setup: damaged and foreign archives"
head -c 2000 "$work/official.zip" >"$work/truncated.zip"
run "$setup" --from "$work/truncated.zip"
expect 2 "is damaged or no zip file"
python3 - "$work/official.zip" "$work/flipped.zip" <<'END'
import sys, zipfile
content = bytearray(open(sys.argv[1], "rb").read())
member = zipfile.ZipFile(sys.argv[1]).getinfo("libtorch/lib/libtorch_cpu.so")
content[member.header_offset + 30 + len(member.filename) + 100] ^= 0xFF
open(sys.argv[2], "wb").write(content)
END
run "$setup" --from "$work/flipped.zip"
expect 2 "is damaged"
(cd "$work" && python3 -m zipfile -c other.zip good)
run "$setup" --from "$work/other.zip"
expect 2 "neither a torch wheel nor a libtorch archive"
variant old-archive
echo 2.12.1 >"$folder/build-version"
rm -rf "$work/archive/libtorch"
mv "$folder" "$work/archive/libtorch"
(cd "$work/archive" && python3 -m zipfile -c "$work/old.zip" libtorch)
run "$setup" --from "$work/old.zip"
expect 2 "is libtorch 2.12.1 where 2.13.0 is needed"
that "nothing is made" absent "$repo/libtorch"
that "no partial is left" no_partial

begin "setup: broken folders"
variant no-headers
rm -r "$folder/include"
run "$setup" --from "$folder"
expect 2 "has no headers"
variant no-library
rm "$folder/lib/libtorch_cpu.so"
run "$setup" --from "$folder"
expect 2 "has no lib/libtorch_cpu.so"
variant no-version
rm "$folder/build-version"
run "$setup" --from "$folder"
expect 2 "does not say its version"
variant wrong-version
echo 2.12.0 >"$folder/build-version"
run "$setup" --from "$folder"
expect 2 "is version 2.12.0 where 2.13.0 is needed"
variant wrong-processor
printf '\0\0' | dd of="$folder/lib/libtorch_cpu.so" bs=1 seek=18 conv=notrunc status=none
run "$setup" --from "$folder"
expect 2 "for another processor"
run "$setup" --cuda --from "$good"
expect 2 "is a CPU libtorch"
for machine in x86_64 aarch64; do
    tools "foreign-$machine" uname
    replace uname <<END
#!/bin/bash
case \$1 in
    -s) echo Linux ;;
    -m) echo $machine ;;
esac
END
    sed "s/$platform/linux-$machine/" "$work/lock" >"$repo/scripts/libtorch.lock"
    if [[ $machine != "$(uname -m)" ]]; then
        run env PATH="$bin" "$setup" --from "$wheels/$torch_wheel"
        expect 2 "is torch for another platform than linux-$machine"
    fi
done
cp "$work/lock" "$repo/scripts/libtorch.lock"
variant lacks-a-library
c++ -shared -nostdlib -o "$work/libabsent.so" -Wl,-soname,libabsent.so -x c++ /dev/null
library "$folder/lib/libtorch_cpu.so" libc10.so ../../libabsent.so
rm "$work/libabsent.so"
run "$setup" --from "$folder"
expect 2 "need libabsent.so"
that "nothing is made" absent "$repo/libtorch"
that "no partial is left" no_partial

begin "setup: a wheel that differs from the lock file is refused and the former set stays"
run "$setup" --from "$good"
sed -i '/cudnn/s/ [0-9a-f]\{64\} / 0000000000000000000000000000000000000000000000000000000000000000 /' "$repo/scripts/libtorch.lock"
run "$setup" --cuda
cp "$work/lock" "$repo/scripts/libtorch.lock"
expect 1 "is not the file that scripts/libtorch.lock pins"
that "the former set stays" says "$repo/libtorch/build-version" 2.13.0+cpu
that "no partial is left" no_partial

begin "setup: pip fails"
run env PIP_FIND_LINKS="$work" "$setup"
expect 1 "pip could not download torch 2.13.0" "check the network"
that "nothing is made" absent "$repo/libtorch"
that "no partial is left" no_partial

# A pip that never ends, to be interrupted.
tools hanging python3
replace python3 <<END
#!/bin/bash
if [[ " \$* " == *" pip download "* ]]; then
    echo \$\$ >"$work/pip"
    exec sleep 60
fi
exec "$(command -v python3)" "\$@"
END

begin "setup: killed in the middle, then run again"
rm -f "$work/pip"
PATH=$bin "$setup" >/dev/null 2>&1 &
process=$!
wait_for exists "$work/pip"
run env PATH="$bin" "$setup"
expect 1 "another set-up (process $process)"
kill -KILL "$process"
wait "$process" 2>/dev/null || true
that "nothing is half-made" absent "$repo/libtorch"
that "the partial is left" exists "$repo/libtorch.partial-$process"
kill "$(cat "$work/pip")" 2>/dev/null || true
run "$setup" --from "$good"
expect 0 "is ready"
that "the partial is cleaned up" no_partial

begin "setup: terminated in the middle"
rm -f "$work/pip"
PATH=$bin "$setup" >/dev/null 2>&1 &
process=$!
wait_for exists "$work/pip"
kill -TERM "$process"
status=0
wait "$process" 2>/dev/null || status=$?
expect 143
kill "$(cat "$work/pip")" 2>/dev/null || true
that "nothing is made" absent "$repo/libtorch"
that "no partial is left" no_partial

begin "setup: missing tools"
tools no-python python3
run env PATH="$bin" "$setup"
expect 2 "python3 is missing"
run env PATH="$bin" "$setup" --from "$good"
expect 0 "is ready"
rm -rf "$repo/libtorch"
tools no-pip python3
replace python3 <<END
#!/bin/bash
if [[ \$1 == -m && \$2 == pip ]]; then
    exit 1
fi
exec "$(command -v python3)" "\$@"
END
run env PATH="$bin" "$setup"
expect 2 "python3 has no pip"
tools no-compiler c++
run env PATH="$bin" "$setup"
expect 2 "there is no C++ compiler"
tools old-compiler c++
replace c++ <<'END'
#!/bin/bash
exit 1
END
run env PATH="$bin" "$setup"
expect 2 "cannot compile C++20"
run env CXX="no-such-compiler -O2" "$setup"
expect 2 "there is no C++ compiler (no-such-compiler)"
that "nothing is made" absent "$repo/libtorch"

begin "setup: unsupported platforms"
tools platform uname getconf
replace uname <<'END'
#!/bin/bash
case $1 in
    -s) echo FreeBSD ;;
    -m) echo amd64 ;;
esac
END
run env PATH="$bin" "$setup"
expect 2 "no prebuilt libtorch for FreeBSD on amd64" "set LIBTORCH"
ln -sf "$(command -v uname)" "$bin/uname"
replace getconf <<'END'
#!/bin/bash
echo glibc 2.17
END
run env PATH="$bin" "$setup"
expect 2 "needs glibc 2.28 or newer and this system has glibc 2.17"
replace getconf <<'END'
#!/bin/bash
exit 1
END
run env PATH="$bin" "$setup"
expect 2 "another C library"
sed -i "/^size $platform cuda/d" "$repo/scripts/libtorch.lock"
run "$setup" --cuda
cp "$work/lock" "$repo/scripts/libtorch.lock"
expect 2 "the CUDA set is not pinned for $platform"

begin "setup: a full disk is seen before anything is fetched"
tools disk df
replace df <<'END'
#!/bin/bash
printf 'Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/disk 1000 900 100 90%% /\n'
END
run env PATH="$bin" "$setup"
expect 2 "and only 1 MB are free"
that "nothing is made" absent "$repo/libtorch"
that "no partial is left" no_partial

begin "setup: LIBTORCH is honoured"
run env LIBTORCH="$good" "$setup"
expect 0 "using libtorch 2.13.0+cpu (CPU) in $good, as LIBTORCH says"
run env LIBTORCH="$work/cuda-set" "$setup" --cuda
expect 0 "(CUDA) in $work/cuda-set"
run env LIBTORCH="$good" "$setup" --cuda
expect 2 "has no CUDA"
run env LIBTORCH="$good" "$setup" --from "$good"
expect 2 "--from would have no effect"
run env LIBTORCH="$work/wrong-version" "$setup"
expect 2 "LIBTORCH names $work/wrong-version, which is version 2.12.0"
run env LIBTORCH="$work/nowhere" "$setup"
expect 2 "which is no folder"
run env LIBTORCH= "$setup"
expect 2 "LIBTORCH is ''"
run env LIBTORCH=good "$setup"
expect 2 "no absolute path"
that "nothing is made" absent "$repo/libtorch"
run env LIBTORCH="$repo/libtorch" "$setup" --from "$good"
expect 0 "is ready"

begin "setup: LIBTORCH_USE_PYTORCH is honoured"
mkdir -p "$work/environment/setuptools"
cp -R "$tree/torch" "$work/environment/"
touch "$work/environment/torch/__init__.py" "$work/environment/setuptools/__init__.py"
run env LIBTORCH_USE_PYTORCH=1 PYTHONPATH="$work/environment" "$setup"
expect 0 "using libtorch 2.13.0+cu130 (CUDA) in $work/environment/torch, as LIBTORCH_USE_PYTORCH says"
run env LIBTORCH_USE_PYTORCH=1 PATH="$work/bin-no-python" "$setup"
expect 2 "python3 has no torch with setuptools"
that "nothing is made" absent "$repo/libtorch"

# ---- The other scripts ----------------------------------------------------------------------------------------------

# A cnn that writes the metrics of a falling loss; ERROR shifts the loss on CUDA, USABLE is what doctor says.
mkdir -p "$repo/target/release"
cat >"$repo/target/release/cnn" <<'END'
#!/bin/bash
set -euo pipefail
verb=$1
shift
run= device=cpu precision=fp32 steps= first=1 start=2
while (($# > 0)); do
    case $1 in
        --device) device=$2 ;;
        --precision) precision=$2 ;;
        --steps) steps=$2 ;;
        --out) run=$2 ;;
        --init-from) start=${START:-1} ;;
        --resume)
            run=$2
            read -r device precision first <"$run/recipe.json"
            ;;
        [!-]*) run=$1 ;;
    esac
    case $1 in
        --quiet) shift ;;
        -*) shift 2 ;;
        *) shift ;;
    esac
done
shift=0
if [[ $device == cuda ]]; then
    shift=${ERROR:-0}
fi
if [[ $verb == "${FAIL_VERB:-}" ]]; then
    echo "cnn: $verb failed" >&2
    exit 1
fi
case $verb in
    doctor) printf '{\n  "cuda": {\n    "devices": [],\n    "linked": true,\n    "usable": %s\n  },\n  "mps_usable": false\n}\n' "${USABLE:-true}" ;;
    eval) awk -v shift="$shift" 'BEGIN { printf "{\n  \"metrics\": {\n    \"accuracy\": 0.5,\n    \"loss\": %g\n  },\n  \"split\": \"test\"\n}\n", 0.5 * (1 + shift) }' ;;
    train)
        mkdir -p "$run"
        scale=
        if [[ $precision == fp16 ]]; then
            scale=',"loss_scale":65536'
        fi
        awk -v first="$first" -v last="$steps" -v start="$start" -v shift="$shift" -v scale="$scale" 'BEGIN {
            for (step = first; step <= last; step++) {
                loss = start / (1 + step / 20) * (1 + shift)
                print "{\"split\":\"train\",\"step\":" step ",\"epoch\":0.1,\"loss\":" loss scale ",\"lr\":0.1}"
            }
        }' >>"$run/metrics.jsonl"
        echo "{\"split\":\"validation\",\"step\":$steps,\"epoch\":0.1,\"loss\":0.1}" >>"$run/metrics.jsonl"
        echo "$device $precision $((${RESUME_AT:-$steps} + 1))" >"$run/recipe.json"
        ;;
esac
END
chmod +x "$repo/target/release/cnn"

begin "demo: needs cargo, and a new one"
tools no-cargo cargo
run env PATH="$bin" "$repo/scripts/demo.sh"
expect 2 "cargo is missing"
tools old-cargo cargo
replace cargo <<'END'
#!/bin/bash
echo "cargo 1.70.0 (abcdef 2023-01-01)"
END
run env PATH="$bin" "$repo/scripts/demo.sh"
expect 2 "cargo says 1.70.0"
run "$repo/scripts/demo.sh" --fast
expect 2 "unknown argument"

begin "demo: trains, evaluates, predicts and exports, and stops where something fails"
tools builds cargo
replace cargo <<'END'
#!/bin/bash
echo "cargo 1.95.0 (abcdef 2026-01-01)"
END
run env LIBTORCH="$good" PATH="$bin" "$repo/scripts/demo.sh"
expect 0 "\$ cnn train --out runs/demo-" "\$ cnn eval runs/demo-" "\$ cnn predict runs/demo-" "/report.html"
that "the digits are predicted" is "$(grep -c 'cnn predict .* assets/digits$' "$work/stdout")" 1
that "it exports" is "$(grep -c 'cnn export .* --format torchscript --out runs/demo-.*/lenet5.pt' "$work/stdout")" 1
run env FAIL_VERB=eval LIBTORCH="$good" PATH="$bin" "$repo/scripts/demo.sh"
expect 1 "cnn: eval failed"
that "it goes no further" is "$(grep -c '^\$ cnn predict' "$work/stdout")" 0

# A cargo whose tests pass, one of them by skipping; FAIL names the verb that fails.
tools checks cargo
replace cargo <<'END'
#!/bin/bash
case $1 in
    --version) echo "cargo 1.95.0 (abcdef 2026-01-01)" ;;
    test)
        echo "test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s"
        echo "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s"
        echo "mnist::whole: needs mnist/" >>"$TCH_SUITE_SKIP_LOG"
        ;;
esac
[[ $1 != "${FAIL:-}" ]]
END
printf '#!/bin/bash\necho "scripts: 4 passed; 0 failed; 0 ignored"\n' >"$repo/scripts/tests/run.sh"
chmod +x "$repo/scripts/tests/run.sh"

begin "test: counts what passed, failed and was skipped"
run env -u TCH_SUITE_DATA LIBTORCH="$good" PATH="$bin" "$repo/scripts/test.sh"
expect 0 "1 test skipped (TCH_SUITE_DATA is not set)" "mnist::whole"
that "the last line counts" is "$(tail -n 1 "$work/stdout")" "test: 14 passed, 0 failed, 3 skipped"
run env TCH_SUITE_DATA="$work" LIBTORCH="$good" PATH="$bin" "$repo/scripts/test.sh" --strict
that "--strict fails" is "$status" 1
that "it says why" is "$(grep -c 'because of --strict' "$work/stdout")" 1
run env TCH_SUITE_DATA="$work/nowhere" LIBTORCH="$good" PATH="$bin" "$repo/scripts/test.sh"
expect 2 "TCH_SUITE_DATA names $work/nowhere"
run env FAIL=clippy LIBTORCH="$good" PATH="$bin" "$repo/scripts/test.sh"
that "a failing check fails" is "$status" 1
that "the others still run" is "$(tail -n 1 "$work/stdout")" "test: 13 passed, 1 failed, 3 skipped"
run env FAIL=test LIBTORCH="$good" PATH="$bin" "$repo/scripts/test.sh"
that "tests that die count as one failure" is "$(tail -n 1 "$work/stdout")" "test: 14 passed, 1 failed, 3 skipped"

begin "check_cuda: exits 77 without a GPU"
tools gpu cargo
replace nvidia-smi <<'END'
#!/bin/bash
echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
exit 9
END
run env PATH="$bin" "$repo/scripts/check_cuda.sh"
expect 77 "lists no GPU"
that "in one line" is "$(wc -l <<<"$output")" 1

begin "check_cuda: compares losses with the CPU"
replace nvidia-smi <<'END'
#!/bin/bash
echo "GPU 0: made up"
END
replace cargo <<'END'
#!/bin/bash
echo "cargo 1.95.0 (abcdef 2026-01-01)"
END
cuda=(env LIBTORCH="$work/cuda-set" TMPDIR="$work" PATH="$bin")
run "${cuda[@]}" "$repo/scripts/check_cuda.sh"
expect 0 "check_cuda: 10 passed, 0 failed" "60 of 60 lines report a loss scale"
run "${cuda[@]}" ERROR=0.03 "$repo/scripts/check_cuda.sh"
that "3 % is too much in fp32 only" is "$(tail -n 2 "$work/stdout" | head -n 1)" "check_cuda: 8 passed, 2 failed"
run "${cuda[@]}" FAIL_VERB=train "$repo/scripts/check_cuda.sh"
that "it stops where training fails" is "$status" 1
run "${cuda[@]}" ERROR=0.07 "$repo/scripts/check_cuda.sh"
that "7 % is too much in each" is "$(tail -n 2 "$work/stdout" | head -n 1)" "check_cuda: 4 passed, 6 failed"
that "it fails" is "$status" 1
run "${cuda[@]}" RESUME_AT=28 "$repo/scripts/check_cuda.sh"
expect 1 "fp32: FAILED: line 31 is step 29"
run "${cuda[@]}" START=2.5 "$repo/scripts/check_cuda.sh"
expect 1 "FAILED: fine-tuning begins at loss"
run "${cuda[@]}" USABLE=false "$repo/scripts/check_cuda.sh"
expect 77 "cannot use the GPU"

begin "ci: names the data and runs the tests"
mkdir -p "$work/ci/clone/.ci" "$work/ci/clone/scripts" "$work/ci/shared/data"
cp "$repository/.ci/run" "$work/ci/clone/.ci/"
cat >"$work/ci/clone/scripts/test.sh" <<'END'
#!/bin/bash
echo "data: $TCH_SUITE_DATA, arguments: $*"
END
chmod +x "$work/ci/clone/scripts/test.sh"
run "$work/ci/clone/.ci/run" --strict
expect 0 "data: $work/ci/shared/data, arguments: --strict"

begin "assets: the script makes the committed images again"
run "$repository/scripts/make_assets.py" "$work" "$work/assets"
expect 1 "has neither train-images-idx3-ubyte"
if [[ -d ${TCH_SUITE_DATA:-}/mnist ]]; then
    run "$repository/scripts/make_assets.py" "$TCH_SUITE_DATA/mnist" "$work/assets"
    expect 0
    for file in "$repository"/assets/mnist-mini/*.gz; do
        that "${file##*/} has the same content" cmp -s <(gzip -dc "$file") <(gzip -dc "$work/assets/mnist-mini/${file##*/}")
    done
    that "20 images are made" is "$(ls "$work/assets/digits")" "$(ls "$repository/assets/digits")"
else
    skip "assets: making the images again needs mnist/"
fi

finish
echo "scripts: $passed passed; $failed failed; $ignored ignored"
((failed == 0))
