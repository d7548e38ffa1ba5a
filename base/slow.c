/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counts of slow work under the progress lock: see slow.h. The file RREF_TEST_HOLDS is mapped
 * before main, so that no limit that a test sets matters. Children of fork(2) go on in the same
 * mapping, and a process that is killed has lost nothing. Empty without RREF_CHECKED.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/slow.h"
#include "base/util.h"

#if RB_CHECKED

#define NAME_BYTES 56
#define PROGRAM_BYTES 16

/* The longest hold by a clock, with the program that it was in. */
struct longest {
	_Atomic uint64_t ns;
	_Atomic uint64_t program[PROGRAM_BYTES / sizeof(uint64_t)]; /* text, with its end */
};

/* The file. test/tools/holds.sh reads it, in records of 64 bytes. */
struct file {
	_Atomic uint64_t nr, nr_slow;
	struct longest time; /* includes pauses: the system may stop the thread, or the process */
	struct longest work; /* processor time of the thread */
	struct {
		_Atomic uint64_t nr;
		char name[NAME_BYTES];
	} kind[RB_NR_SLOW];
};
_Static_assert(offsetof(struct file, kind) == 64 && sizeof(struct file) <= 4096,
	       "holds.sh knows the layout");

static const char names[RB_NR_SLOW][NAME_BYTES] = {
	[RB_SLOW_QP_CREATE] = "qp-create",
	[RB_SLOW_QP_MODIFY] = "qp-modify",
	[RB_SLOW_QP_DESTROY] = "qp-destroy",
	[RB_SLOW_QUERY] = "query",
	[RB_SLOW_REGISTER] = "register",
	[RB_SLOW_DEREGISTER] = "deregister",
	[RB_SLOW_CM] = "cm",
	[RB_SLOW_CM_DESTROY] = "cm-destroy",
	[RB_SLOW_MAP] = "map",
	[RB_SLOW_UNMAP] = "unmap",
	[RB_SLOW_GROW] = "grow",
	[RB_SLOW_GATHER] = "gather",
	[RB_SLOW_COPY] = "copy",
	[RB_SLOW_SCRUB] = "scrub",
	[RB_SLOW_THREAD] = "thread",
	[RB_SLOW_HOOK] = "hook",
	[RB_SLOW_SCOPE] = "scope",
	[RB_SLOW_TRACE] = "trace",
	[RB_SLOW_WAIT] = "wait",
	[RB_SLOW_RANKS] = "ranks",
};

static _Atomic uint64_t own[RB_NR_SLOW]; /* counts of this process */
static struct file *shared; /* const after main began; NULL: no file */
static int stop_at = -1; /* the same; a kind that ends the process */

/* The hold of the calling thread. */
static _Thread_local struct {
	unsigned depth; /* locks that it holds */
	uint32_t kinds; /* bits of the kinds so far */
	unsigned ranks; /* workers that loops looked at */
	int64_t begun, work_begun;
} hold;

_Static_assert(RB_NR_SLOW <= 32, "a bit for each kind");

static struct file *map_file(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	void *map = MAP_FAILED;

	if (fd >= 0 && !fstat(fd, &st) && (size_t)st.st_size >= sizeof(struct file))
		map = mmap(NULL, sizeof(struct file), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd >= 0)
		close(fd);
	return map == MAP_FAILED ? NULL : map;
}

static __attribute__((constructor)) void open_file(void)
{
	const char *path = getenv("RREF_TEST_HOLDS"), *stop = getenv("RREF_TEST_HOLDS_STOP");

	for (int k = 0; stop && k < RB_NR_SLOW; k++)
		if (!strcmp(stop, names[k]))
			stop_at = k;
	shared = path ? map_file(path) : NULL;
	for (int k = 0; shared && k < RB_NR_SLOW; k++)
		memcpy(shared->kind[k].name, names[k], NAME_BYTES);
}

void rb_slow_alone(void)
{
	shared = NULL;
}

uint64_t rb_slow_holds(enum rb_slow_kind kind)
{
	return at_load(&own[kind]);
}

void rb_slow(enum rb_slow_kind kind)
{
	if (!hold.depth)
		return;
	hold.kinds |= 1u << kind;
	if ((int)kind == stop_at)
		abort();
}

void rb_slow_rank(unsigned max)
{
	if (++hold.ranks > max)
		rb_slow(RB_SLOW_RANKS);
}

static int64_t work_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

void rb_hold_begin(void)
{
	if (hold.depth++)
		return;
	hold.kinds = 0;
	hold.ranks = 0;
	hold.begun = shared ? now_ns() : 0;
	hold.work_begun = shared ? work_ns() : 0;
}

/* Notes a hold. Two programs at once may mix their names: a person reads them. */
static void note_length(struct longest *l, uint64_t ns)
{
	uint64_t longest = at_load(&l->ns), name[array_size(l->program)] = { 0 };

	while (ns > longest && !at_cas_weak_ar(&l->ns, &longest, ns))
		;
	if (ns <= longest)
		return;
	snprintf((char *)name, sizeof(name), "%.15s", program_invocation_short_name);
	for (size_t i = 0; i < array_size(name); i++)
		at_store(&l->program[i], name[i]);
}

void rb_hold_end(void)
{
	if (--hold.depth)
		return;
	for (uint32_t left = hold.kinds; left; left &= left - 1) {
		int kind = __builtin_ctz(left);

		at_add(&own[kind], 1);
		if (shared)
			at_add(&shared->kind[kind].nr, 1);
	}
	if (!shared)
		return;
	at_add(&shared->nr, 1);
	if (hold.kinds)
		at_add(&shared->nr_slow, 1);
	if (hold.begun) {
		note_length(&shared->work, (uint64_t)(work_ns() - hold.work_begun));
		note_length(&shared->time, (uint64_t)(now_ns() - hold.begun));
	}
}

#endif
