# shellcheck shell=bash
# For scripts that compare with PyTorch: which Python to run. Needs lib.sh.

# The packages, pinned.
requirements=$repository/benches/pytorch/requirements.txt
# Where the environment goes: git ignores target/, and cargo clean removes it with everything else that is made.
environment=$repository/target/python

# find_python [PYTHON]: sets `python` to a Python that has the pinned packages: the one given, which is only checked, or that of
# an environment in target/python, which is made when it is missing or was made from other pins.
find_python() {
    if [[ -n ${1:-} ]]; then
        python=$(command -v "$1") || fail_input "there is no Python $1: give the path of one."
        require_packages "has not what benches/pytorch/requirements.txt lists: install it there, or leave the Python out and an environment is made."
        return
    fi
    python=$environment/bin/python
    if ! cmp -s "$requirements" "$environment/requirements.txt"; then
        command -v python3 >/dev/null || fail_input "python3 is missing: install Python 3.10 or newer with its venv module."
        say "making the Python environment target/python (PyTorch and what it needs are some gigabytes)."
        rm -rf "$environment"
        python3 -m venv "$environment" ||
            fail_input "python3 cannot make an environment: install its venv module (Debian: apt-get install python3-venv)."
        "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
            fail "pip could not install benches/pytorch/requirements.txt: see its message above."
        # Last, so that an interrupted installation is begun anew.
        cp "$requirements" "$environment/requirements.txt"
    fi
    require_packages "is broken: remove it and run this again."
}

# require_packages OTHERWISE: whether `python` has PyTorch at the pinned version, safetensors and torchvision.
require_packages() {
    local pinned found
    pinned=$(sed -n 's/^torch==//p' "$requirements")
    found=$("$python" -c 'import importlib.metadata as packages; packages.version("safetensors"); packages.version("torchvision"); print(packages.version("torch"))' 2>/dev/null) || found=
    [[ ${found%%+*} == "$pinned" ]] || fail_input "$python $1"
}
