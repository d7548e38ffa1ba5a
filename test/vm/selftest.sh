#!/bin/bash
# Proves the virtual machines themselves. There must be real RDMA within a host and between two.
# Failures, deadlines and results must come through.
#   selftest.sh [one|two]     default: both
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
cd "$here" || exit 125
run=$here/run.sh
which=${1-all}
tmp=$(mktemp -d) || exit 125
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
passed=0 failed=0

check() { # NAME COMMAND...
	local name=$1
	shift
	if "$@" >"$tmp/check" 2>&1; then
		passed=$((passed + 1))
		echo "ok $((passed + failed)) - $name"
	else
		failed=$((failed + 1))
		echo "not ok $((passed + failed)) - $name"
		sed 's/^/# /' "$tmp/check" "$tmp/out" "$tmp/err" | tail -n 60
	fi
}
is() { [[ $1 == "$2" ]] || { echo "is '$1', not '$2'"; return 1; }; }
has() { grep -qxF -- "$1" "$tmp/out"; }
vm() { # ARG...: run.sh's output and status
	"$run" "$@" >"$tmp/out" 2>"$tmp/err"
	status=$?
}
# The QEMUs of this test's runs name its folder in their arguments.
no_guest_left() {
	local f
	for f in /proc/[0-9]*/cmdline; do
		if tr '\0' ' ' <"$f" 2>/dev/null | grep -q "^qemu-system.*path=$tmp/"; then
			echo "left: $f"
			return 1
		fi
	done
}

one_host() {
	# shellcheck disable=SC2016 # for the guest's shell to expand
	RREF_SELFTEST='a  "b" $c' CI=yes vm --timeout 240 --log "$tmp/one" -- bash -c '
		say() { if eval "$2"; then echo "$1 yes"; else echo "$1 no"; fi; }
		quiet() { "$@" >>"$RREF_VM_OUT/programs.txt" 2>&1; }
		# A server in the background, then its client, both with a deadline. Not
		# before the server listens: a rejected ib_read_lat crashes.
		pair() {
			local listens=$1 server=$2 client=$3 pid i
			quiet timeout 60 $server & pid=$!
			for ((i = 0; i < 300; i++)); do eval "$listens" && break; sleep 0.1; done
			quiet timeout 60 $client && wait $pid
		}
		tcp="grep -q :4853.*:0000.0A /proc/net/tcp /proc/net/tcp6" # 18515, LISTEN
		cm="rdma resource show cm_id | grep -q LISTEN"
		echo "args $# $1"
		echo "env $RREF_SELFTEST $CI $RREF_VM $RREF_VM_HOST $RREF_VM_HOSTS $(hostname)"
		echo "cwd $PWD"
		echo "memlock $(ulimit -l) $(id -u)"
		say device "rdma link | grep -q \"rxe0/1 state ACTIVE\""
		say tmp "mkdir /tmp/x && touch /run/x /dev/shm/x"
		say localhost "getent hosts localhost >/dev/null"
		say stderr "echo hello >/dev/stderr"
		say readonly "! touch /lower/x 2>/dev/null"
		say netem "modprobe sch_netem"
		ping="ibv_rc_pingpong -d rxe0 -g 1 -n 200" lat="ib_read_lat -R -d rxe0 -n 200"
		say verbs "pair \"\$tcp\" \"$ping\" \"$ping localhost\""
		say cm "pair \"\$cm\" \"rping -s -a 10.77.0.1 -C 50\" \
			\"rping -c -a 10.77.0.1 -C 50\""
		say read "pair \"\$cm\" \"$lat\" \"$lat 10.77.0.1\""
		echo result >"$RREF_VM_OUT/result"
		printf "no newline"
		exit 3' name 'x  y'
	check "exit status comes through" is "$status" 3
	check "arguments come through" has 'args 1 x  y'
	# shellcheck disable=SC2016
	check "environment" has 'env a  "b" $c yes 1 0 1 host0'
	check "working directory" has "cwd $here"
	check "root with unlimited memlock" has 'memlock unlimited 0'
	check "rxe0 is active" has 'device yes'
	check "/tmp, /run, /dev/shm are writable" has 'tmp yes'
	check "localhost resolves" has 'localhost yes'
	check "standard error can be opened" has 'stderr yes'
	check "standard error is shown" has hello
	check "the host's files are out of reach" has 'readonly yes'
	check "modprobe works" has 'netem yes'
	check "verbs: ibv_rc_pingpong between two processes" has 'verbs yes'
	check "rdma_cm: rping between two processes" has 'cm yes'
	check "READ: ib_read_lat over rdma_cm between two processes" has 'read yes'
	check "the last bytes of output are there" is "$(tail -c 10 "$tmp/out")" 'no newline'
	check "results are in --log" is "$(cat "$tmp/one/host0/result")" result

	vm --timeout 20 --log "$tmp/deadline" -- bash -c 'echo begun; sleep 100'
	check "deadline gives 124" is "$status" 124
	check "output until the deadline is there" has begun
	check "a guest is ended at its deadline" no_guest_left

	vm --timeout 60 --log "$tmp/signal" -- bash -c 'kill -SEGV $$'
	check "death by a signal gives 128 + its number" is "$status" 139

	vm --timeout 60 --log "$tmp/panic" -- bash -c 'echo c >/proc/sysrq-trigger; sleep 60'
	check "a panic gives 125" is "$status" 125
	check "a panic is shown" grep -q 'Kernel panic' "$tmp/err"

	vm -- no-such-command
	check "a missing command gives 127" is "$status" 127
	rm -rf "$(sed -n 's/^.*results and logs in //p' "$tmp/err")"

	"$run" --timeout 60 --log "$tmp/term" -- bash -c 'echo begun; sleep 100' >"$tmp/out" \
		2>"$tmp/err" &
	local pid=$! i
	for ((i = 0; i < 300; i++)); do has begun && break; sleep 0.1; done
	kill -TERM "$pid"
	wait "$pid"
	check "SIGTERM ends run.sh" is "$?" 143
	check "SIGTERM ends the guest" no_guest_left
	vm --hosts 3 -- true
	check "a wrong option gives 125" is "$status" 125
}

