/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rref-perf: how fast the library is, beside the raw operation of the same device in the same
 * process and minute.
 *
 *   main.c      options, the sweep          group.c    the workers: forked here, or by RREF_RANK
 *   measure.c   interleaving, percentiles   out.c      table, JSON lines, plot
 *   reads.c     lat, bw, ..., async, view   control.c  call, share, create
 *   memory.c    alloc, live                 idle.c     idle
 *   threads.c   threads                     tails.c    p99 and p99.9 beside a noise
 *   busy.c      call+bulk, read+bulk, ...   visitors.c workers that come and go
 *   owner.c     the measured worker's requests to the others
 *   raw.c       memcpy from a mapped segment, and cache-line ping-pong;
 *               verbs/raw: READs on a queue pair of its own
 */
#ifndef PF_H
#define PF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rref.h"

#define PF_SIZES_MAX 32
#define PF_THREADS_MAX 8

struct pf_config {
	const char *device; /* as RREF_DEVICE */
	size_t sizes[PF_SIZES_MAX]; /* bytes */
	unsigned nr_sizes; /* 0 = each operation's own */
	/* rounds of library and raw in turn; figures are medians over rounds */
	unsigned rounds;
	double seconds; /* time per operation and size, both sides */
	unsigned window; /* operations in flight, bw and rate */
	unsigned batch; /* references in a batch */
	int mode; /* enum rref_progress_mode, -1 = each operation's own */
	size_t freed; /* bytes of the values that read+busy frees */
	bool headed; /* raw READs bring a header too */
	bool same; /* all threads read one value */
	/* launched: one worker of several hosts, by the environment */
	bool json, launched;
	const char *plot; /* file of an SVG, or NULL */
};

/* A ratio: the median of the rounds, the smallest and the largest. Negative: left out. */
struct pf_ratio {
	double median, low, high;
};

/* A line of the result. Times are in ns per operation; a time that
 * does not apply is negative and left out. */
struct pf_row {
	const char *op;
	char device[64];
	size_t bytes;
	uint64_t iters; /* library operations measured */
	/* group: operations per time stamp; a sample is their mean */
	unsigned rounds, group;
	double p50, p99, p999;
	const char *raw; /* the kind of the other side */
	double raw_p50, raw_p99, raw_p999;
	struct pf_ratio ratio; /* p50 / raw p50 */
	struct pf_ratio of_p99, of_p999; /* the same of p99 and p99.9, by operations beside noise */
	double cpu; /* processor time of this process per library operation */
	double bandwidth, raw_bandwidth; /* bytes per second */
	double rate, raw_rate; /* operations per second */
	double reads, doorbells; /* numbers of the library, per operation */
	/* Figures of single operations; negative elsewhere. */
	double registrations; /* alloc: regions registered while it was measured */
	double bytes_each; /* live: bookkeeping of one reference */
	double live; /* live: how many there were */
	double cpu_share; /* idle: share of one core */
	double frees, calls, sessions; /* read+busy: the noise that there was */
	unsigned window; /* operations in flight; 0 = does not apply */
	const char *way; /* threads: the call by which they read */
	unsigned threads;
	/* threads: the rate / that of one thread, of two; the raw rate / that of one */
	struct pf_ratio of_one, of_two, raw_of_one;
};

/* A side does n operations back to back. Returns 0 or -errno; the error's text was told already. */
struct pf_side {
	int (*run)(void *arg, unsigned n);
	void *arg;
	unsigned per_run; /* operations that count as one; 0 = 1 */
};

/* Fills the times of row. raw NULL: the library alone. ctx: gives
 * the counts of reads and doorbells. */
int pf_measure(const struct pf_config *cfg, struct rref_ctx *ctx, struct pf_side *lib,
	       struct pf_side *raw, struct pf_row *row);

/* Returns the median, the smallest and the largest of some ratios, which it sorts. */
struct pf_ratio pf_ratio(double *ratios, unsigned nr);
int64_t pf_cpu_ns(void); /* processor time of this process */

/* Something else that a worker has to do meanwhile. Both return 0 or -errno, told already. */
struct pf_noise {
	int (*begin)(void *arg); /* returns when it has begun */
	int (*end)(void *arg); /* returns when it is over */
	void *arg;
};

/* Fills the times of row by single operations beside the noise, and without it as the raw side. */
int pf_tails(const struct pf_config *cfg, const struct pf_side *side, const struct pf_noise *noise,
	     struct pf_row *row);

void pf_row_init(struct pf_row *row, const char *op, const char *device, size_t bytes);
int pf_out_begin(const struct pf_config *cfg); /* tells the reason of a failure */
void pf_out(const struct pf_config *cfg, const struct pf_row *row);
int pf_out_end(const struct pf_config *cfg); /* draws the plot */

