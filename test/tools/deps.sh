#!/usr/bin/env bash
# Installs the missing ones of the Debian packages for building and testing, as root or by sudo
# without a password. Otherwise one line has the command to type.
#   deps.sh [--list] [build|check|lint|perf|peers|model|roce|bare ...]
# DEPS=no looks for nothing. A gigabyte or more is installed only after a question (YES=1: yes).
set -euo pipefail
[ "${DEPS-}" != no ] || exit 0
here=$(cd "$(dirname "$0")/../.." && pwd)

packages() {
	case $1 in
	build) echo gcc libc6-dev make binutils pkg-config libibverbs-dev librdmacm-dev \
		libjemalloc-dev libsodium-dev libjson-c-dev ;;
	check) echo g++ clang valgrind libcmocka-dev procps python3 libasan8 libtsan2 \
		libubsan1 locales ;;
	lint) echo python3 pmccabe universal-ctags clang-format ;;
	perf) echo g++ libbenchmark-dev gnuplot-nox ;;
	peers) echo perftest ucx-utils openmpi-bin libopenmpi-dev python3 python3-torch iproute2 ;;
	model) echo gcc libc6-dev spin ;;
	roce) "$here/test/vm/prepare.sh" --packages ;;
	bare) echo debootstrap ;;
	*)
		echo "deps.sh: unknown set '$1':" \
			"build, check, lint, perf, peers, model, roce, bare" >&2
		exit 2
		;;
	esac
}

list_only=
[ "${1-}" = --list ] && { list_only=1; shift; }
[ $# -gt 0 ] || set -- build check
want=$(for set in "$@"; do packages "$set"; done | tr ' ' '\n' | sort -u)
if [ -n "$list_only" ]; then
	echo "$want"
	exit 0
fi
if ! command -v dpkg-query >/dev/null; then
	[ -d "$here/build" ] ||
		echo "deps.sh: not a Debian system; it needs, by Debian's names:" $want >&2
	exit 0
fi
# shellcheck disable=SC2086
have=$(dpkg-query -W -f='${db:Status-Abbrev} ${Package}\n' $want 2>/dev/null |
	sed -n 's/^ii  *//p') || true
missing=$(grep -vxF "$have" <<<"$want" | tr '\n' ' ') || true
missing=${missing% }
[ -n "$missing" ] || exit 0
install="apt-get install --no-install-recommends"
as_root=
if [ "$(id -u)" -ne 0 ]; then
	if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
		as_root=sudo
	else
		echo "packages are missing; type as root: apt-get update && $install $missing  " \
			"(DEPS=no goes on without)" >&2
		exit 1
	fi
fi

apt() { $as_root env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get "$@"; }
progress() { "$here/test/tools/progress.sh" "$@"; }
# The package lists of a fresh machine may be empty or old: update
# first, but only if packages are missing.
progress "package lists" $as_root apt-get update ||
	echo "deps.sh: apt-get update failed; going on with the lists that are there" >&2
# shellcheck disable=SC2086
plan=$(apt install --no-install-recommends --assume-no $missing 2>&1) || true
download=$(sed -n 's/^Need to get \(.*\) of archives\.$/\1/p' <<<"$plan")
size=$(sed -n 's/^After this operation, \(.*\) of additional disk space will be used\.$/\1/p' \
	<<<"$plan")
count=$(sed -n 's/^.* \([0-9]*\) newly installed, .*/\1/p' <<<"$plan")
what="${count:-?} packages (download ${download:-unknown}, on disk ${size:-unknown})"
case $size in
*GB | [0-9][0-9][0-9][0-9]*MB | *,*MB)
	if [ "${YES-}" = 1 ]; then
		:
	elif [ -t 0 ] && [ -t 2 ]; then
		read -r -p "install $what, for: $missing? [y/N] " answer || answer=
		case $answer in
		y | Y | yes) ;;
		*)
			echo "deps.sh: nothing was installed" >&2
			exit 1
			;;
		esac
	else
		echo "this needs $what: $missing; type YES=1 after make to install them" \
			"(DEPS=no goes on without)" >&2
		exit 1
	fi
	;;
esac
echo "installing $what: $missing"
# shellcheck disable=SC2086
progress "packages" $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y \
	--no-install-recommends $missing || {
	echo "deps.sh: installing failed: $missing" >&2
	exit 1
}
