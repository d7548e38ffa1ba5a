/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takes from a child of fork(2) what is its parent's; see base/child.h. Its handler calls nothing
 * but close(2) and mmap(2).
 */
#include "base/child.h"
#include "base/thread.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define FDS_MAX (1u << 20) /* the kernel's own limit (fs.nr_open), unless it was raised */

struct rb_wiped rb_wiped;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int begin_error;
/* the generation of the last process that a handler saw; 0 = not begun */
static _Atomic uint32_t last;

/*
 * Guarded by `holding`, as all below. Recursive: a program's own fork handlers may call the
 * library.
 */
static pthread_mutex_t holding = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static unsigned nr_long; /* sections of rb_no_fork_begin */
/* The thread's own sections, of both kinds: a signal handler may fork in the midst of them. */
static _Thread_local unsigned my_holds, my_long;
static pthread_cond_t no_long = PTHREAD_COND_INITIALIZER;
static uint64_t noted[FDS_MAX / 64];
static unsigned nr_words; /* number of entries of `noted` that may hold something */
static struct list kept = { &kept, &kept };
static struct list lost = { &lost, &lost }; /* the parent's; changed by the fork handler alone */


void rb_release(void)
{
	pthread_mutex_unlock(&holding);
	my_holds--;
}

static void close_noted(void)
{
	for (unsigned i = 0; i < nr_words; i++) {
		while (noted[i]) {
			int bit = __builtin_ctzll(noted[i]);

			noted[i] &= noted[i] - 1;
			close((int)(i * 64) + bit);
		}
	}
	nr_words = 0;
}

static void lose_ranges(void)
{
	struct list *l;

	while ((l = list_pop(&kept))) {
		struct rb_range *r = container_of(l, struct rb_range, node);

		/* The place stays taken, so that the parent's views stay recognisable. */
		mmap(r->base, r->length, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
		list_add_tail(&lost, l);
	}
}

static void in_child(void)
{
	at_store(&last, at_load(&last) + 1);
	at_store(&rb_wiped.generation, at_load(&last));
	close_noted();
	lose_ranges();
	/* The unlocking fails, since its owner is a thread id of the parent's; but the thread
	 * sanitizer counts it. */
	pthread_mutex_unlock(&holding);
	my_holds--;
	nr_long = my_long;
	holding = (pthread_mutex_t)PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
	no_long = (pthread_cond_t)PTHREAD_COND_INITIALIZER; /* other threads may wait for it */
}

static void before_fork(void)
{
	RB_NO_CANCEL; /* fork(2) is no cancellation point */

	rb_hold();
	/* A mutex that is held twice is not let go of by a wait. */
	while (nr_long > my_long && my_holds == 1)
		pthread_cond_wait(&no_long, &holding);
}

static void install_handlers(void)
{
	begin_error = -pthread_atfork(before_fork, rb_release, in_child);
	if (begin_error)
		return;
	/* Order: another thread that begins at the same moment is no stray child. Release. Pairs
	 * with the acquire in rb_is_stray. */
	at_store(&rb_wiped.generation, RB_FIRST_GENERATION);
	at_store_rel(&last, RB_FIRST_GENERATION);
	/* An older kernel, or larger pages, let the library notice only a child of fork(2). */
	if (sysconf(_SC_PAGESIZE) == RB_WIPED_BYTES)
		madvise(&rb_wiped, sizeof(rb_wiped), MADV_WIPEONFORK);
}

int rb_child_begin(void)
{
	pthread_once(&once, install_handlers);
	return begin_error;
}

/* Keeps other threads from forking. Without the handlers, a child that another thread forks
 * meanwhile would find the lock taken. */
void rb_hold(void)
{
	rb_child_begin();
	my_holds++; /* first: a handler of a signal that comes in between does not wait */
	pthread_mutex_lock(&holding);
}

void rb_no_fork_begin(void)
{
	rb_hold();
	nr_long++;
	my_long++;
	rb_release();
}

void rb_no_fork_end(void)
{
	int err = errno;

	rb_hold();
	my_long--;
	nr_long--;
	pthread_cond_broadcast(&no_long);
	rb_release();
	errno = err;
}

bool rb_is_stray(void)
{
	return at_load_acq(&last) && !rb_generation();
}

int rb_note(int fd)
{
	if (fd < 0 || (unsigned)fd >= FDS_MAX)
		return fd;
	noted[fd / 64] |= UINT64_C(1) << fd % 64;
	nr_words = max_of(nr_words, (unsigned)fd / 64 + 1);
	return fd;
}

void rb_forget(int fd)
{
	if (fd >= 0 && (unsigned)fd < FDS_MAX)
		noted[fd / 64] &= ~(UINT64_C(1) << fd % 64);
}

void rb_close(int fd)
{
	int err = errno;

	if (fd < 0)
		return;
	rb_hold();
	rb_forget(fd);
	close(fd);
	rb_release();
	errno = err;
}

void rb_not_in_child(void *base, size_t length)
{
	madvise(base, length, MADV_DONTFORK);
}

void rb_range_add(struct rb_range *r, void *base, size_t length)
{
	r->base = base;
	r->length = length;
	rb_hold();
	list_add_tail(&kept, &r->node);
	rb_release();
}

void rb_range_remove(struct rb_range *r)
{
	if (!r->base)
		return;
	rb_hold();
	list_del(&r->node);
	rb_release();
	r->base = NULL;
}

static bool is_in(const struct list *ranges, const void *p)
{
	for (struct list *l = ranges->next; l != ranges; l = l->next) {
		const struct rb_range *r = container_of(l, struct rb_range, node);

		if ((uintptr_t)p - (uintptr_t)r->base < r->length)
			return true;
	}
	return false;
}

bool rb_is_parents(const void *p)
{
	return is_in(&lost, p) || (rb_is_stray() && is_in(&kept, p));
}
