/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The demo: a user's program. One launcher process starts real workers: rank 0 is the owner, ranks
 * 1.. are users u1, u2 ... The owner publishes a file as references. u1 gets them by calls and
 * hands them to u2, u2 to u3. Each user reads everything.
 *
 *   main.c      options, and the file
 *   launcher.c  the steps, and the conditions after each
 *   team.c      the worker processes: start, command, stop, continue, end
 *   show.c      the display
 *   worker.c    a worker's life: join, obey, leave
 *   owner.c     publishing
 *   user.c      getting and handing on references
 *   passes.c    the ways of reading
 *
 * All of them use this header. Launcher and workers talk over socket pairs, in these fixed-size
 * messages. So the library under demonstration does not carry its own verdict.
 */
#ifndef DEMO_H
#define DEMO_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include <rref.h>

#define DEMO_USERS_MAX 16
#define DEMO_CHUNK_BYTES (UINT64_C(1) << 20)
#define DEMO_FILE_MAX (UINT64_C(1) << 30)
#define DEMO_SMALL_BYTES 8u
#define DEMO_SHA_BYTES 32u
#define DEMO_TEXT_SIZE 640
#define DEMO_SEC INT64_C(1000000000)
#define DEMO_MSEC INT64_C(1000000)

/* Const once the workers are forked. */
struct demo_job {
	const char *path;
	int file;                      /* descriptor; the workers inherit it */
	uint64_t file_bytes;
	unsigned char sha[DEMO_SHA_BYTES];
	const char *device;
	int users;
	char rendezvous[32];
	int64_t patience;              /* ns for one operation, by the file's size */
};

/* References are numbered: first the chunks, then the whole file, then the small value. */
static inline uint32_t demo_nr_chunks(uint64_t file_bytes)
{
	return (uint32_t)((file_bytes + DEMO_CHUNK_BYTES - 1) / DEMO_CHUNK_BYTES);
}
static inline uint32_t demo_nr_refs(uint64_t file_bytes)
{
	return demo_nr_chunks(file_bytes) + 2;
}
static inline uint64_t demo_ref_bytes(uint64_t file_bytes, uint32_t i)
{
	uint32_t n = demo_nr_chunks(file_bytes);

	if (i == n)
		return file_bytes;
	if (i == n + 1)
		return DEMO_SMALL_BYTES;
	return i + 1 < n ? DEMO_CHUNK_BYTES : file_bytes - i * DEMO_CHUNK_BYTES;
}

/* The bytes that travel with references in a call: their numbers, and the total. */
struct demo_listing {
	uint64_t file_bytes;
	uint32_t from;
	uint32_t reserved;
};

enum demo_op {
	DEMO_JOIN,      /* not commanded: the first report of every worker */
	DEMO_PUBLISH,   /* owner */
	DEMO_GET,       /* u1 */
	DEMO_SHARE,     /* a user, with the next one */
	DEMO_READ,      /* users: everything, in one of the ways below */
	DEMO_SMALL,     /* users: the small value, many times */
	DEMO_STATS,
	DEMO_RELEASE,   /* all references; on the owner after all users */
	DEMO_LEAVE,     /* graceful shutdown; the worker then exits */
};

enum demo_way { DEMO_SYNC, DEMO_ASYNC, DEMO_BATCH, DEMO_WHOLE, DEMO_NR_WAYS };

struct demo_command {
	enum demo_op op;
	enum demo_way way;             /* DEMO_READ */
};

struct demo_report {
	enum { DEMO_PROGRESS, DEMO_NOTE, DEMO_DONE, DEMO_FAILED } kind;
	uint64_t bytes;                /* read or published so far */
	uint64_t nr_refs, nr_calls, nr_reads;
	int64_t read_ns;               /* spent in the library's reads alone */
	int64_t p50_ns, p99_ns;
	int64_t cpu_ns;                /* DEMO_STATS: of this process since its start */
	unsigned char sha[DEMO_SHA_BYTES]; /* DEMO_READ: digest of the read bytes */
	unsigned char small[DEMO_SMALL_BYTES];
	/* DEMO_JOIN: how this worker reaches the owner (the owner: u1) */
	char device[16];
	struct rref_stats stats;
	char text[DEMO_TEXT_SIZE];     /* DEMO_FAILED, DEMO_NOTE */
};

static inline int64_t demo_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * DEMO_SEC + ts.tv_nsec;
}

/* Returns "owner", "u1" ...: also the workers' names in the group. */
const char *demo_name(int rank);

/* Runs the whole demo, and returns the exit status. */
int demo_launch(struct demo_job *job);

#endif
