/* SPDX-License-Identifier: Apache-2.0 */
/* Threads of the library, and the program's threads while they are in it. */
#ifndef RREF_BASE_THREAD_H
#define RREF_BASE_THREAD_H

#include <pthread.h>
#include <stddef.h>

/*
 * Starts a thread; out NULL: detached. The thread blocks the program's signals from its first
 * instruction on, except signals of its own faults. Its function begins with rb_thread_begin.
 * Returns 0 or an errno, as pthread_create does.
 */
int rb_thread_start(pthread_t *out, void *(*run)(void *arg), void *arg);

/* Names the calling thread (up to 15 bytes), and makes it deaf to pthread_cancel. */
void rb_thread_begin(const char *name);

/* Writes why a thread could not be started, with the limit that may be behind it. */
void rb_thread_why(int err, char *buf, size_t size);

/*
 * RB_NO_CANCEL: from here to the end of the block pthread_cancel has no effect on the calling
 * thread. The thread may hold locks, and others may know it. Cancellation takes effect at the first
 * cancellation point after the library. No system call.
 */
static inline int rb_cancel_off(void)
{
	int old;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
	return old;
}

static inline void rb_cancel_back(const int *old)
{
	if (*old == PTHREAD_CANCEL_ENABLE)
		pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
}

#define RB_NO_CANCEL \
	__attribute__((cleanup(rb_cancel_back), unused)) const int rb_cancel_was_ = rb_cancel_off()

#endif
