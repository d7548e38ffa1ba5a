#!/usr/bin/env bash
# Runs each make target as the first command on a bare Debian 12, as root and as an ordinary user.
# The root is made by debootstrap, with git, make and ca-certificates alone. Packages come from this
# machine's own source of Debian and are kept in build/bare/, as is the root. Needs root. These
# commands alone see its mounts.
#   bare.sh [--keep]      --keep leaves the layers of the commands in build/bare/run/
# Some commands take long, or other steps run them. Only their packages are checked. These are the
# whole of check, check-quick, check-tsan, check-roce, demo-roce, perf and perf-roce. So are the
# measurements of perf-peers and perf-report, which need more than 1 GB of packages.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
tree=$PWD dir=$PWD/build/bare suite=bookworm
cannot() { # REASON: skips this script, but fails in the CI
	if [ -n "${CI-}" ]; then
		echo "FAILED: $1"
		echo "0 passed, 1 failed"
		exit 1
	fi
	echo "skipped: $1"
	echo "0 passed, 0 failed, 1 skipped"
	exit 0
}
PATH=$PATH:/usr/sbin:/sbin
[ "$(id -u)" -eq 0 ] || cannot "needs root"
command -v debootstrap >/dev/null || cannot "there is no debootstrap"
unshare --mount --pid --fork true 2>/dev/null || cannot "may not mount: unshare fails"
mkdir -p "$dir"/{run,archives/partial,lists/partial}
rm -rf "$dir"/run/*
said=$dir/out show_last=30 margin='    | '
[ "${1-}" = --keep ] || trap 'rm -rf "$dir/run"' EXIT

# ---- the root

# This machine's own sources of Debian, "SITE RELEASE COMPONENT" a line; else the usual one.
sources() {
	local found
	# shellcheck disable=SC2016
	found=$(apt-get indextargets --format '$(ORIGIN) $(SITE) $(RELEASE) $(COMPONENT)' \
		'Created-By: Packages' 2>/dev/null |
		awk -v suite="$suite" '$1 == "Debian" && index($3, suite) == 1 {print $2, $3, $4}' |
		sort -u)
	grep -q " $suite main$" <<<"$found" && echo "$found" ||
		echo "http://deb.debian.org/debian $suite main"
}
make_root() {
	local mirror
	mirror=$(sources | awk -v suite="$suite" '$2 == suite {print $1; exit}')
	rm -rf "$dir/root"
	mkdir -p "$dir/debs"
	debootstrap --variant=minbase --include=git,make,ca-certificates --cache-dir="$dir/debs" \
		"$suite" "$dir/root" "$mirror" || return 1
	sources | sed 's/^/deb /' >"$dir/root/etc/apt/sources.list"
	# This machine's way to them (a proxy, say); downloaded packages are kept.
	{
		apt-config dump | grep -E '^Acquire::' | grep -vE \
			'::Auth|^Acquire::(CompressionTypes|IndexTargets|Changelogs|Languages)'
		echo 'Acquire::Languages "none";'
		echo 'Binary::apt-get::APT::Keep-Downloaded-Packages "true";' \
			'APT::Keep-Downloaded-Packages "true";'
	} >"$dir/root/etc/apt/apt.conf.d/90as-the-host"
	echo force-unsafe-io >"$dir/root/etc/dpkg/dpkg.cfg.d/unsafe-io" # it is thrown away
	printf '#!/bin/sh\nexit 101\n' >"$dir/root/usr/sbin/policy-rc.d"
	chmod 755 "$dir/root/usr/sbin/policy-rc.d"
	# The lists of a fresh machine are empty.
	rm -f "$dir/root/var/cache/apt/archives"/*.deb "$dir/root/var/lib/apt/lists"/*_*
	chroot "$dir/root" useradd -m new
	: >"$dir/root.made"
}
[ -e "$dir/root.made" ] || test/tools/progress.sh "the bare root" bash -c \
	"$(declare -f sources make_root); dir='$dir' suite=$suite; make_root" ||
	cannot "debootstrap failed"
cp /etc/resolv.conf "$dir/root/etc/resolv.conf" 2>/dev/null
rm -rf "$dir/root/root/librref" "$dir/root/home/new/librref"
mkdir "$dir/root/root/librref"
# A clone, with the changes that are not committed yet.
git ls-files -z --cached --others --exclude-standard |
	while IFS= read -r -d '' f; do [ -e "$f" ] && printf '%s\0' "$f"; done |
	tar -c --null -T - | tar -x --no-same-owner -C "$dir/root/root/librref" ||
	cannot "the tree cannot be copied (git ls-files)"
cp -a "$dir/root/root/librref" "$dir/root/home/new/librref"
chroot "$dir/root" chown -R new:new /home/new

# ---- commands in it

# Runs a command in a copy of the root: in_root LAYERS USER COMMAND. LAYERS are those of earlier
# commands, below it ("-" for no layer). It writes its own layer, $layer; its output goes to $out.
# It ends after ten minutes.
layer=
in_root() {
	local below=$1 user=$2 command=$3 i
	i=$(find "$dir/run" -mindepth 1 -maxdepth 1 -type d | wc -l)
	layer=$dir/run/$i
	mkdir -p "$layer"/{up,work,at}
	[ "$below" = - ] && below=
	# shellcheck disable=SC2016
	timeout --kill-after=10 600 unshare --mount --pid --fork --kill-child bash -c '
		set -e
		dir=$1 layer=$2 below=$3 user=$4 command=$5 lower=
		for l in $below; do lower=$l/up:$lower; done
		mount --make-rprivate /
		mount -t overlay overlay "$layer/at" \
			-o "lowerdir=$lower$dir/root,upperdir=$layer/up,workdir=$layer/work"
		mount -t proc proc "$layer/at/proc"
		mount --rbind /sys "$layer/at/sys"
		mount --rbind /dev "$layer/at/dev"
		mount --bind "$dir/archives" "$layer/at/var/cache/apt/archives"
		mount --bind "$dir/lists" "$layer/at/var/lib/apt/lists"
		home=/root
		[ "$user" = root ] || home=/home/$user
		proxies=()
		for v in http_proxy https_proxy no_proxy; do
			[ -z "${!v-}" ] || proxies+=("$v=${!v}")
		done
		cd /
		exec chroot --userspec="$user" "$layer/at" \
			env -i "${proxies[@]}" HOME=$home USER="$user" LANG=C.UTF-8 \
			PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
			bash -c "cd ~/librref && $command"
	' - "$dir" "$layer" "$below" "$user" "$command" </dev/null 2>&1 | note
	return "${PIPESTATUS[0]}"
}
# Writes its input to $said, and its longest silence in seconds to $said.silent.
note() {
	local line last=$SECONDS most=0
	: >"$said"
	while IFS= read -r line; do
		[ $((SECONDS - last)) -le $most ] || most=$((SECONDS - last))
		last=$SECONDS
		printf '%s\n' "$line" >>"$said"
	done
	[ $((SECONDS - last)) -le $most ] || most=$((SECONDS - last))
	echo $most >"$said.silent"
}
# first LAYERS COMMAND runs it as root. It must succeed, and never be silent for long: ten seconds,
# with room for a busy machine.
first() {
	local start=$SECONDS
	check "$2" in_root "$1" root "$2"
	echo "$2: $((SECONDS - start)) s, silent for at most $(cat "$said.silent") s"
	check "$2 tells its progress" [ "$(cat "$said.silent")" -le 30 ]
}

in_root - root true || cannot "no overlay of the root can be mounted: $(tail -n 1 "$said")"

# ---- a user without rights: one line with the command to type
targets="all lib tools tests install sim model perf perf-parts perf-roce perf-peers perf-report"
targets+=" perf-beside perf-fake check check-quick check-asan check-tsan check-nofast check-roce"
targets+=" lint demo demo-roce deps"
# All share one root, which no command may change.
in_root - new 'for t in '"$targets"'; do
		echo "$t: $(make $t PREFIX=$HOME/.local 2>&1 | grep -v "^make")"
		[ ! -e build ] || echo "$t left a build folder"
	done; make help; make clean; make uninstall PREFIX=$HOME/.local && echo "uninstalled"'
install='apt-get update && apt-get install --no-install-recommends'
for t in $targets; do
	check "make $t, by a user without rights, is one line" \
		says "^$t: packages are missing; type as root: $install .*(gcc|spin)"
done
check "and nothing else" [ "$(grep -cE '^[a-z-]+: ' "$said")" -eq "$(wc -w <<<"$targets")" ]
check "make help" says '^  make demo  '
check "make clean, make uninstall" says '^uninstalled$'
asked=$(sed -n 's/^[a-z-]*: .*--no-install-recommends \(.*\)   (.*/\1/p' "$said" |
	tr ' ' '\n' | sort -u)
