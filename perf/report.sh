#!/usr/bin/env bash
# Measures everything in the same minutes and writes docs/PERF.md and its plots; some six minutes.
# If a part cannot be measured, the report says so; earlier results are not kept.
#   report.sh [--again | --roce]     --again: only written again, from the last results;
#                                    --roce: that part measured anew
#
# Parts that need both processors (call, create, UCX) take a prefix on a machine with other work:
#   RREF_PERF_PREFIX="chrt -f 10" report.sh
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
work=build/perf prefix=${RREF_PERF_PREFIX-} begun=$SECONDS
mkdir -p "$work" docs/perf
say() { echo "== $1 ($((SECONDS - begun)) s)"; }
load() { cut -d ' ' -f 1 /proc/loadavg; }
part() { # NAME SECONDS COMMAND...: its JSON lines to $work/NAME.jsonl
	local name=$1 limit=$2
	shift 2
	timeout "$limit" "$@" | tee -a "$work/$name.jsonl" ||
		echo "report.sh: a part of $name could not be measured" >&2
}
roce() {
	say "over RoCE"
	rm -f "$work/roce.jsonl" "$work/counted.jsonl"
	RREF_VM_TIMEOUT=600 part roce 700 test/tools/on-roce.sh perf/roce.sh 3
	say "over SoftRoCE, counted"
	test/tools/deps.sh roce
	test/vm/prepare.sh
	part counted 200 test/vm/run.sh --icount 2 --timeout 190 -- perf/counted.sh
}
measure() {
	before=$(load)
	rm -f "$work"/*.jsonl docs/perf/*
	say "over shared memory"
	# The places of a process's pages make ten percent of a large copy. Other guests of the
	# machine make as much of a share or a creation, for seconds. So there are three runs, and
	# the report takes the middle one.
	for op in lat lat lat bw rate batch share share share alloc live; do
		part shm 120 build/bin/rref-perf $op --json
	done
	for op in call create create create; do
		# shellcheck disable=SC2086
		part shm 120 $prefix build/bin/rref-perf $op --json --seconds 1
	done
	say "peers"
	part peers 300 perf/peers/run.sh
	say "idle"
	part idle 60 build/bin/rref-perf idle --json --seconds 10
	say "the path of a read"
	part path 120 test/tools/path.sh --json
	roce
	echo "$before to $(load)${prefix:+; call, create and UCX by \`$prefix\`, before it}" \
		>"$work/load"
}
case ${1-} in
--again) ;;
--roce) roce ;;
*) measure ;;
esac
say "the report"
/usr/bin/python3 perf/report.py --shm "$work/shm.jsonl" --peers "$work/peers.jsonl" \
	--roce "$work/roce.jsonl" --idle "$work/idle.jsonl" --counted "$work/counted.jsonl" \
	--path "$work/path.jsonl" --load "$(cat "$work/load")" >"$work/PERF.md" || exit 1
mv "$work/PERF.md" docs/PERF.md
say "docs/PERF.md is written"
