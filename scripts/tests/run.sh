#!/usr/bin/env bash
# Tests of the scripts, on a copy of them with made-up wheels and data: no network, no real libtorch, nothing of the
# repository is touched. Prints a line for each test and ends with "N passed; N failed; N ignored", as cargo's harness does.
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
    rm -rf "$repo/libtorch" "$repo"/libtorch.partial-* "$repo/data"
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

# ---- fetch_data.sh --------------------------------------------------------------------------------------------------

fetch=$repo/scripts/fetch_data.sh
cd "$work"
unset http_proxy HTTP_PROXY

# Made-up data sets: official/ holds their files by set, copies/ holds other forms of them, bad/ archives that lead elsewhere.
python3 - "$work" <<'END'
import gzip, io, os, sys, tarfile, zipfile
work = sys.argv[1]
def write(path, content):
    path = os.path.join(work, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
def tar(*members, level=0):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=level) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc"
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
def zipped(*members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()
images, labels, text = b"images" * 2000, b"labels" * 50, b"eins\nzwei\n" * 100
for name, content in ("images.gz", images), ("labels.gz", labels):
    write("official/digits/" + name, gzip.compress(content, 9, mtime=0))
    write("copies/digits/" + name, gzip.compress(content, 1, mtime=1))
    write("plain/digits/" + name[:-3], content)
write("official/pairs/train.de.gz", gzip.compress(text, mtime=0))
write("copies/pairs/train.de", text)
photographs = tar(("top/batch_1.bin", b"1" * 20000), ("top/deeper/batch_2.bin", b"2" * 10), ("top/readme.html", b"3"), ("other", None))
write("official/pictures/pictures.tar.gz", photographs)
write("copies/pictures/pictures-jpeg.tar.gz", tar(("train/a/0.jpg", b"jpeg")))
write("official/reviews/reviews.zip", zipped(("R/train.tsv", b"good\t1\n"), ("R/test.tsv", b"?\n"), ("R/original/x", b"x")))
write("copies/reviews/train.tsv", b"good \t1\n")
write("official/table/table.csv", b"a,b\n1,2\n")
write("copies/tables/the_table.csv", b"a,b\n1,2\n")
write("bad/parent.tar.gz", tar(("top/../../escaped", b"x")))
write("bad/absolute.tar.gz", tar(("/top/escaped", b"x")))
write("bad/link.tar.gz", tar(("top/link", None), ("top/link/escaped", b"x")))
write("bad/large.tar.gz", tar(("top/large", b"x" * 40000), level=9))
write("bad/twice.tar.gz", tar(("top/a", b"x"), ("top/a", b"y")))
write("bad/nothing.tar.gz", tar(("elsewhere/a", b"x")))
write("bad/damaged.tar.gz", photographs[: len(photographs) // 2])
write("bad/parent.zip", zipped(("top/../../escaped", b"x")))
link = zipfile.ZipInfo("top/link")
link.external_attr = 0o120777 << 16
write("bad/link.zip", zipped((link, b"/etc")))
END

# A server of these files. What it does stands first in the path, with a name of the test after a hyphen: `resumes` and
# `restarts` break off in the middle of the first transfer of each file, `restarts` knows no ranges, `busy` refuses the
# first request, `fails` all of them, and `stalls` stops in the middle of the first.
cat >"$work/server.py" <<'END'
import http.server, os, sys, time
work = sys.argv[1]
seen = set()
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass
    def do_GET(self):
        kind, path = self.path[1:].split("/", 1)
        kind = kind.split("-")[0]
        first = self.path not in seen
        seen.add(self.path)
        asked = self.headers.get("Range")
        with open(os.path.join(work, "requests"), "a") as log:
            print(self.path, asked or "whole", file=log)
        if kind == "fails" or (kind == "busy" and first):
            return self.send_error(503)
        path = os.path.join(work, path)
        if not os.path.isfile(path):
            return self.send_error(404)
        with open(path, "rb") as file:
            content = file.read()
        start = 0
        if asked and kind != "restarts":
            start = int(asked[len("bytes="):-1])
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        half = first and kind in ("resumes", "restarts", "stalls")
        self.wfile.write(content[start : len(content) // 2 if half else None])
        self.wfile.flush()
        if half and kind == "stalls":
            time.sleep(60)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
with open(os.path.join(work, "port.partial"), "w") as file:
    print(server.server_address[1], file=file)
os.rename(os.path.join(work, "port.partial"), os.path.join(work, "port"))
server.serve_forever()
END
python3 "$work/server.py" "$work" &
server=$!
trap 'kill "$server" 2>/dev/null; rm -rf "$work"' EXIT
tries=0
until [[ -e $work/port ]]; do
    ((++tries < 200)) || break
    sleep 0.05
done
host=http://127.0.0.1:$(cat "$work/port")

# Between attempts the script sleeps; here it does not.
mkdir "$work/awake"
printf 'import time\ntime.sleep = lambda seconds: None\n' >"$work/awake/sitecustomize.py"
awake=(env PYTHONPATH="$work/awake")

# sums FILE CONTENT: size, checksum of the file, checksum of its content as the lock file has them.
sums() {
    local file=$work/official/$1
    echo "$(wc -c <"$file" | tr -d ' ') sha256:$(sha256sum "$file" | cut -d' ' -f1) sha256:$(gzip -dc "$file" 2>/dev/null | sha256sum | cut -d' ' -f1)"
}
copied() { echo "$(wc -c <"$work/copies/$1" | tr -d ' ') sha256:$(sha256sum "$work/copies/$1" | cut -d' ' -f1) -"; }

# data_lock ADDRESS...: writes a lock file of the made-up sets, served below these addresses.
data_lock() {
    local set address
    {
        for set in digits pairs pictures reviews table; do
            echo "set $set 30000 the made-up $set"
            echo "licence $set none needed"
            for address in "$@"; do
                echo "address $set $address/$set/"
            done
        done
        echo "file digits official $(sums digits/images.gz) images.gz keep"
        echo "file digits official $(sums digits/labels.gz) labels.gz keep"
        echo "file pairs official $(sums pairs/train.de.gz) train.de.gz gunzip"
        echo "file pictures official $(sums pictures/pictures.tar.gz | sed 's/ [^ ]*$/ -/') pictures.tar.gz unpack top/*.bin"
        echo "file pictures jpeg $(copied pictures/pictures-jpeg.tar.gz) pictures/pictures-jpeg.tar.gz keep"
        echo "note pictures jpeg they were recompressed"
        echo "file reviews official $(sums reviews/reviews.zip | sed 's/ [^ ]*$/ -/') reviews.zip unpack R/train.tsv"
        echo "file reviews copy $(copied reviews/train.tsv) reviews/train.tsv keep"
        echo "note reviews copy it has other spaces"
        echo "file table official - md5:$(md5sum "$work/official/table/table.csv" | cut -d' ' -f1) - table.csv keep"
        echo "file table renamed $(copied tables/the_table.csv) tables/the_table.csv keep table.csv"
    } >"$repo/scripts/data.lock"
}
data=$repo/data
nothing_is_left() { [[ ! -e $data ]]; }
# made SET FILE...: whether the set consists of these files and its record, and nothing is left beside it.
made() { [[ $(cd "$data/$1" && find . -type f | sort) == "$(printf './%s\n' .fetched.json "${@:2}" | sort)" && ! -e $data/$1.partial ]]; }
asked() { grep -q "$1" "$work/requests"; }

begin "data: --help, --list, and the committed lock file"
run "$repository/scripts/fetch_data.sh" --help
expect 0 "usage: scripts/fetch_data.sh"
run "$repository/scripts/fetch_data.sh" --list
expect 0 "licence: CC BY-ND 4.0" "12 MB"
for set in mnist fashion-mnist cifar10 cifar100 imagenette tinyshakespeare sst2 multi30k etth1 california-housing; do
    that "$set is listed" grep -q "^$set " "$work/stdout"
done
that "every file has a checksum" is "$(grep -c '^file .* none ' "$repository/scripts/data.lock")" 0
data_lock "$host/whole"
sed -i 's/^file digits/file digit/' "$repo/scripts/data.lock"
run "$fetch" --list
expect 2 "line 16 of $repo/scripts/data.lock is not understood"

begin "data: wrong usage"
data_lock "$host/whole"
run "$fetch"
expect 2 "name a data set"
run "$fetch" digit
expect 2 "there is no data set 'digit': did you mean digits?"
run "$fetch" digits xyz
expect 2 "there is no data set 'xyz': --list shows"
run "$fetch" digits --fast
expect 2 "unknown argument '--fast'"
run "$fetch" digits --mirror
expect 2 "--mirror needs a folder or an address"
run "$fetch" --list digits
expect 2 "leave out digits, or --list"
run "$fetch" digits --mirror "$work/nowhere"
expect 2 "$work/nowhere, which is no folder"
run env PATH="$work/bin-no-python" "$fetch" digits
expect 2 "python3 is missing"
that "nothing is made" nothing_is_left

begin "data: from a folder with a folder for each set, and left alone afterwards"
run "$fetch" digits pairs pictures reviews table --mirror "$work/official"
expect 0 "digits is ready in repo/data/digits (2 files" "table is ready"
that "digits is kept as it is" cmp -s "$data/digits/images.gz" "$work/official/digits/images.gz"
that "digits is complete" made digits images.gz labels.gz
that "pairs is uncompressed" cmp -s "$data/pairs/train.de" "$work/copies/pairs/train.de"
that "pairs is complete" made pairs train.de
that "pictures is unpacked" made pictures batch_1.bin deeper/batch_2.bin
that "only what is wanted is taken of reviews" made reviews train.tsv
that "table is complete" made table table.csv
touch "$data/digits/mark"
run "$fetch" digits table
expect 0 "digits is already in repo/data/digits (from $work/official)" "table is already in"
that "it is the same folder" exists "$data/digits/mark"

begin "data: from a folder of files, another current directory, and into another folder"
cd "$work/official/digits"
run "$fetch" digits --mirror . --out ../elsewhere
expect 0 "digits is ready in $work/official/elsewhere/digits"
cd "$work"
that "it is not in the repository" nothing_is_left
rm -r "$work/official/elsewhere"

begin "data: a mirror may compress otherwise, or not at all"
run "$fetch" digits --mirror "$work/copies"
expect 0 "digits is ready"
that "it is the mirror's file" cmp -s "$data/digits/images.gz" "$work/copies/digits/images.gz"
rm -r "$data"
run "$fetch" digits --mirror "$work/plain"
expect 0 "digits is ready"
that "it is the mirror's plain file" made digits images labels
run "$fetch" pairs --mirror "$work/copies"
expect 0 "pairs is ready"
that "a plain text is taken as it is" made pairs train.de

begin "data: a mirror may hold a set in another form, which is said"
run "$fetch" pictures reviews table --mirror "$work/copies"
expect 0 "pictures: they were recompressed." "reviews: it has other spaces."
that "pictures is the archive" made pictures pictures-jpeg.tar.gz
that "reviews is the copy" made reviews train.tsv
that "table has its official name" made table table.csv

begin "data: a mirror that lacks a file or holds another"
mkdir -p "$work/poor/digits"
run "$fetch" digits --mirror "$work/poor"
expect 2 "does not hold images.gz, which digits needs"
cp "$work/official/digits/images.gz" "$work/poor/digits/"
run "$fetch" digits --mirror "$work/poor"
expect 2 "does not hold labels.gz, which digits needs"
cp "$work/official/digits/images.gz" "$work/poor/labels.gz"
run "$fetch" digits --mirror "$work/poor"
expect 2 "$work/poor/labels.gz is not the labels.gz that scripts/data.lock pins (its SHA-256 is $(sha256sum "$work/poor/labels.gz" | cut -d' ' -f1))"
that "nothing is made" nothing_is_left
cp "$work/official/digits/labels.gz" "$work/poor/digits/"
run "$fetch" digits --mirror "$work/poor"
expect 0 "digits is ready"

begin "data: downloads go on where they broke off"
for kind in resumes restarts; do
    data_lock "$host/$kind-a/official"
    run "${awake[@]}" "$fetch" digits pictures
    expect 0 "fetching images.gz" "images.gz: the connection broke off; trying again" "from 127.0.0.1" "pictures is ready"
    that "the image file is right" cmp -s "$data/digits/images.gz" "$work/official/digits/images.gz"
    that "pictures is complete" made pictures batch_1.bin deeper/batch_2.bin
    rm -r "$data"
done
size=$(wc -c <"$work/official/pictures/pictures.tar.gz")
that "the second half was asked for" asked "^/resumes-a/official/pictures/pictures.tar.gz bytes=$((size / 2))-"

begin "data: a busy server, one without the file, and one with another file"
mkdir -p "$work/changed/digits"
head -c "$(wc -c <"$work/official/digits/images.gz")" /dev/zero >"$work/changed/digits/images.gz"
data_lock "$host/whole/nowhere" "$host/whole/changed" "$host/busy/official"
run "${awake[@]}" "$fetch" digits
expect 0 "$host/whole/nowhere/digits/images.gz did not serve; trying another address" \
    "$host/whole/changed/digits/images.gz did not serve" "the server answers 503; trying again" "digits is ready"
rm -r "$data"
data_lock "$host/whole/changed"
run "${awake[@]}" "$fetch" digits
expect 1 "$host/whole/changed/digits/images.gz is not the file that scripts/data.lock pins"
that "nothing is left" nothing_is_left
data_lock "$host/whole/nowhere"
run "${awake[@]}" "$fetch" digits
expect 1 "is no longer there (the server answers 404): bring images.gz with --mirror"
that "nothing is left" nothing_is_left

begin "data: no network"
data_lock http://127.0.0.1:1
run "${awake[@]}" "$fetch" digits
expect 1 "http://127.0.0.1:1/digits/images.gz cannot be fetched (Connection refused): check the network"
data_lock "$host/fails"
run "${awake[@]}" "$fetch" digits
expect 1 "cannot be fetched (the server answers 503): check the network"
that "it was tried five times" is "$(grep -c '^/fails/digits' "$work/requests")" 5
that "nothing is left" nothing_is_left

begin "data: a mirror that is an address"
data_lock http://127.0.0.1:1
run "${awake[@]}" "$fetch" digits pictures --mirror "$host/resumes-b/official/"
expect 0 "digits is ready" "pictures is ready"
that "pictures is complete" made pictures batch_1.bin deeper/batch_2.bin
rm -r "$data"
run "${awake[@]}" "$fetch" digits --mirror "$host/whole/official/digits"
expect 0 "digits is ready"
run "${awake[@]}" "$fetch" pictures pairs reviews table --mirror "$host/restarts-b/copies"
expect 0 "pictures: they were recompressed." "reviews: it has other spaces." "pairs is ready" "table is ready"
rm -r "$data"
run "${awake[@]}" "$fetch" digits --mirror "$host/whole/changed"
expect 1 "$host/whole/changed/digits/images.gz is not the images.gz that scripts/data.lock pins"
run "${awake[@]}" "$fetch" digits --mirror "$host/whole/poor/nowhere"
expect 2 "the mirror $host/whole/poor/nowhere does not hold images.gz"
that "nothing is left" nothing_is_left

begin "data: terminated in the middle, then run again"
data_lock "$host/stalls/official"
for signal in TERM KILL; do
    : >"$work/requests"
    "$fetch" pictures >/dev/null 2>&1 &
    process=$!
    wait_for test -s "$data/pictures.partial/download/pictures.tar.gz.partial"
    run "$fetch" pictures
    expect 1 "another run is fetching pictures"
    kill -"$signal" "$process" || true
    status=0
    wait "$process" 2>/dev/null || status=$?
    that "it ends by the signal" is "$status" "$((128 + $(kill -l "$signal")))"
    that "nothing is half-made" absent "$data/pictures"
    run "$fetch" pictures
    expect 0 "pictures is ready"
    that "pictures is complete" made pictures batch_1.bin deeper/batch_2.bin
    that "the second half was asked for" asked "bytes=$((size / 2))-"
    rm -r "$data"
    data_lock "$host/stalls-again/official"
done

begin "data: what arrived of another file is thrown away"
data_lock "$host/resumes-c/official"
mkdir -p "$data/pictures.partial/download"
head -c 1000 /dev/zero >"$data/pictures.partial/download/pictures.tar.gz.partial"
run "${awake[@]}" "$fetch" pictures
expect 0 "pictures is ready"
that "pictures is complete" made pictures batch_1.bin deeper/batch_2.bin

begin "data: an incomplete set is replaced, but nothing else is deleted"
data_lock "$host/whole/official"
run "$fetch" pictures
rm "$data/pictures/batch_1.bin"
run "$fetch" pictures
expect 0 "pictures is ready"
that "pictures is complete" made pictures batch_1.bin deeper/batch_2.bin
rm "$data/pictures/batch_1.bin"
echo mine >"$data/pictures/deeper/mine"
run "$fetch" pictures
expect 2 "repo/data/pictures holds deeper/mine, which is not of this script's making"
that "it stays" says "$data/pictures/deeper/mine" mine
that "no partial is left" absent "$data/pictures.partial"
mkdir -p "$data/table"
echo mine >"$data/table/table.csv"
run "$fetch" table
expect 2 "holds table.csv, which is not"
that "it stays" says "$data/table/table.csv" mine
sed -i 's/^file table official .*/file table official - none - table.csv keep/' "$repo/scripts/data.lock"
rm "$data/table/table.csv"
run "$fetch" table
expect 0 "warning: no checksum of table.csv is known, so it could not be checked; its SHA-256 is $(sha256sum "$work/official/table/table.csv" | cut -d' ' -f1)" "table is ready"
data_lock "$host/whole/official"
run "$fetch" table
expect 0 "table is ready"

begin "data: killed between the two renames"
run "$fetch" table
mkdir -p "$data/table.partial/made"
mv "$data/table" "$data/table.partial/replaced"
echo half >"$data/table.partial/made/table.csv"
run "$fetch" table --mirror "$work/nowhere"
expect 2 "which is no folder"
run "$fetch" table --mirror "$work/poor"
expect 2 "does not hold table.csv"
that "the former set is back" made table table.csv
run "$fetch" table
expect 0 "table is already in"

begin "data: archives that lead elsewhere, are too large or damaged are refused"
for file in parent.tar.gz absolute.tar.gz link.tar.gz large.tar.gz twice.tar.gz nothing.tar.gz damaged.tar.gz parent.zip link.zip; do
    printf 'set bad 30000 bad\nlicence bad none\naddress bad %s/whole/bad/\nfile bad official - none - %s unpack *top/*\n' "$host" "$file" >"$repo/scripts/data.lock"
    case $file in
        parent* | absolute*) text="holds a member that would be written elsewhere" ;;
        link*) text="holds a link or a device" ;;
        large*) text="holds more than the 30000 bytes that are expected" ;;
        twice*) text="holds a twice" ;;
        nothing*) text="holds no *top/*" ;;
        damaged*) text="is damaged or no archive" ;;
    esac
    run "$fetch" bad --mirror "$work/bad"
    expect 2 "$work/bad/$file $text"
    run "$fetch" bad
    expect 2 "$host/whole/bad/$file $text"
    that "nothing is left of $file" nothing_is_left