in_root - new 'make install'
check "make install to /usr/local, by a user without rights" \
	says '^make install: /usr/local.* cannot be written by new: .*sudo make install'

# ---- root: packages, and the purpose of the command
first - make
base=$layer
in_root "$base" root "apt-get install -s --no-install-recommends $(tr '\n' ' ' <<<"$asked")"
check "Debian has every package that is asked for" says ' newly installed, 0 to remove'
for t in "make lib" "make tools" "make sim SEEDS=200" "make demo" "make clean"; do
	first "$base" "$t"
done
first "$base" "test/tools/readme-run.sh"
first "$base" "make install && rref-info >/dev/null && rref-demo --version && rref-perf --version &&
	make uninstall && test ! -e /usr/local/include/rref.h -a ! -e /usr/local/include/rref"
check "the installed programs run" says '^rref-demo \(librref\)'
in_root "$base" root 'cp -a . /home/new/built && chown -R new:new /home/new/built'
built=$layer
check "the README's commands for one user" \
	in_root "$base $built" new 'cd ~/built && test/tools/readme-run.sh --user'
first "$base" "make check TEST=key_test"
check=$layer
check "a test ran" says '^[1-9][0-9]* passed, 0 failed'
first "$base $check" "test/tools/readme-run.sh --cc 'c++ -x c++'"
first "$base $check" "make check-asan TEST=key_test"
check "a test ran under the sanitizer" says '^[1-9][0-9]* passed, 0 failed'
first "$base $check" "make build/bin/proc/call/calls_test && build/bin/proc/call/calls_test"
first "$base" "make perf-parts ARGS='--benchmark_min_time=0.01'"
first "$base" "make lint"
first - "make model ARGS=credits"
for t in perf-peers perf-report; do
	in_root "$base" root "make $t"
	check "make $t asks before it takes so much" says '^this needs [0-9]+ packages .*type YES=1'
	check "make $t installed nothing" [ ! -e "$layer/up/usr/bin/mpicc" ]
done

echo "$SECONDS s; left out: the work of check-quick, check-tsan, check-roce, demo-roce, perf," \
	"perf-roce, perf-peers and perf-report after their packages are installed"
finish
