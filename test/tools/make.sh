#!/usr/bin/env bash
# Tests the Makefile: help, other flags, other folders, compile_commands.json, installing and
# uninstalling, missing packages, progress lines. Builds in a folder of its own.   make.sh
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
tree=$PWD
tmp=$(mktemp -d)
chmod 755 "$tmp"
trap 'rm -rf "$tmp"' EXIT
# The variables of the make that runs this script are not for the makes below.
unset MAKEFLAGS MFLAGS MAKELEVEL DEPS YES O B V PREFIX LIBDIR DESTDIR SAN CFLAGS \
	CPPFLAGS LDFLAGS CXXFLAGS TEST
said=$tmp/out show_last=20 skipped=0
skip() { skipped=$((skipped + 1)); echo "skipped: $*"; }
silent() { ! [ -s "$said" ]; }
lines() { # NUMBER
	[ "$(wc -l <"$said")" -eq "$1" ] || { echo "$(wc -l <"$said") lines, not $1"; return 1; }
}
nobody() { # COMMAND...: as a user without rights
	if [ "$(id -u)" -eq 0 ]; then
		setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/nonexistent "$@"
	else
		"$@"
	fi
}

# ---- help
run make help
for t in $(sed -n '/^\.PHONY:/,/[^\\]$/p' Makefile |
	sed 's/^\.PHONY://; s/^\.DEFAULT.*//; s/\\$//' | tr ' \t' '\n\n' |
	grep -vE '^(|packages|FORCE|may-install|(san|nofast)-tests|check-((san|nofast)-)?run)$'); do
	check "make help has $t" says "^  make $t  "
done

# ---- other flags build anew, the same ones do not
o=$tmp/o object=$tmp/o/core/call/answer.o
one() { run make O="$o" "$object" "$@"; }
check "an object is built" one
check "it is said in one line" lines 1
check "and not built again" one
check "which nothing is said about" silent
for flags in CFLAGS=-DX CPPFLAGS=-DX=1 'CFLAGS=-DX="a b"' CC="cc -pipe" LDFLAGS=-Wl,-O1 OPT=-O1; do
	check "$flags" one "$flags"
	check "$flags builds it anew" says '^  CC '
	check "$flags a second time" one "$flags"
	check "$flags builds nothing the second time" silent
done
run make -n O="$o" SAN=address "$o/address/core/call/answer.o"
check "sanitizers have a folder of their own" says "$o/address/core/call/answer.o"

# ---- a distribution's flags
for flags in CPPFLAGS=-D_FORTIFY_SOURCE=3 "CFLAGS=-O2 -Wp,-D_FORTIFY_SOURCE=3" CFLAGS=-O0 \
	CPPFLAGS=-D_GNU_SOURCE CPPFLAGS=-DNDEBUG; do
	check "$flags with warnings as errors" one CI=1 "$flags"
	check "$flags has no warning" lines 1
done
run make -n O="$o" "$object" V=1 CPPFLAGS=-D_FORTIFY_SOURCE=3
check "there is one level of fortification" \
	[ "$(grep -o -- '-D_FORTIFY_SOURCE=[0-9]' "$said" | sort -u)" = -D_FORTIFY_SOURCE=3 ]
if command -v clang >/dev/null; then
	mapfile -t objects < <(find base core alloc verbs perf/rref-perf \
		test/{attack,demo,lib,sim,unit,proc,conformance,host,roce} -name '*.c' |
		sed "s|^|$tmp/clang/|; s|c\$|o|")
	check "clang has no warning" run make -s -k CC=clang CI=1 CFLAGS=-fsyntax-only \
		O="$tmp/clang" "${objects[@]}"
else
	skip "there is no clang"
fi