done
that "nothing escaped" is "$(find "$work" -name escaped)" ""

begin "data: a full disk is seen before anything is fetched"
data_lock "$host/whole/official"
sed -i 's/^set digits 30000/set digits 99000000000000000/' "$repo/scripts/data.lock"
run "$fetch" digits
expect 2 "digits needs 99000000000 MB and only"
that "nothing is left" nothing_is_left

begin "data: the real data, with the committed lock file"
cp "$repository/scripts/data.lock" "$repo/scripts/"
if [[ -d ${TCH_SUITE_DATA:-}/mnist ]]; then
    run "$fetch" mnist cifar10 tinyshakespeare sst2 multi30k etth1 california-housing --mirror "$TCH_SUITE_DATA"
    expect 0 "cifar10: these images were recompressed as JPEG"
    that "MNIST is there" made mnist {train-images-idx3,train-labels-idx1,t10k-images-idx3,t10k-labels-idx1}-ubyte.gz
    that "CIFAR-10 is there" made cifar10 cifar10-jpeg.tar.gz
    that "tiny Shakespeare is there" made tinyshakespeare input.txt
    that "SST-2 is there" made sst2 train.tsv dev.tsv
    that "Multi30k is there" made multi30k {train,val,test_2016_flickr}.{en,de}
    that "ETTh1 is there" made etth1 ETTh1.csv
    that "California housing is there" made california-housing housing.csv
    run "$fetch" fashion-mnist --mirror "$TCH_SUITE_DATA/mnist"
    expect 2 "is not the train-images-idx3-ubyte.gz that scripts/data.lock pins"
else
    skip "data: the real data need mnist/ and the rest"
fi
kill "$server"
trap 'rm -rf "$work"' EXIT

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
