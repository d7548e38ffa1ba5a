#!/usr/bin/env bash
# Runs test programs (cmocka) and scripts, one line each, the log of those that fail in full, and at the end
# `N passed, N failed, N skipped`. A script's last line may be `N passed, N failed`; without one it counts as one test.
#   run-tests.sh [--title TEXT] [--timeout S] [--jobs N] PROGRAM ... [--alone PROGRAM ...]
# Jobs run beside each other (default RREF_TEST_JOBS, else 1): tests mostly wait, and load finds what quiet hides.
# Those behind --alone run after the others, one at a time: they spin, and want the processors.
# RREF_TEST_NO_SKIP=1 turns skipped tests into failures.
set -uo pipefail
title='' limit=${RREF_TEST_TIMEOUT:-300} jobs=${RREF_TEST_JOBS:-1}
while [ $# -gt 0 ]; do
	case $1 in
	--title) title=$2; shift 2 ;;
	--timeout) limit=$2; shift 2 ;;
	--jobs) jobs=$2; shift 2 ;;
	*) break ;;
	esac
done
[ $# -gt 0 ] || { echo "run-tests.sh: no programs" >&2; exit 2; }
case $jobs in '' | *[!0-9]* | 0) echo "run-tests.sh: '$jobs' is no number of jobs" >&2; exit 2 ;; esac
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
[ -n "$title" ] && echo "== $title"

run_one() { # NUMBER PROGRAM: runs it, leaves NUMBER.sum ("passed failed skipped") and prints its lines in one piece
	local t=$2 name log status ms ok skip bad plain verdict=ok start
	name=$(basename "$t") log=$logs/$1.log start=$(date +%s%N)
	# Programs end by themselves; --kill-after is for one that ignores even that.
	timeout --kill-after=10 "$limit" "$t" >"$log" 2>&1 </dev/null
	status=$?
	ms=$((($(date +%s%N) - start) / 1000000))
	# cmocka 1.1.5 prints a total with each of these; a script may print the plain line.
	ok=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
	skip=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) test.*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
	bad=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test.*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
	plain=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
	if [ -n "$plain" ]; then
		ok=$(echo "$plain" | sed 's/ passed.*//')
		bad=$(echo "$plain" | sed 's/.*passed, \([0-9]*\) failed.*/\1/')
	elif [ "$((ok + skip + bad))" -eq 0 ]; then
		[ $status -eq 0 ] && ok=1
	fi
	# A program that ends badly without naming a test (a signal, the time limit) is a failure of its own.
	[ $status -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
	if [ "${RREF_TEST_NO_SKIP-}" = 1 ] && [ "$skip" -gt 0 ]; then
		bad=$((bad + skip)) skip=0
	fi
	[ "$bad" -gt 0 ] && verdict=FAILED
	{
		printf '%-8s %-28s %4d tests %6d.%03d s' "$verdict" "$name" "$((ok + bad))" $((ms / 1000)) $((ms % 1000))
		[ "$skip" -gt 0 ] && printf '  (%d skipped)' "$skip"
		[ $status -eq 124 ] && printf '  (over the limit of %d s)' "$limit"
		echo
		[ "$bad" -gt 0 ] && sed 's/^/    | /' "$log" | tail -n 400
		[ "$skip" -gt 0 ] && grep -iE 'skip' "$log" | grep -vE '^\[  |SKIPPED TEST' | sort -u | sed 's/^/    /' | head -n 20
	} >"$logs/$1.out"
	flock "$logs" cat "$logs/$1.out"
	echo "$ok $bad $skip $name" >"$logs/$1.sum"
}

n=0
for t in "$@"; do
	if [ "$t" = --alone ]; then
		wait
		jobs=1
		continue
	fi
	while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do
		wait -n
	done
	n=$((n + 1))
	run_one $n "$t" &
done
wait
passed=0 failed=0 skipped=0 broken=''
for i in $(seq $n); do
	if ! read -r ok bad skip name <"$logs/$i.sum"; then
		ok=0 bad=1 skip=0 name="number $i (no result)"
	fi
	passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
	[ "$bad" -gt 0 ] && broken="$broken $name"
done
[ -n "$broken" ] && echo "failed:$broken"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
