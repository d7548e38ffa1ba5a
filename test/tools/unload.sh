#!/usr/bin/env bash
# The library as a plug-in: loaded by dlopen, used in a thread, unloaded; then the thread ends, and
# nothing crashes. As the shared library, and linked statically into the plug-in of a program.
#   unload.sh [BUILD_DIR]
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
build=$PWD/${1:-build}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

cat >"$tmp/use.c" <<'END'
#include <rref.h>
/* Joins a group of one, makes and reads values, leaves. 0, or where it failed. */
__attribute__((visibility("default"))) int use(void);
int use(void)
{
	struct rref_options o;
	struct rref_view *v;
	struct rref_ctx *c;
	struct rref *r;

	rref_options_init(&o);
	o.world_size = 1;
	o.device = "shm";
	if (rref_init(&o, &c))
		return 1;
	for (int i = 0; i < 1000; i++) {
		if (rref_new(c, "x", 1, &r) || rref_to_here(r, RREF_DEFAULT, &v))
			return 2;
		rref_view_free(v);
		rref_release(r);
	}
	if (rref_shutdown(c, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT))
		return 3;
	rref_free_ctx(c);
	return 0;
}
END
cat >"$tmp/host.c" <<'END'
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
static int (*use)(void);
static pthread_barrier_t used, unloaded;
static void *user(void *arg)
{
	int *result = arg;

	*result = use();
	pthread_barrier_wait(&used);
	pthread_barrier_wait(&unloaded);
	return NULL;
}
int main(int argc, char **argv)
{
	pthread_barrier_init(&used, NULL, 2);
	pthread_barrier_init(&unloaded, NULL, 2);
	for (int i = 0; i < 3; i++) {
		void *h = dlopen(argv[argc - 1], RTLD_NOW | RTLD_LOCAL);
		int result = -1;
		pthread_t t;

		if (!h || !(use = (int (*)(void))dlsym(h, "use")))
			return printf("%s\n", dlerror()), 1;
		if (pthread_create(&t, NULL, user, &result))
			return 1;
		pthread_barrier_wait(&used);
		if (dlclose(h) || result)
			return printf("use: %d\n", result), 1;
		pthread_barrier_wait(&unloaded);
		pthread_join(t, NULL);
	}
	return 0;
}
END
verdict() { # NAME COMMAND...
	local name=$1 out status
	shift
	out=$("$@" 2>&1)
	status=$?
	if [ $status -eq 0 ]; then
		ok
	else
		bad "$name (status $status): $out"
	fi
}
cc=${CC:-cc}
libs=(-libverbs -lrdmacm -lsodium -ldl -lm -pthread)
verdict "the host builds" "$cc" -O1 "$tmp/host.c" -o "$tmp/host" -ldl -pthread
plugin=("$cc" -O1 -fPIC -shared -fvisibility=hidden -Iinclude "$tmp/use.c")
verdict "a plug-in with the shared library builds" \
	"${plugin[@]}" -o "$tmp/shared.so" -L"$build" -lrref -Wl,-rpath,"$build"
verdict "a plug-in with the static library builds" \
	"${plugin[@]}" -o "$tmp/static.so" "$build/librref.a" "${libs[@]}"
# The library's thread-local storage is of the static kind (docs/design/process.md).
export GLIBC_TUNABLES=glibc.rtld.optional_static_tls=8192
verdict "unloaded, then the thread ends: shared" timeout 60 "$tmp/host" "$tmp/shared.so"
verdict "unloaded, then the thread ends: static" timeout 60 "$tmp/host" "$tmp/static.so"
verdict "the shared library says that it stays" sh -c \
	"readelf -d '$build/librref.so' | grep -q NODELETE"
finish