# ---- compile_commands.json
[ ! -e compile_commands.json ] || cp -p compile_commands.json "$tmp/yours"
check "compile_commands.json is made" run make compile_commands.json O="$o" CPPFLAGS='-DX="a b"'
mv compile_commands.json "$tmp/commands.json"
[ ! -e "$tmp/yours" ] || mv "$tmp/yours" compile_commands.json
ask() { # EXPRESSION: python prints it for each entry, a line each
	python3 -c "
import json, sys
entries = json.load(open(sys.argv[1]))
for e in entries: print($1)" "$tmp/commands.json"
}
check "it is JSON, and of this folder" [ "$(ask 'e["directory"]' | sort -u)" = "$tree" ]
for d in core test/proc test/lib; do
	check "it has each file of $d" diff <(find "$d" -name '*.c' | sort) \
		<(ask 'e["file"]' | grep "^$d/" | sort)
done
check "and none twice" [ -z "$(ask 'e["file"]' | sort | uniq -d)" ]
for f in core/call/answer test/lib/tg_refs; do
	mkdir -p "$o/${f%/*}"
	rm -f "$o/$f.o"
	check "its command" run sh -c "$(ask 'e["command"] * (e["file"] == "'$f.c'")')"
	check "compiles $f.c" [ -s "$o/$f.o" ]
done

# ---- installing
installed() { (cd "$1" && find . ! -type d | sort); }
wanted() { # PREFIX LIBDIR
	printf './%s\n' "$1"/bin/rref-{demo,info,perf} "$1/include/rref.h" \
		"$1"/include/rref/{base,call,context,future,observe,queue,read,value}.h \
		"$2"/librref.{a,so,so.0,"so.$version"} "$2/pkgconfig/librref.pc" \
		"$1"/share/doc/librref/examples/{batch,eventloop,hello,queue,rpc,share,wrap}.c |
		sort
}
version=$(sed -n 's/^VERSION_[A-Z]* := //p' Makefile | paste -sd .)
before=$(git status --porcelain 2>/dev/null)
check "DESTDIR with a space" run make -s install DESTDIR="$tmp/d e" PREFIX=/usr \
	LIBDIR=/usr/lib/triple
check "everything is there" diff <(installed "$tmp/d e") <(wanted usr usr/lib/triple)
check "DESTDIR with a space, taken away" run make -s uninstall DESTDIR="$tmp/d e" PREFIX=/usr \
	LIBDIR=/usr/lib/triple
check "nothing is left" [ -z "$(installed "$tmp/d e")" ]
relative=build/make-sh.$$
check "DESTDIR may be relative" run make -s install DESTDIR="$relative" PREFIX=/opt/rref
check "a relative DESTDIR is below the tree" diff <(installed "$relative") \
	<(wanted opt/rref opt/rref/lib)
rm -rf "$relative"
check "PREFIX with a space" run make -s install PREFIX="$tmp/it's a & b"
check "the setting for the loader is told" says "LD_LIBRARY_PATH='$tmp/it's a & b/lib'"
check "and the one for pkg-config" says "PKG_CONFIG_PATH='$tmp/it's a & b/lib/pkgconfig'"
echo '#include <rref.h>
int main(void) { return rref_version_number() != RREF_VERSION_NUMBER; }' >"$tmp/user.c"
flags() { PKG_CONFIG_PATH="$tmp/it's a & b/lib/pkgconfig" pkg-config --cflags --libs librref; }
build_user() { eval "cc '$tmp/user.c' -o '$tmp/user' $(flags)"; }
check "a program finds it there by pkg-config" run build_user
check "and runs" env LD_LIBRARY_PATH="$tmp/it's a & b/lib" "$tmp/user"
check "the installed demo finds the library" run "$tmp/it's a & b/bin/rref-demo" --version
check "which is its version" says "^rref-demo \\(librref\\) $version\$"
check "rref-perf runs where it was installed" run "$tmp/it's a & b/bin/rref-perf" --version
check "PREFIX with a space, taken away" run make -s uninstall PREFIX="$tmp/it's a & b"
check "no folder is left" [ ! -e "$tmp/it's a & b" ]
check "GNU's spelling" run make -s install prefix="$tmp/gnu" libdir="$tmp/gnu/lib64"
check "GNU's spelling is followed" diff <(installed "$tmp/gnu") \
	<(wanted . ./lib64 | sed 's|^\./\./|./|; s|/\./|/|' | sort)
