/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stops threads of the program at random instructions of the library, for as long as the test
 * likes. A signal reaches the thread anywhere. From there it goes on by single steps, by the
 * processor's trap flag. Then it stops at the next instruction where it may be stopped.
 *
 * That is any instruction of the library, except while the thread is in the arena (fz_arena). A
 * driver and an allocator may have locks of their own: neither the fake devices nor jemalloc are
 * stopped in.
 */
#ifndef FZ_H
#define FZ_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A thread that may be stopped. All fields are fz.c's. */
struct fz_thread {
	pthread_t thread;
	_Atomic uint32_t state; /* futex word */
	_Atomic uint32_t told; /* fz_tell: the thread has written where it is */
	unsigned left, tried; /* steps to go, and steps taken */
	uintptr_t at; /* the instruction that comes next */
};

/* Returns whether threads can be stopped so. Otherwise it says why not. */
bool fz_can(void);
/* Prepares the program, once. */
void fz_open(void);
/* Makes the calling thread one that may be stopped. */
void fz_join(struct fz_thread *t);
/* Stops the thread, after that many single steps or some more. Returns false if it was nowhere
 * where it may be stopped. */
bool fz_stop(struct fz_thread *t, unsigned steps);
void fz_go_on(struct fz_thread *t);
/* Writes "symbol+offset" of the instruction at which a thread is stopped. */
void fz_where(const struct fz_thread *t, char *buf, size_t size);
/* Has the thread write its stack to stderr. */
void fz_tell(struct fz_thread *t);
/* Says that the calling thread goes into the arena (1), or comes out (-1). */
void fz_arena(int delta);

/* Counts the places where threads were stopped. */
struct fz_counts {
	unsigned long stops, missed;
	unsigned instructions, functions; /* different ones */
};
struct fz_counts fz_count(void);

#endif
