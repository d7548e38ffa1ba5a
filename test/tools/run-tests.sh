#!/usr/bin/env bash
# Runs test programs (cmocka) and scripts, one line each. Prints the log of failed ones in full, and
# at the end `N passed, N failed, N skipped`. A script's last line may be `N passed, N failed`;
# without one it counts as one test.
#   run-tests.sh [--title TEXT] [--timeout S] [--jobs N] PROGRAM ... [--alone PROGRAM ...]
# Jobs run beside each other (default RREF_TEST_JOBS, else 1): tests mostly wait, and load finds
# bugs that quiet hides. Programs after --alone run after the others, one at a time: they spin, and
# want the processors. A program's limit (--timeout, RREF_TEST_TIMEOUT) follows the machine. With a
# load average of four times its processors a second counts a quarter. RREF_TEST_SLOW follows it
# too, unless it is set. RREF_TEST_NO_SKIP=1 turns skipped tests into failures. RREF_TEST_LOAD: the
# load average to assume. Slow work under the progress lock, too, fails the run: holds.sh.
set -uo pipefail
# A script that calls make is no part of the make that may have started this.
unset MAKEFLAGS MFLAGS MAKELEVEL
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
case $jobs in
'' | *[!0-9]* | 0)
	echo "run-tests.sh: '$jobs' is no number of jobs" >&2
	exit 2
	;;
esac
logs=$(mktemp -d)
# The processes of all programs count in it what they do under the lock.
truncate -s 4096 "$logs/holds"
export RREF_TEST_HOLDS=$logs/holds
clock=
trap '[ -n "$clock" ] && kill "$clock" 2>/dev/null; rm -rf "$logs"' EXIT
[ -n "$title" ] && echo "== $title"

