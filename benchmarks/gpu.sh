#!/usr/bin/env bash
# On a machine with a CUDA device: build, test, sanitize, measure, draw. In under eight minutes, and
# without anybody there: every step has a limit, a failing one does not stop the next, and what
# there is is written after each. The exit status is 1 if a step failed; skipped ones say why.
#
# Usage: benchmarks/gpu.sh [FOLDER]
#
# FOLDER           where results go: JSON, Markdown, PNG and gpu.log (default benchmarks/results).
# OUT              if set and no FOLDER is given, the same in two files: gpu.log, gpu-results.tar.gz
# PYTHON           interpreter that has torch with CUDA (default python3)
# OWN_ENVIRONMENT  if set, install into an environment made for this run, on top of PYTHON's; done
#                  anyway where PYTHON's cannot be written to
# WHEELS           folder of *.whl to install first, and of fast_jl-*.tar.gz to compile: README.md
# LIMIT            seconds for all of it (default 470)
# DEVICE           cuda, or cpu to see on tiny sizes whether the script itself works
# STEPS            what to run, of: build test memcheck racecheck measure plot (default all)
# PNTK_COMMIT      commit to state in the results, where the checkout has no history
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

python=${PYTHON:-python3}
device=${DEVICE:-cuda}
limit=${LIMIT:-470}
steps=${STEPS:-build test memcheck racecheck measure plot}
folder=${1:-${OUT:-benchmarks/results}}
packed=$([[ -z ${1:-} && -n ${OUT:-} ]] && echo 1)
work=$(mktemp -d)
results=$work/results
mkdir -p "$folder" "$results" "$work/logs" "$work/site"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TRITON_CACHE_DIR=$work/triton
export MPLCONFIGDIR=$work/matplotlib PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
exec > >(tee "$folder/gpu.log") 2>&1
tee=$!
summary=()
status=0

left() { echo $((limit - SECONDS)); }
wanted() { [[ " $steps " == *" $1 "* ]]; }

note() { # STEP RESULT REMARK
    summary+=("$(printf '%-22s %-8s %s' "$1" "$2" "$3")")
    [[ $2 == FAILED ]] && status=1
    printf '== %s: %s %s\n' "$1" "$2" "$3"
}

deliver() { # what there is, into FOLDER
    if [[ -n $packed ]]; then
        tar -C "$work" -czf "$folder/gpu-results.tar.gz" results logs
    else
        find "$results" -type f -exec cp {} "$folder" \;
    fi
}

finish() {
    trap - EXIT
    local job
    for job in $(jobs -p); do kill "$job" 2>/dev/null; done
    deliver
    printf '\n== summary, after %s s\n' "$SECONDS"
    printf '%s\n' "${summary[@]}"
    rm -rf "$work"
    exec >&- 2>&-
    wait "$tee" # or the end of the log could be lost
    exit "$status"
}
trap finish EXIT
trap 'status=1; exit' TERM INT

# limited SECONDS COMMAND...: at most so long, and not past LIMIT; on a timeout SIGTERM, then SIGKILL
limited() {
    local most=$1
    shift
    if (($(left) < most)); then most=$(left); fi
    if ((most < 5)); then
        echo "no time was left"
        return 125
    fi
    timeout -k 5 "$most" "$@"
}

say() { # STEP STATUS SECONDS REMARK: what a command's status means
    case $2 in
    0) note "$1" ok "$3 s $4" ;;
    124 | 137) note "$1" FAILED "cut off after $3 s $4" ;;
    125) note "$1" skipped "no time was left" ;;
    *) note "$1" FAILED "status $2, $3 s $4" ;;
    esac
}

# step NAME SECONDS COMMAND...: run, show the end of what it said, remember how it ended
step() {
    local name=$1 start=$SECONDS code
    shift
    printf '\n== %s\n' "$name"
    limited "$@" >"$work/logs/$name.log" 2>&1
    code=$?
    tail -n "${TAIL:-25}" "$work/logs/$name.log" | cut -c1-300
    say "$name" "$code" $((SECONDS - start)) ""
    deliver
    return "$code"
}

# ---- where we are ----------------------------------------------------------------------------

