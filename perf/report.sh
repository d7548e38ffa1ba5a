#!/usr/bin/env bash
# Measures everything in the same minutes and writes docs/PERF.md and its plots; some six minutes. A part that cannot be
# measured is told, and the report says so; what was measured before is not kept.
#   report.sh
#   RREF_PERF_PREFIX="chrt -f 10" report.sh     on a machine with other work: what is measured on the host, before all else
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
work=build/perf prefix=${RREF_PERF_PREFIX-} begun=$SECONDS
mkdir -p "$work" docs/perf
rm -f "$work"/*.jsonl docs/perf/*
say() { echo "== $1 ($((SECONDS - begun)) s)"; }
load() { cut -d ' ' -f 1 /proc/loadavg; }
part() { # NAME SECONDS COMMAND...: its JSON lines to $work/NAME.jsonl
	local name=$1 limit=$2
	shift 2
	timeout "$limit" "$@" | tee -a "$work/$name.jsonl" || echo "report.sh: a part of $name could not be measured" >&2
}
before=$(load)
say "over shared memory"
# shellcheck disable=SC2086
for op in lat bw rate batch call share create alloc live; do
	part shm 120 $prefix build/bin/rref-perf $op --json
done
say "peers"
part peers 300 $prefix perf/peers/run.sh
say "idle"
part idle 60 build/bin/rref-perf idle --json --seconds 10
say "the path of a read"
part path 120 test/tools/path.sh --json
say "over RoCE"
RREF_VM_TIMEOUT=600 part roce 700 test/tools/on-roce.sh perf/roce.sh
say "the report"
/usr/bin/python3 perf/report.py --shm "$work/shm.jsonl" --peers "$work/peers.jsonl" --roce "$work/roce.jsonl" --idle "$work/idle.jsonl" \
	--path "$work/path.jsonl" --load "$before to $(load)${prefix:+ (on the host measured by \`$prefix\`)}" >"$work/PERF.md" || exit 1
mv "$work/PERF.md" docs/PERF.md
say "docs/PERF.md is written"