check "PREFIX may be relative" run make -s install PREFIX="$relative/in st"
check "a relative PREFIX is below the tree" diff <(installed "$relative/in st") \
	<(wanted . lib | sed 's|^\./\./|./|' | sort)
flags() {
	PKG_CONFIG_PATH="$tree/$relative/in st/lib/pkgconfig" pkg-config --cflags --libs librref
}
elsewhere() (cd / && build_user)
check "it is named in full" says "^installed: $tree/$relative/in st/lib"
check "a program elsewhere finds it there" run elsewhere
check "and taken away" run make -s uninstall PREFIX="$relative/in st"
check "with its folders" [ ! -e "$relative/in st" ]
check "LIBDIR may be relative" run make -s install PREFIX="$relative/a" LIBDIR="$relative/b"
check "a relative LIBDIR is below the tree" [ -e "$relative/b/pkgconfig/librref.pc" ]
rm -rf "$relative"
for d in include lib bin share/doc; do mkdir -p "$tmp/stage/usr/local/$d"; done
check "into folders that were there" run make -s install DESTDIR="$tmp/stage" PREFIX=/usr/local
check "out of them" run make -s uninstall DESTDIR="$tmp/stage" PREFIX=/usr/local
check "no file is left" [ -z "$(installed "$tmp/stage")" ]
for d in include lib bin share/doc; do
	check "/usr/local/$d stays" [ -d "$tmp/stage/usr/local/$d" ]
done
check "the folder of the examples does not" [ ! -e "$tmp/stage/usr/local/share/doc/librref" ]
for bad in PREFIX= LIBDIR=; do
	check "$bad is refused" fails make install O="$tmp/none" "$bad"
	check "$bad is refused by a line" says \
		'make install: (PREFIX|LIBDIR) is empty: name a folder'
	check "$bad builds nothing" [ ! -e "$tmp/none" ]
done
check "installing left the tree as it was" [ "$(git status --porcelain 2>/dev/null)" = "$before" ]
mkdir "$tmp/closed" "$tmp/open"
chmod 755 "$tmp/closed"
if [ "$(id -u)" -eq 0 ]; then
	chmod 777 "$tmp/open"
	check "a user without rights cannot install" fails nobody make install O="$tmp/open/o" \
		PREFIX="$tmp/closed/p" DEPS=no
	check "which is said" says \
		"make install: $tmp/closed cannot be written by .*: .*sudo make install"
	check "before anything is built" [ ! -e "$tmp/open/o" ]
	check "a tree that cannot be written is built elsewhere by O=" run nobody make \
		O="$tmp/open/o" "$tmp/open/o/core/call/answer.o" DEPS=no
else
	skip "users without rights: this is one already"
fi

# ---- packages: with a dpkg-query that knows none and an apt-get that only tells
stub() { { echo '#!/bin/sh'; cat; } >"$tmp/bin/$1"; chmod 755 "$tmp/bin/$1"; }
mkdir "$tmp/bin"
chmod 755 "$tmp/bin"
stub dpkg-query <<<'exit 1'
stub sudo <<<'exit 1'
stub apt-get <<'END'
echo "apt-get $*" >>"$APT_LOG"
case " $* " in
*" --assume-no "*) echo "0 upgraded, 433 newly installed, 0 to remove and 0 not upgraded.
Need to get 400 MB of archives.
After this operation, $APT_SIZE of additional disk space will be used." ; exit 1 ;;
esac
END
deps() { # SIZE WORDS...: deps.sh with them
	local size=$1
	shift
	: >"$tmp/apt"
	chmod 666 "$tmp/apt"
	env PATH="$tmp/bin:$PATH" APT_SIZE="$size" APT_LOG="$tmp/apt" "$@" </dev/null
}
if [ "$(id -u)" -eq 0 ]; then
	check "packages are installed" run deps "200 MB" test/tools/deps.sh build
	check "with how many and how large" says \
		'^installing 433 packages \(download 400 MB, on disk 200 MB\): '
	check "by apt-get, after an update" grep -q \
		'^apt-get install -y --no-install-recommends .*libsodium-dev' \
		<(sed -n '/^apt-get update/,$p' "$tmp/apt")
	for size in "1,700 MB" "1.7 GB" "1700 MB"; do
		check "$size is not installed without a word" fails deps "$size" \
			test/tools/deps.sh peers
		check "$size: the command to type" says 'on disk '"$size"'.*YES=1'
		check "$size: in one line" lines 1
		check "$size: nothing was installed" fails grep -q 'install -y' "$tmp/apt"
		check "$size with YES=1" run deps "$size" env YES=1 test/tools/deps.sh peers
		check "$size with YES=1 is installed" grep -q 'install -y' "$tmp/apt"
	done