echo "== machine"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit,temperature.gpu \
    --format=csv 2>/dev/null || echo "nvidia-smi does not answer"
nvcc --version 2>/dev/null | tail -n 2 || echo "no nvcc on the PATH"
"$python" - "$device" <<'PY' || { note machine FAILED "no usable PyTorch"; exit; }
import importlib.metadata as metadata, os, shutil, sys, torch
print(f"python {sys.version.split()[0]} at {sys.executable}, {os.cpu_count()} cores")
for name in ("torch", "triton", "numpy", "h5py", "tqdm", "setuptools", "pybind11", "pytest",
             "pytest-xdist", "pytest-timeout", "hypothesis", "matplotlib", "ninja", "transformers"):
    try:
        print(f"{name} {metadata.version(name)}", end="; ")
    except metadata.PackageNotFoundError:
        print(f"{name} MISSING", end="; ")
print()
if sys.argv[1] == "cuda":
    assert torch.cuda.is_available(), f"torch {torch.__version__} sees no CUDA device"
    torch.ones(8, device="cuda").sum().item()
    print(f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}")
PY
note machine ok ""

# ---- build -----------------------------------------------------------------------------------

# An environment that sees all of the interpreter's.
own_environment() {
    local site
    site=$("$python" -c 'import site; print(site.getsitepackages()[0])')
    "$python" -m venv --without-pip "$work/venv" || return
    echo "import site; site.addsitedir('$site')" \
        >"$("$work/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/outer.pth"
    PATH=$(dirname "$(command -v "$python")"):$PATH # for ninja
    python=$work/venv/bin/python
}

pip_install() {
    local options=(--no-build-isolation --no-deps)
    [[ $("$python" -m pip install --help) == *break-system* ]] && options+=(--break-system-packages)
    "$python" -m pip install "${options[@]}" "$@"
}

# Only what this GPU runs is compiled.
architecture() {
    "$python" -c 'import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else ""))' 2>/dev/null
}

