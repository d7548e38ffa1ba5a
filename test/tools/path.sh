#!/usr/bin/env bash
# The path of a read over shm, counted by callgrind while path_test reads 8 bytes 20,000 times.
# Counts the library's own instructions between the call and the device. No allocation, lock or
# system call may run.
#   path.sh [--json] [BUILD_DIR]        --json: the figures as one line, for perf/report.sh
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
json=
[ "${1-}" = --json ] && { json=1; shift; }
program=${1:-build}/bin/proc/read/path_test most=250 calls=20000
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Collects rref_to_here and the functions that it calls, and nothing else.
valgrind --tool=callgrind --trace-children=yes --toggle-collect=rref_to_here \
	--callgrind-out-file="$work/out.%p" \
	"$program" >"$work/log" 2>&1 || { tail -n 20 "$work/log"; exit 1; }
out=$(grep -lE "rref_to_here$" "$work"/out.* | head -n 1) # the reading worker's
[ -n "$out" ] || { echo "no worker read anything"; cat "$work/log"; exit 1; }
callgrind_annotate --inclusive=no --threshold=100 --show-percs=no "$out" >"$work/own" 2>/dev/null
callgrind_annotate --inclusive=yes --threshold=100 --show-percs=no "$out" >"$work/all" 2>/dev/null
inclusive() { # FUNCTION: prints the instructions spent in the function and below
	grep -E ":$1( |\.| \[)" "$work/all" | head -n 1 | awk '{gsub(",", "", $1); print $1 + 0}'
}
total=$(inclusive rref_to_here) device=$(inclusive rvs_post_reads)
check "$calls reads were counted" grep -qE "^calls=$calls " "$out"
own=$(((total - device) / calls))
echo "$calls reads: $((total / calls)) instructions each," \
	"$own of them before and after the device's READ"
check "at most $most instructions ($own)" [ "$own" -le "$most" ]
check "the device's READ was counted apart" [ "${device:-0}" -gt 0 ]
# Only known functions may run. An allocation, a lock or a system call is found as a stranger by any
# name. A list of forbidden names would have to foresee it. A function with less than one
# instruction per read ran only for the first one, which connects and gets memory. (The progress
# lock is taken inline, but given back only by rc_unlock, a separate function.)
known='rref_to_here|rc_fast_read|rvs_post_reads|read_value|read_one|find|landing_ok|copy|header_fits'
known+='|reader_of|pin|count|__mem(cpy|move)_[a-z0-9_]*|mem(cpy|move)'
strangers=$(awk -v calls="$calls" '
	{n = $1; gsub(",", "", n)}
	n + 0 >= calls && match($0, /:[A-Za-z_][A-Za-z0-9_.@'"'"']*/) {
		print substr($0, RSTART + 1, RLENGTH - 1)
	}' "$work/own" | sed "s/[.'@].*//" | grep -vE "^($known)\$" | sort -u)
check "nothing else runs: no malloc, no lock, no system call ($(echo $strangers))" \
	[ -z "$strangers" ]
check "the known functions were seen" grep -q rc_fast_read "$work/own"
[ -z "$json" ] || printf '{"op":"path","device":"shm","bytes":8,"instructions":%d,%s}\n' "$own" \
	"\"with_device\":$((total / calls)),\"foreign\":$(echo $strangers | wc -w)"
finish
