/* SPDX-License-Identifier: Apache-2.0 */
#include "base/limit.h"
#include "base/slow.h"
#include "base/thread.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

int rb_thread_start(pthread_t *out, void *(*run)(void *arg), void *arg)
{
	static const int own[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGSYS, SIGTRAP };
	sigset_t blocked, old;
	pthread_attr_t attr;
	pthread_t thread;
	int err = pthread_attr_init(&attr);

	rb_slow(RB_SLOW_THREAD);
	if (err)
		return err;
	if (!out)
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	sigfillset(&blocked);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		sigdelset(&blocked, own[i]);
	/* A new thread has its maker's mask. */
	pthread_sigmask(SIG_SETMASK, &blocked, &old);
	err = pthread_create(out ? out : &thread, &attr, run, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return err;
}

void rb_thread_begin(const char *name)
{
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	prctl(PR_SET_NAME, name);
}

void rb_thread_why(int err, char *buf, size_t size)
{
	snprintf(buf, size, "%s", limit_why("pthread_create", err, 0));
}