build() {
    local wheels=("${WHEELS:-/nonexistent}"/*.whl)
    if [[ -e ${wheels[0]} ]]; then pip_install --no-index "${wheels[@]}" || return; fi
    export PNTK_CUDA_ARCHS=${PNTK_CUDA_ARCHS:-$(architecture)}
    echo "CUDA architectures: ${PNTK_CUDA_ARCHS:-those of setup.py}"
    PNTK_CUDA=$([[ $device == cuda ]] && echo 1 || echo 0) pip_install -e .
}

build_without_cuda() { PNTK_CUDA=0 pip_install -e .; }

if wanted build; then
    if ! [[ -w $("$python" -c 'import site; print(site.getsitepackages()[0])') ]] ||
        [[ -n ${OWN_ENVIRONMENT:-} ]]; then
        own_environment || note environment FAILED "cannot be made"
    fi
    archive=$(find "${WHEELS:-/nonexistent}" -maxdepth 1 -name 'fast_jl-*.tar.gz' 2>/dev/null | tail -n 1)
    export -f build build_without_cuda pip_install architecture
    export python device
    if step build 170 bash -c build; then :; else
        step build-without-cuda 60 bash -c build_without_cuda
    fi
    if [[ -z $archive ]]; then
        note fast_jl skipped "WHEELS holds no fast_jl-*.tar.gz"
    elif [[ $device != cuda ]]; then
        note fast_jl skipped "needs a GPU"
    else
        # beside the tests, which leave most cores idle
        mkdir -p "$work/fast_jl"
        limited 200 "$python" -m benchmarks.fast_jl "$archive" "$work/fast_jl" \
            >"$work/logs/fast_jl.log" 2>&1 &
        fast_jl=$!
    fi
    export PYTHONPATH=$work/fast_jl${PYTHONPATH:+:$PYTHONPATH}
fi
"$python" - "$device" <<'PY' 2>&1 | cut -c1-300
import sys
from pntk.projection import dispatch
for impl in dispatch.IMPLEMENTATIONS:
    print(f"impl={impl}:", dispatch.why_not(impl, device=sys.argv[1]) or "works here")
PY

# ---- test, with the sanitizers beside it ------------------------------------------------------

# versions here are not those of constraints.txt, so their warnings are no errors
pytest=("$python" -m pytest -p no:cacheprovider -o filterwarnings= -q --no-header)
has() { "$python" -c "import $1" 2>/dev/null; }
selected=(-m gpu --continue-on-collection-errors tests)
[[ $device == cuda ]] || selected=(tests/projection/test_tiles.py)
parallel=()
has xdist && parallel=(-n 8 --dist=load)
# a kernel that hangs takes its worker with it, and xdist starts another
has xdist && has pytest_timeout && parallel+=(--timeout=60 --timeout-method=thread)

# sanitized TOOL SECONDS: every kernel on small sizes, each tensor an allocation of its own
sanitized() {
    if ! command -v compute-sanitizer >/dev/null; then
        echo "compute-sanitizer is not installed"
        return 77
    fi
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited "$2" compute-sanitizer --tool "$1" \
        --error-exitcode 9 --print-limit 20 "$python" -m benchmarks.sanitize
}

background() { # NAME SECONDS: start a sanitizer
    (
        sanitized "$1" "$2"
        echo "status $?"
    ) >"$work/logs/$1.log" 2>&1 &
}

collect() { # NAME PID: wait for it, and say how it ended
    local code
    wait "$2"
    code=$(sed -n 's/^status //p' "$work/logs/$1.log" | tail -n 1)
    printf '\n== %s\n' "$1"
    tail -n 12 "$work/logs/$1.log" | cut -c1-300
    if [[ $code == 77 ]] || grep -qi 'device not supported' "$work/logs/$1.log"; then
        note "$1" skipped "$(grep -iE -m 1 'not (installed|supported)|left out' "$work/logs/$1.log")"
    else
        say "$1" "${code:-1}" "" "$(grep -m 1 'ERROR SUMMARY\|RACECHECK SUMMARY' "$work/logs/$1.log")"
    fi
}

for tool in memcheck racecheck; do
    wanted $tool || continue
    if [[ $device == cuda ]]; then
        background $tool 120
        declare "$tool=$!"
    else
        note $tool skipped "needs a GPU"
    fi
done
if wanted test; then
    TAIL=40 step test 130 "${pytest[@]}" "${parallel[@]}" "${selected[@]}"
fi
for tool in memcheck racecheck; do
    [[ -n ${!tool:-} ]] && collect $tool "${!tool}"
done
if [[ -n ${fast_jl:-} ]]; then
    wait "$fast_jl"
    code=$?
    tail -n 5 "$work/logs/fast_jl.log" | cut -c1-300
    say fast_jl "$code" "" "compiled"
fi

# ---- measure: nothing else runs now ------------------------------------------------------------

# measure ENTRY SECONDS: the entry stops starting rows in time, and is cut off if that fails
measure() {
    local seconds=$2
    if (($(left) < seconds + 15)); then seconds=$(($(left) - 15)); fi
    if ((seconds < 10)); then
        note "$1" skipped "no time was left"
        return
    fi
    local quick=()
    [[ $device == cuda ]] || quick=(--quick --repeats 2)
    TAIL=2 step "$1" $((seconds + 30)) "$python" -m benchmarks "$1" --device "$device" \
        --seconds "$seconds" --out "$results" "${quick[@]}"
    # the tables alone: what is checked and left out is in the files
    sed -n '/^## Failed/,/^## Ratios/p; /^| case/,/^$/p; /^- Left out/p' \
        "$results"/*-"$1".md 2>/dev/null | cut -c1-230
}

if wanted measure; then
    measure gpu-overhead 95
    measure gpu-kernels 60
    measure gpu-job 80
    measure gpu-layers 30
fi

# ---- draw ----------------------------------------------------------------------------------------

if wanted plot; then
    shopt -s nullglob
    drawn=("$results"/*.json)
    if ! has matplotlib; then
        note plot skipped "needs matplotlib"
    elif ((${#drawn[@]})); then
        step plot 40 "$python" -m benchmarks.plot "${drawn[@]}"
        if [[ $device == cuda ]]; then
            step roofline 20 "$python" -m benchmarks.roofline "${drawn[0]}"
            cp "$work/logs/roofline.log" "$results/gpu-roofline.md"
        fi
    else
        note plot skipped "there are no results"
    fi
fi
