#!/usr/bin/env bash
# Installs and uninstalls, for the Makefile.
#   install.sh DESTDIR PREFIX LIBDIR VERSION may     fails before a build if it may not write there
#   install.sh DESTDIR PREFIX LIBDIR VERSION install STATIC SHARED TOOL...
#   install.sh DESTDIR PREFIX LIBDIR VERSION uninstall TOOL...     with the names of the tools
set -euo pipefail
cd "$(dirname "$0")/../.."
dest=$1 prefix=$2 libdir=$3 version=$4 what=$5
shift 5
PATH=$PATH:/usr/sbin:/sbin # ldconfig, for ordinary users
die() { echo "make $command: $*" >&2; exit 1; }
command=install
[ "$what" = uninstall ] && command=uninstall
[ -n "$prefix" ] || die "PREFIX is empty: name a folder, or leave it out for /usr/local"
[ -n "$libdir" ] || die "LIBDIR is empty: name a folder, or leave it out for PREFIX/lib"
# Both stand in librref.pc, which is read from everywhere. Relative ones are below this folder, as
# DESTDIR is.
case $prefix in /*) ;; *) prefix=$(realpath -ms -- "$prefix") ;; esac
case $libdir in /*) ;; *) libdir=$(realpath -ms -- "$libdir") ;; esac
include=$dest$prefix/include lib=$dest$libdir bin=$dest$prefix/bin
doc=$dest$prefix/share/doc/librref
major=${version%%.*}

writable() { # FOLDER: dies unless the folder, or the nearest existing one above, can be written
	local d=$1
	until [ -e "$d" ]; do d=$(dirname "$d"); done
	if [ ! -d "$d" ] || [ ! -w "$d" ]; then
		die "$d cannot be written by $(id -un): type it as root (sudo make $command ...)," \
			"or choose another PREFIX, such as PREFIX=\$HOME/.local"
	fi
}
# Tells whether the loader looks into the library's folder by itself.
by_loader() {
	ldconfig -v -N -X 2>/dev/null | grep -E '^/' | sed 's/:.*//' |
		xargs -r -d '\n' realpath -q | grep -qxF "$(realpath -m "$libdir")"
}

case $what in
may)
	for d in "$include/rref" "$lib/pkgconfig" "$bin" "$doc/examples"; do writable "$d"; done
	;;
install)
	static=$1 shared=$2
	shift 2
	install -d "$include/rref" "$lib/pkgconfig" "$bin" "$doc/examples"
	install -m 644 include/rref.h "$include/"
	install -m 644 include/rref/*.h "$include/rref/"
	install -m 644 "$static" "$lib/librref.a"
	install -m 755 "$shared" "$lib/librref.so.$version"
	ln -sf "librref.so.$version" "$lib/librref.so.$major"
	ln -sf "librref.so.$major" "$lib/librref.so"
	plain() { printf '%s' "$1" | sed 's/[\\|&]/\\&/g'; } # for the right side of sed's s
	sed -e "s|@PREFIX@|$(plain "$prefix")|; s|@LIBDIR@|$(plain "$libdir")|" \
		-e "s|@VERSION@|$version|" core/librref.pc.in \
		>"$lib/pkgconfig/librref.pc"
	chmod 644 "$lib/pkgconfig/librref.pc"
	install -m 755 "$@" "$bin/"
	install -m 644 docs/examples/*.c "$doc/examples/"
	echo "installed: ${lib}/librref.so.$major, $include/rref.h," \
		"$bin/rref-info, rref-perf, rref-demo"
	echo "examples: $doc/examples"
	[ -z "$dest" ] || exit 0
	if by_loader; then
		if [ "$(id -u)" -eq 0 ]; then
			ldconfig
		else
			echo "as root, ldconfig, before the loader finds librref.so.$major"
		fi
	else
		echo "the loader does not look into $libdir: link programs with" \
			"-Wl,-rpath,'$libdir', or set LD_LIBRARY_PATH='$libdir'"
	fi
	if command -v pkg-config >/dev/null && ! pkg-config --exists librref; then
		echo "pkg-config does not look there either:" \
			"set PKG_CONFIG_PATH='$libdir/pkgconfig'"
	fi
	;;
uninstall)
	[ ! -d "$lib" ] || writable "$lib"
	[ ! -d "$bin" ] || writable "$bin"
	[ ! -d "$doc/examples" ] || writable "$doc/examples"
	rm -f "$include/rref.h" "$lib"/librref.a "$lib"/librref.so "$lib"/librref.so.* \
		"$lib/pkgconfig/librref.pc"
	for t; do rm -f "$bin/$t"; done
	for h in include/rref/*.h; do rm -f "$include/rref/${h##*/}"; done
	for e in docs/examples/*.c; do rm -f "$doc/examples/${e##*/}"; done
	# Empty folders go too, except for folders that other software expects.
	gone() { # FOLDER...
		local d
		for d; do
			[ ! -d "$d" ] || [ -L "$d" ] || rmdir --ignore-fail-on-non-empty "$d"
		done
	}
	gone "$include/rref" "$doc/examples" "$doc"
	case $prefix in
	/ | /usr | /usr/local | "${HOME-}/.local") ;;
	*) gone "$lib/pkgconfig" "$lib" "$include" "$bin" "${doc%/*}" "${doc%/*/*}" \
		"$dest$prefix" ;;
	esac
	if [ -z "$dest" ] && [ "$(id -u)" -eq 0 ]; then ldconfig; fi
	;;
esac