two_hosts() {
	# shellcheck disable=SC2016
	vm --hosts 2 --timeout 120 --log "$tmp/two" -- bash -c '
		echo "I am $(hostname)"
		if ((RREF_VM_HOST == 0)); then
			timeout 60 ib_read_lat -R -d rxe0 -n 200 >"$RREF_VM_OUT/lat" 2>&1 &
			for ((i = 0; i < 300; i++)); do
				rdma resource show cm_id | grep -q LISTEN && break
				sleep 0.1
			done
			touch "$RREF_VM_SHARED/listening"
			wait $! && echo served
			exit 4
		fi
		for ((i = 0; i < 300; i++)); do
			[[ -e $RREF_VM_SHARED/listening ]] && break
			sleep 0.1
		done
		timeout 60 ib_read_lat -R -d rxe0 -n 200 host0 >"$RREF_VM_OUT/lat" 2>&1 &&
			echo "read"
		exit 5'
	check "two hosts: the larger exit status" is "$status" 5
	check "two hosts: host 0's output" has 'I am host0'
	check "two hosts: host 1's output, prefixed" has '[host1] I am host1'
	check "two hosts: READ served by host 0" has served
	check "two hosts: READ by host 1" has '[host1] read'
	check "two hosts: results of each" test -s "$tmp/two/host0/lat" -a -s "$tmp/two/host1/lat"

	# shellcheck disable=SC2016
	vm --hosts 2 --timeout 90 --log "$tmp/die" -- bash -c '
		if ((RREF_VM_HOST == 1)); then sleep 1; exec ./die.sh 0; fi
		sleep 4
		! timeout 2 bash -c "exec 9<>/dev/tcp/host1/1" 2>/dev/null && echo alone
		exit 6'
	check "two hosts: a death on purpose is no failure" is "$status" 6
	check "two hosts: the other lives on" has alone

	vm --hosts 2 --timeout 25 --log "$tmp/deadline2" -- bash -c '((RREF_VM_HOST)) || sleep 100'
	check "two hosts: deadline gives 124" is "$status" 124
	check "two hosts: it names the late one" grep -q 'host0: command still running' "$tmp/err"
	check "two hosts: guests are ended at the deadline" no_guest_left
}

"$here/prepare.sh" || { echo "Bail out! prepare.sh failed"; exit 125; }
case $which in
one) one_host ;;
two) two_hosts ;;
all) one_host; two_hosts ;;
*) echo "usage: selftest.sh [one|two]" >&2; exit 125 ;;
esac
echo "$passed passed, $failed failed"
((failed == 0))
