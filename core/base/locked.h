/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The progress lock, told to the compiler. Clang's -Wthread-safety checks each call and each field
 * (make check-lock); for other compilers the words mean nothing. No instruction comes of them.
 *
 * One word stands for the locks of all contexts. So clang finds a missing lock, but not the lock of
 * another context.
 */
#ifndef RC_BASE_LOCKED_H
#define RC_BASE_LOCKED_H

#if defined(__clang__)
#define RC_TSA(...) __attribute__((__VA_ARGS__))
#else
#define RC_TSA(...)
#endif

struct RC_TSA(capability("lock")) rc_progress {
	char unused;
};
extern struct rc_progress rc_progress; /* declared for the attributes below, and nowhere defined */

/* a function: its caller holds the lock */
#define needs_lock RC_TSA(requires_capability(rc_progress))
/* a field: read and written under it */
#define under_lock RC_TSA(guarded_by(rc_progress))
/* a function: it takes the lock by itself, so its caller must not hold it */
#define without_lock RC_TSA(locks_excluded(rc_progress))
#define takes_lock RC_TSA(acquire_capability(rc_progress))
#define gives_lock RC_TSA(release_capability(rc_progress))
#define tries_lock RC_TSA(try_acquire_capability(1, rc_progress)) /* returns true: it is held */
/* A function's body is not checked, because ... */
#define is_alone RC_TSA(no_thread_safety_analysis)     /* no other thread knows the object */
/* the function is a part of the lock itself */
#define is_the_lock RC_TSA(no_thread_safety_analysis)

#endif
