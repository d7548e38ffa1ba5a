#!/usr/bin/env bash
# Runs the peers beside librref, over shared memory of this machine, with one JSON object a
# line. They are UCX (ucx_perftest), MPI's one-sided get (Open MPI), and torch's to_here.
#   run.sh [SECONDS [ucx|mpi|torch ...]]
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
seconds=${1:-1} prefix=${RREF_PERF_PREFIX-} # as perf/report.sh
peers=" ${*:2} "
[ $# -gt 1 ] || peers=" ucx mpi torch "
work=$(mktemp -d)
server=
trap '[ -n "$server" ] && kill "$server" 2>/dev/null; rm -rf "$work"' EXIT

# Debian's own interpreter: its packages are for this one.
python=/usr/bin/python3

port() { # a port of loopback that is free now
	"$python" -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

# ucx OP TEST BYTES ITERATIONS [OUTSTANDING]
# Prints the median of ucx_perftest's last line. It prints the mean if that is less: each sample of
# the median includes a clock reading. With several outstanding it prints the mean.
ucx() {
	local p line tries
	p=$(port)
	UCX_TLS=posix,self UCX_WARN_UNUSED_ENV_VARS=n timeout 60 $prefix ucx_perftest -p "$p" \
		>"$work/server" 2>&1 &
	server=$!
	for tries in $(seq 50); do
		ss -ltn 2>/dev/null | grep -q ":$p " && break
		kill -0 "$server" 2>/dev/null || break
		sleep 0.1
	done
	line=$(UCX_TLS=posix,self UCX_WARN_UNUSED_ENV_VARS=n timeout 60 $prefix ucx_perftest \
		127.0.0.1 -p "$p" -t "$2" -s "$3" -n "$4" \
		${5:+-O "$5"} -w $(($4 / 10 + 1)) 2>"$work/err" | grep '^Final:')
	wait "$server"
	server=
	if [ -z "$line" ]; then
		echo "run.sh: ucx_perftest $2 of $3 bytes said nothing:" \
			"$(tail -n 1 "$work/err")" >&2
		return 1
	fi
	# Final: iterations, latency: median, average, overall, ... in microseconds
	echo "$line" | awk -v op="$1" -v bytes="$3" -v outstanding="${5:-0}" \
		'{ns = 1000 * (outstanding ? $5 : $4 < $3 ? $4 : $3)}
		$3 $4 $5 !~ /^[0-9.]+$/ || ns <= 0 {exit 1}
		{
			printf "{\"op\":\"%s\",\"peer\":\"ucx\",\"device\":\"shm\",", op
			if (outstanding)
				printf "\"outstanding\":%d,", outstanding
			printf "\"bytes\":%d,\"iters\":%d,\"p50_ns\":%.1f}\n", bytes, $2, ns
		}' || { echo "run.sh: ucx_perftest $2 of $3 bytes said: $line" >&2; return 1; }
}

p50() { grep -oE '"p50_ns":[0-9.]+' | head -n 1 | cut -d : -f 2; }
mean() { grep -oE '"ops_per_s":[0-9.e+]+' | head -n 1 | awk -F : '$2 {print 1e9 / $2}'; }

# pair NAME "OPERATION OPTIONS" TEST BYTES ITERATIONS [OUTSTANDING] measures ours and UCX's right
# after each other, three times. With several outstanding, both times are means.
pair() {
	local ours theirs of=${6:+mean}
	of=${of:-p50}
	for _ in 1 2 3; do
		# shellcheck disable=SC2086
		ours=$($prefix build/bin/rref-perf $2 --seconds 0.5 --json | "$of")
		[ -n "$ours" ] || { echo "run.sh: rref-perf $2 said nothing" >&2; return 1; }
		theirs=$(ucx pair "$3" "$4" "$5" "${6-}" | p50)
		[ -n "$theirs" ] || return 1
		printf '{"op":"pair","peer":"ucx","device":"shm","what":"%s","ours_ns":%s,"peer_ns":%s}\n' \
			"$1" "$ours" "$theirs"
	done
}

failed=0
lacks() { # WHAT, WHY IT MATTERS: a part that cannot be measured is a failure, and named
	echo "run.sh: $1: $2" >&2
	failed=1
}
wanted() { [[ $peers == *" $1 "* ]]; }
echo "UCX, then MPI, then torch: some two minutes" >&2
if ! wanted ucx; then
	:
elif command -v ucx_perftest >/dev/null; then
	for s in 8:3000000 64:3000000 512:2000000 4096:1000000 65536:100000 1048576:4000 \
		16777216:100; do
		ucx lat ucp_get "${s%:*}" "${s#*:}" || failed=1
	done
	ucx am_lat ucp_am_lat 8 100000 || failed=1
	if [ -x build/bin/rref-perf ]; then
		pair lat "lat --sizes 8" ucp_get 8 3000000 || failed=1
		pair call call ucp_am_lat 8 100000 || failed=1
		pair rate "rate --sizes 8 --window 64" ucp_get 8 10000000 64 || failed=1
		pair "bw 64 KiB" "bw --sizes 64k --window 16" ucp_get 65536 200000 16 || failed=1
		pair "bw 1 MiB" "bw --sizes 1m --window 16" ucp_get 1048576 10000 16 || failed=1
	else
		lacks "build/bin/rref-perf is not built" \
			"librref beside UCX is left out (make build/bin/rref-perf)"
	fi
else
	lacks "there is no ucx_perftest" "UCX is left out (package ucx-utils)"
fi
echo "MPI" >&2
if ! wanted mpi; then
	:
elif command -v mpicc >/dev/null; then
	mkdir -p build/bin
	mpicc -O2 -o build/bin/mpi_get perf/peers/mpi_get.c &&
		timeout 120 mpirun --allow-run-as-root --oversubscribe -n 2 \
		build/bin/mpi_get "$seconds" 8 64 512 4096 65536 1048576 16777216 2>"$work/err" ||
		{ tail -n 3 "$work/err" >&2; failed=1; }
else
	lacks "there is no mpicc" "MPI is left out (packages openmpi-bin, libopenmpi-dev)"
fi
echo "torch, which takes some ten seconds to begin" >&2
if ! wanted torch; then
	:
elif "$python" -c 'import torch' 2>/dev/null; then
	timeout 300 "$python" perf/peers/torch_to_here.py --seconds "$seconds" 2>"$work/err" ||
		{ tail -n 3 "$work/err" >&2; failed=1; }
else
	lacks "python3 knows no torch" "torch is left out (package python3-torch)"
fi
exit $failed
