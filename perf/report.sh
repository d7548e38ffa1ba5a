#!/usr/bin/env bash
# Measures everything in the same minutes and writes docs/PERF.md and its plots. Takes about ten minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
work=build/perf
mkdir -p "$work" docs/perf
echo "over shared memory"
build/bin/rref-perf all --json | tee "$work/shm.jsonl"
build/bin/rref-perf lat --plot docs/perf/lat-shm.svg >/dev/null
echo "peers"
perf/peers/run.sh | tee "$work/peers.jsonl" || echo "report.sh: a peer could not be measured" >&2
echo "over RoCE"
RREF_VM_TIMEOUT=1500 test/tools/on-roce.sh perf/roce.sh | tee "$work/roce.jsonl" || echo "report.sh: something over RoCE could not be measured" >&2
rm -f docs/perf/*.jsonl
/usr/bin/python3 perf/report.py --shm "$work/shm.jsonl" --peers "$work/peers.jsonl" --roce "$work/roce.jsonl" >"$work/PERF.md"
mv "$work/PERF.md" docs/PERF.md
echo "docs/PERF.md is written"
