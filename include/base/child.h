/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Children made by fork(2). A child gets a copy of every descriptor and every shared mapping. It
 * would keep alive the things that peers watch: a socket, a queue pair. Therefore the library notes
 * all that it opens, and a fork handler takes it away.
 *
 * A child that no fork handler saw (clone(2), _Fork) keeps its copies. The kernel clears a certain
 * word in each child, which gives it away: such a child is refused everywhere (rb_is_stray). Peers
 * over shm also watch the process itself.
 */
#ifndef RREF_BASE_CHILD_H
#define RREF_BASE_CHILD_H

#include <pthread.h>
#include <stddef.h>

#include "base/atomic.h"
#include "base/util.h"

#define RB_WIPED_BYTES 4096

/* A page that the kernel clears in a child, if it can (Linux 4.14, pages of this size). */
struct rb_wiped {
	_Alignas(RB_WIPED_BYTES) _Atomic uint32_t generation;
	char rest[RB_WIPED_BYTES - sizeof(uint32_t)];
};
extern struct rb_wiped rb_wiped;

#define RB_FIRST_GENERATION 1u

/*
 * Returns this process' number in a line of forks. The first process has RB_FIRST_GENERATION. 0:
 * not begun, or a stray child.
 */
static inline uint32_t rb_generation(void)
{
	return at_load(&rb_wiped.generation);
}

/* [any] Installs the fork handler, once. 0 or -errno. */
int rb_child_begin(void);

/* Returns true in a child that no fork handler saw. */
bool rb_is_stray(void);

/*
 * Keeps other threads from forking until rb_release. Sections nest. A descriptor is opened and
 * noted in one section, else a child of that moment would keep it. errno stays as it is.
 */
void rb_hold(void);
void rb_release(void);

/*
 * The same for calls that may take long, as those that wait for a device. Only fork(2) waits for
 * their end. errno stays as it is.
 */
void rb_no_fork_begin(void);
void rb_no_fork_end(void);

/* [held] Notes a descriptor, which may be -1, and returns it. */
int rb_note(int fd);
/* [held] Forgets it, just before something else closes it. */
void rb_forget(int fd);
/* [any] Forgets and closes it. -1 is accepted. errno stays as it is. */
void rb_close(int fd);

/* Opens a descriptor that children lose. */
#define RB_OPEN(expression) ({ rb_hold(); int rb_fd_ = rb_note(expression); rb_release(); rb_fd_; })

/*
 * [any] A mapping that children do not get at all: its addresses are a fault there.
 */
void rb_not_in_child(void *base, size_t length);

/* Addresses that a child cannot reach, nor use again. Zeroed, or added. */
struct rb_range {
	struct list node;
	char *base;
	size_t length;
};

void rb_range_add(struct rb_range *r, void *base, size_t length);
void rb_range_remove(struct rb_range *r); /* r need not have been added */

/* [any, lock-free] Returns whether this address is within a range of the parent's. */
bool rb_is_parents(const void *p);

#endif