processors=$(nproc)
load() { # the load average in hundredths
	local l=${RREF_TEST_LOAD-}
	[ -n "$l" ] || read -r l _ </proc/loadavg
	[[ $l == *.* ]] || l=$l.00
	echo $((10#${l/./}))
}
machine() {
	local l
	l=$(load)
	printf 'load average %d.%02d on %d processors' $((l / 100)) $((l % 100)) "$processors"
}
stolen() { # the part of the last second that other guests of the host took, in percent
	local user nice system idle iowait irq softirq steal rest all
	[ -z "${RREF_TEST_LOAD-}" ] &&
		read -r _ user nice system idle iowait irq softirq steal rest </proc/stat ||
		return 0
	all=$((user + nice + system + idle + iowait + irq + softirq + steal))
	[ "$all" -gt "$last_all" ] && taken=$((100 * (steal - last_steal) / (all - last_all)))
	last_all=$all last_steal=$steal
}
# Ends programs over their limit, and names the running ones after ten seconds without a line. Its
# time is in hundredths of a second, each second counted by the machine's share.
watch_over() {
	local now=0 l share silent=0 f pid start name running taken=0 last_all=0 last_steal=0
	: >"$logs/tick"
	while sleep 1 && kill -0 $$ 2>/dev/null; do
		l=$(load) share=100
		[ "$l" -gt $((100 * processors)) ] && share=$((10000 * processors / l))
		stolen
		now=$((now + share * (100 - taken) / 100 + 1))
		running=
		for f in "$logs"/*.run; do
			read -r pid name 2>/dev/null <"$f" || continue
			running="$running $name"
			[ -e "${f%.run}.start" ] || echo $now >"${f%.run}.start"
			read -r start <"${f%.run}.start"
			if [ $((now - start)) -gt $((100 * limit)) ] && [ ! -e "${f%.run}.over" ] &&
				[ -e "$f" ]; then
				: >"${f%.run}.over"
				kill "$pid" 2>/dev/null
			fi
		done
		silent=$((silent + 1))
		[ "$logs/said" -nt "$logs/tick" ] && silent=0
		if [ $silent -ge 10 ] && [ -n "$running" ]; then
			flock "$logs" echo "   ...$running ($(machine))"
			silent=0
		fi
		: >"$logs/tick"
	done
}
watch_over &
clock=$!
disown "$clock"

# run_one NUMBER PROGRAM runs it, writes NUMBER.sum ("passed failed skipped"), and prints its lines
# in one piece.
run_one() {
	local t=$2 name log status ms ok skip bad plain verdict=ok start pid slow=${RREF_TEST_SLOW-}
	# A test program is told by its kind, room and name, a script by its name.
	case $t in */bin/*/*) name=${t##*/bin/} ;; *) name=$(basename "$t") ;; esac
	log=$logs/$1.log start=$(date +%s%N)
	# Load finds bugs, so deadlines inside the tests follow only
	# from four times the processors on.
	[ -n "$slow" ] || slow=$((1 + $(load) / (400 * processors)))
	# Programs end by themselves; --kill-after is for a program that ignores SIGTERM. The clock
	# above ends it sooner, except on the slowest machine.
	RREF_TEST_SLOW=$slow timeout --kill-after=10 $((20 * limit)) "$t" >"$log" 2>&1 </dev/null &
	pid=$!
	echo "$pid $name" >"$logs/$1.run"
	wait "$pid"
	status=$?
	rm -f "$logs/$1.run"
	[ $status -eq 124 ] && : >"$logs/$1.over"
	ms=$((($(date +%s%N) - start) / 1000000))
	# cmocka 1.1.5 prints a total with each of these; a script may print the plain line.
	ok=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log" |
		awk '{n += $1} END {print n + 0}')
	skip=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) test.*/\1/p' "$log" |
		awk '{n += $1} END {print n + 0}')
	bad=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test.*/\1/p' "$log" |
		awk '{n += $1} END {print n + 0}')
	plain=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
	if [ -n "$plain" ]; then
		ok=$(echo "$plain" | sed 's/ passed.*//')
		bad=$(echo "$plain" | sed 's/.*passed, \([0-9]*\) failed.*/\1/')
	elif [ "$((ok + skip + bad))" -eq 0 ]; then
		[ $status -eq 0 ] && ok=1
	fi
	# A program that ends badly without naming a test (a signal, the time limit) is one failure.
	[ $status -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
	if [ "${RREF_TEST_NO_SKIP-}" = 1 ] && [ "$skip" -gt 0 ]; then
		bad=$((bad + skip)) skip=0
	fi
	[ "$bad" -gt 0 ] && verdict=FAILED
	{
		printf '%-8s %-38s %4d tests %6d.%03d s' "$verdict" "$name" "$((ok + bad))" \
			$((ms / 1000)) $((ms % 1000))
		[ "$skip" -gt 0 ] && printf '  (%d skipped)' "$skip"
		[ -e "$logs/$1.over" ] &&
			printf '  (over the limit of %d s, %s; RREF_TEST_TIMEOUT=S gives more)' \
			"$limit" "$(machine)"
		echo
		[ "$bad" -gt 0 ] && sed 's/^/    | /' "$log" | tail -n 400
		[ "$skip" -gt 0 ] && grep -iE 'skip' "$log" | grep -vE '^\[  |SKIPPED TEST' |
			sort -u | sed 's/^/    /' | head -n 20
	} >"$logs/$1.out"
	flock "$logs" cat "$logs/$1.out"
	: >"$logs/said"
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
[ "$n" -gt 0 ] || { echo "run-tests.sh: no programs" >&2; exit 2; }
passed=0 failed=0 skipped=0 broken=''
for i in $(seq $n); do
	if ! read -r ok bad skip name <"$logs/$i.sum"; then
		ok=0 bad=1 skip=0 name="number $i (no result)"
	fi
	passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
	[ "$bad" -gt 0 ] && broken="$broken $name"
done
if [ -n "$broken" ]; then
	echo "failed:$broken"
	[ "$(load)" -le $((200 * processors)) ] ||
		echo "$(machine): fewer beside each other by RREF_TEST_JOBS=1," \
			"longer deadlines by RREF_TEST_SLOW=8," \
			"a higher limit by RREF_TEST_TIMEOUT=900"
fi
"$(dirname "$0")/holds.sh" "$logs/holds" || failed=$((failed + 1))
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
