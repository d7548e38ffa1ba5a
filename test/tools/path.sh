#!/usr/bin/env bash
# The path of a read over shm, counted by callgrind while path_test reads 8 bytes 20,000 times: how many instructions are
# the library's own between the call and the device, and that no allocation, lock or system call is among what runs.
#   path.sh [BUILD_DIR]
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
program=${1:-build}/bin/proc/path_test most=250 calls=20000
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
check() { # NAME COMMAND...
	local name=$1
	shift
	if "$@"; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "FAILED $name"
	fi
}

# rref_to_here and all that it calls, and nothing else, is collected.
valgrind --tool=callgrind --trace-children=yes --toggle-collect=rref_to_here --callgrind-out-file="$work/out.%p" \
	"$program" >"$work/log" 2>&1 || { tail -n 20 "$work/log"; exit 1; }
out=$(grep -lE "rref_to_here$" "$work"/out.* | head -n 1) # the reading worker's
[ -n "$out" ] || { echo "no worker read anything"; cat "$work/log"; exit 1; }
callgrind_annotate --inclusive=no --threshold=100 --show-percs=no "$out" >"$work/own" 2>/dev/null
callgrind_annotate --inclusive=yes --threshold=100 --show-percs=no "$out" >"$work/all" 2>/dev/null
inclusive() { # FUNCTION: instructions spent in it and below
	grep -E ":$1( |\.| \[)" "$work/all" | head -n 1 | awk '{gsub(",", "", $1); print $1 + 0}'
}
total=$(inclusive rref_to_here) device=$(inclusive rvs_post_reads)
check "$calls reads were counted" grep -qE "^calls=$calls " "$out"
own=$(((total - device) / calls))
echo "$calls reads: $((total / calls)) instructions each, $own of them before and after the device's READ"
check "at most $most instructions ($own)" [ "$own" -le "$most" ]
check "the device's READ was counted apart" [ "${device:-0}" -gt 0 ]
# Less than one instruction per read: it ran for the first one only, which connects and gets memory.
for f in malloc calloc realloc free mmap pthread_mutex_lock pthread_mutex_unlock syscall futex clock_gettime write read ra_alloc; do
	n=$(grep -E ":(__|_int_|__libc_|___)?$f( |@|\.| \[)" "$work/own" | awk '{gsub(",", "", $1); n += $1} END {print n + 0}')
	check "no $f ($n instructions in $calls reads)" [ "$n" -lt "$calls" ]
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
