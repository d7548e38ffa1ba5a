/* SPDX-License-Identifier: Apache-2.0 */
/* The two sides of the asymmetric barrier that are not inline; see ra_asym.h. */
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "alloc/ra_asym.h"
#include "base/util.h"

_Atomic uint32_t ra_asym_who;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Registers a child for the barrier, as its parent is. If a
 * kernel refuses, the child's marking side makes the barrier. */
static void barrier_in_child(void)
{
	if (at_load(&ra_asym_who) == RA_ASYM_LOOKS &&
	    syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0))
		at_store(&ra_asym_who, RA_ASYM_MARKS);
}

static void begin_barrier(void)
{
	if (!pthread_atfork(NULL, NULL, barrier_in_child) &&
	    !syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0))
		at_store(&ra_asym_who, RA_ASYM_LOOKS);
}

void ra_asym_begin(void)
{
	pthread_once(&once, begin_barrier);
}

#define MAX_PROCESSORS 8192u /* the kernel's own limit */
struct processors {
	uint64_t word[MAX_PROCESSORS / 64];
};

/*
 * Runs this thread on each processor of the machine for a moment. So the thread that ran there had
 * to stop. This thread's own mask is not enough: the poller can be bound to one processor.
 */
static void turn_on_each_processor(void)
{
	struct processors before;
	long nr = sysconf(_SC_NPROCESSORS_CONF);
	bool known = !sched_getaffinity(0, sizeof(before), (cpu_set_t *)&before);

	for (unsigned c = 0; known && c < MAX_PROCESSORS && (long)c < nr; c++) {
		struct processors one = { 0 };

		one.word[c / 64] = UINT64_C(1) << c % 64;
		/* A processor that is offline, or that no thread of
		 * this program gets, is refused. */
		if (!sched_setaffinity(0, sizeof(one), (cpu_set_t *)&one))
			sched_yield();
	}
	if (known)
		sched_setaffinity(0, sizeof(before), (cpu_set_t *)&before);
	/*
	 * Waits if all of that is refused: no processor keeps a store to itself for nearly so long.
	 */
	nanosleep(&(struct timespec){ .tv_nsec = NSEC_PER_MSEC }, NULL);
}

/*
 * Makes the barrier for both sides.
 *
 * A program that shuts itself in (seccomp) after the first mark may refuse the call. From then on
 * the marking side makes the barrier. For marks that began before (at an unknown time) this thread
 * runs on each processor, at each barrier.
 */
bool ra_asym_barrier(void)
{
	uint32_t who = at_load(&ra_asym_who);

	if (who == RA_ASYM_MARKS)
		return false;
	if (who == RA_ASYM_LOOKS &&
	    !syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0))
		return true;
	at_store_sc(&ra_asym_who, RA_ASYM_MARKS_NOW);
	turn_on_each_processor();
	return false;
}