fi
check "a user without rights" fails nobody env PATH="$tmp/bin:$PATH" test/tools/deps.sh build
check "is told in one line" lines 1
check "the command to type is told" says \
	'apt-get update && apt-get install --no-install-recommends .*gcc.* pkg-config'
check "DEPS=no looks for nothing" run env PATH="$tmp/bin:$PATH" DEPS=no test/tools/deps.sh build
check "and says nothing" silent
for t in all lib tools tests install sim demo check check-quick check-asan check-tsan check-nofast \
	check-roce demo-roce perf perf-parts perf-peers perf-report perf-beside perf-fake model \
	lint deps; do
	check "make $t looks for packages" fails nobody env PATH="$tmp/bin:$PATH" make "$t" \
		O="$tmp/none" PREFIX="$tmp/open"
	check "make $t tells the command to type" says \
		'apt-get update && apt-get install --no-install-recommends'
	check "make $t says it in one line" [ "$(grep -vcE '^make(\[[0-9]*\])?: ' "$said")" -eq 1 ]
done
check "nothing was built" [ ! -e "$tmp/none" ]

# ---- progress lines
check "a command's status stays" fails test/tools/progress.sh words sh -c 'echo why; exit 7'
check "the output of a failed command is shown" says '^why$'
check "a command that takes long" run test/tools/progress.sh words sh -c 'echo half way; sleep 7'
check "something is said meanwhile" says '^words: [0-9]+ s  half way'
check "a build" run test/tools/progress.sh words sh -c \
	"echo '  CC     a.c'; sleep 7; echo a.c: warning: odd"
check "how much is built is said" says '^words: 1 built, [0-9]+ s'
check "warnings are shown" says '^a.c: warning: odd$'
check "the short lines are not" not says '^  CC'
check "no test has that name" fails make check TEST=no_such_test DEPS=no
check "which is said" says "no test has 'no_such_test' in its name"
run make -n check-run DEPS=no
check "make check without a name runs all" says \
	'unit/wire/decode_test .*proc/call/calls_test|proc/call/calls_test .*unit/wire/decode_test'
run test/tools/run-tests.sh --alone
check "a run without programs is no success" [ $? -ne 0 ]
run make -s check-run TEST=types DEPS=no
check "make check TEST=types runs it" says '^ok +conformance/types '
check "and nothing that is not called so" \
	[ "$(grep -E '^(ok|FAILED) ' "$said" | grep -vc types)" -eq 0 ]
run make -n check-run TEST=session DEPS=no
unit=unit/session/crossing_test proc=proc/session/fence_test
check "a room's name runs its tests" says "$unit .*$proc|$proc .*$unit"
check "and no other room's" not says '/(base|call|read)/'

# ---- jobs: all processors, or as many as are said
printf 'include %s\njobs:\n\t@echo $(MAKEFLAGS)\n' "$tree/Makefile" >"$tmp/jobs.mk"
run make -s -f "$tmp/jobs.mk" jobs
check "all processors" says "(^| )-j$(nproc)( |\$)"
run make -s -f "$tmp/jobs.mk" -j3 jobs
check "as many as are said" says '(^| )-j3( |$)'
check "without a warning" lines 1
run env MAKEFLAGS=-j3 make -s -f "$tmp/jobs.mk" jobs
check "or in the environment" says '(^| )-j3( |$)'

finish