/* An operation: its worker `world - 1` measures, and the others serve. */
struct pf_op {
	const char *name, *what;
	int world;
	int mode; /* the operation's progress mode */
	const size_t *sizes; /* the operation's sizes, 0 ends */
	int (*run)(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
	int visitors; /* workers of ranks 1 and up that visit, see visitors.c */
	bool looks; /* large values are looked at where they lie, as by default; else copied */
};
extern const struct pf_op pf_ops[];
int pf_lat(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
/* bw and rate */
int pf_flow(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_batch(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_async(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_view(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_threads(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_call_bulk(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_read_bulk(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_read_busy(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_call(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_share(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_create(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_alloc(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_burst(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_live(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);
int pf_idle(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op);

/* Runs one operation over its workers; the measuring one prints.
 * Returns 0, or 1 after telling an error. */
int pf_group(const struct pf_config *cfg, const struct pf_op *op);
int pf_mode(const struct pf_config *cfg, const struct pf_op *op);
/* Joins as worker `rank`. */
int pf_join(const struct pf_op *op, const struct rref_options *from, int rank, int mode,
	    struct rref_ctx **ctx);
size_t pf_size(const struct pf_config *cfg, const struct pf_op *op, unsigned i); /* 0 = no more */

/* The functions of the serving workers. */
extern const struct rref_function pf_functions[];
extern const size_t pf_nr_functions;
bool pf_stopped(unsigned workers); /* so many of this process were told to stop */
void pf_sleep_until_stopped(unsigned workers);
/* Reports an error with its subject, and returns it. */
int pf_say(int err, const char *what);
/* Makes a call that must succeed, and copies the result's bytes to `to` (exactly `want` bytes). */
int pf_ask(struct rref_ctx *ctx, int rank, const char *name, const void *data, size_t length,
	   void *to, size_t want);
/* Makes a value of that many bytes at worker 0. */
int pf_value(struct rref_ctx *ctx, size_t bytes, struct rref **out);
/* Returns the device by which worker `rank` is reached, "shm" or "ibv". */
const char *pf_reached_by(struct rref_ctx *ctx, int rank);

/* ---- reads ---- */

/* A value of worker 0, read by one thread at a time, and the same bytes without the library. */
struct pf_reader {
	struct rref_ctx *ctx;
	struct rref *ref;
	unsigned window;
	struct rref_future **f; /* a window of futures */
	struct pf_raw *raw;
};
/* slot: of the raw side, see pf_raw_open */
int pf_reader_open(const struct pf_config *cfg, struct rref_ctx *ctx, size_t bytes, unsigned slot,
		   struct pf_reader *r);
void pf_reader_close(struct pf_reader *r);
int pf_reads(struct rref *ref, unsigned n); /* each after the last */
int pf_in_flight(struct pf_reader *r, unsigned n); /* a window of them in flight */
int pf_take(struct rref_future *f); /* waits, and frees all of it */

/* ---- visitors ---- */

int pf_visits_prepare(const struct pf_op *op); /* runs before the workers are forked */
/* The visitors' process: ranks `rank` and up. */
int pf_visitors(const struct pf_config *cfg, const struct pf_op *op, const struct rref_options *o,
		int rank);
/* The measuring worker: visits are wanted from now on, or no more; one has come since; all. */
void pf_visits(bool wanted);
bool pf_visited(void);
unsigned pf_visit_count(void);
void pf_visits_over(void);

/* Serve read+busy: count a call; call worker {rank} until the last comes. */
int pf_serve_count(struct rref_call *call, void *arg);
int pf_serve_calls(struct rref_call *call, void *arg);
int pf_serve_quiet(struct rref_call *call, void *arg);

/* ---- raw sides ---- */

/* A way to read from worker 0 without the library, for one thread. Over ibv worker 0 has a far end
 * for each slot below PF_THREADS_MAX. Opening a slot again ends the one before. */
struct pf_raw;
int pf_raw_open(const struct pf_config *cfg, struct rref_ctx *ctx, size_t bytes, unsigned slot,
		struct pf_raw **out);
int pf_raw_read(struct pf_raw *raw, unsigned n); /* each after the last */
/* window of them in flight; over shm copies into as many buffers in turn */
int pf_raw_stream(struct pf_raw *raw, unsigned n, unsigned window);
/* -EOPNOTSUPP: not with this device */
int pf_raw_pingpong(struct pf_raw *raw, struct rref_ctx *ctx, unsigned n);
const char *pf_raw_name(const struct pf_raw *raw);
void pf_raw_close(struct pf_raw *raw);

/* Serve the far ends, in worker 0. */
int pf_raw_serve_shm(struct rref_call *call, void *arg);
int pf_raw_serve_ibv(struct rref_call *call, void *arg);
int pf_raw_serve_pingpong(struct rref_call *call, void *arg);

#endif
