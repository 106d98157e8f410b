#!/usr/bin/env bash
# On a machine with a CUDA device: build the package, run the tests marked gpu, then the entries.
# Usage: benchmarks/gpu.sh [ENTRY ...]
#
# PYTHON       interpreter that has torch with CUDA (default python3)
# RESULTS      where results go (default benchmarks/results)
# OUT          if set, results and logs are copied there too, also after a failure
# PNTK_COMMIT  commit to state in the results, where the checkout has no history
# All of it runs even if a part fails; the exit status is 1 then.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

python=${PYTHON:-python3}
results=${RESULTS:-benchmarks/results}
mkdir -p "$results"
status=0

deliver() { if [[ -n ${OUT:-} ]]; then mkdir -p "$OUT" && cp -r "$results/." "$OUT/"; fi; }
trap deliver EXIT

"$python" - <<'PY' || exit 1
import torch
assert torch.cuda.is_available(), f"torch {torch.__version__} sees no CUDA device"
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}")
PY

echo "== build"
"$python" -m pip install --no-build-isolation --no-deps -e . 2>&1 | tee "$results/gpu-build.log" ||
    exit 1

echo "== tests marked gpu"
"$python" -m pytest -m gpu 2>&1 | tee "$results/gpu-tests.log"
case ${PIPESTATUS[0]} in
0) ;;
5) echo "no test is marked gpu" ;;
*) status=1 ;;
esac

echo "== benchmarks"
"$python" -m benchmarks --device cuda --out "$results" "$@" 2>&1 | tee "$results/gpu-benchmarks.log"
((PIPESTATUS[0] == 0)) || status=1
exit "$status"
