#!/usr/bin/env bash
# The Debian packages that building and testing need. Installs those that are missing (as root or by sudo), or says
# which in one line.   deps.sh [--list] [build|check|perf|peers|model|roce ...]   default: build check
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)

packages() {
	case $1 in
	build) echo gcc libc6-dev make binutils libibverbs-dev librdmacm-dev libjemalloc-dev libsodium-dev ;;
	check) echo g++ valgrind libcmocka-dev libjson-c-dev pkg-config procps python3 libasan8 libtsan2 libubsan1 locales ;;
	perf) echo g++ libbenchmark-dev libjson-c-dev gnuplot-nox ;;
	peers) echo perftest ucx-utils openmpi-bin libopenmpi-dev python3 python3-torch iproute2 ;;
	model) echo gcc libc6-dev spin ;;
	roce) "$here/test/vm/prepare.sh" --packages ;;
	*) echo "deps.sh: unknown set '$1': build, check, perf, peers, model, roce" >&2; exit 2 ;;
	esac
}

list_only=
[ "${1-}" = --list ] && { list_only=1; shift; }
[ $# -gt 0 ] || set -- build check
want=$(for set in "$@"; do packages "$set"; done)
if [ -n "$list_only" ]; then
	printf '%s\n' $want | sort -u
	exit 0
fi
command -v dpkg-query >/dev/null || { echo "deps.sh: not a Debian system; what is needed, by Debian's names:" $want >&2; exit 0; }
missing=
for p in $want; do
	dpkg-query -W -f='${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
as_root=
if [ "$(id -u)" -ne 0 ]; then
	if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
		as_root=sudo
	else
		echo "missing packages; install them with: apt-get install$missing" >&2
		exit 1
	fi
fi
echo "installing:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The package lists of a fresh machine may be empty or old: update first, and only when something is missing.
if ! { $as_root apt-get update && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "deps.sh: installing failed:$missing" >&2
	exit 1
fi
