/* SPDX-License-Identifier: Apache-2.0 */
/* Queue pairs by hand, without librref, for tests of the fake devices' own rules. */
#ifndef FR_H
#define FR_H

#include <infiniband/verbs.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/util.h"
#include "fv.h"

#define FR_BYTES 8192u

/* An end of a connection: a device's objects, and a buffer that is registered at `iova`. */
struct fr_end {
	unsigned device;
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	struct ibv_srq *srq; /* NULL without */
	struct ibv_qp *qp;
	struct ibv_mr *mr;
	uint64_t iova;
	uint8_t *mem; /* FR_BYTES */
};

/* Times of a queue pair, as their codes. */
struct fr_times {
	uint8_t timeout, retry, rnr_retry;
};

struct fr_pair {
	struct fr_end a, b;
};

void fr_open(struct fr_end *e, unsigned device, bool srq);
void fr_close(struct fr_end *e);
/* Makes two ends over fake0 and fake1, and connects them. Both may be read. */
void fr_pair_up(struct fr_pair *p, bool srq, struct fr_times times);
void fr_pair_down(struct fr_pair *p);
/* Takes a queue pair to RTS. dest: the number of its peer. */
void fr_connect(struct fr_end *e, uint32_t dest, unsigned access, struct fr_times times);

/* Post one request and return the result of ibv_post_send. A READ brings `length` bytes at `offset`
 * of the peer's buffer to the same place here. A SEND takes the buffer's first bytes. */
int fr_read(struct fr_end *e, const struct fr_end *from, uint64_t wr_id, size_t offset,
	    uint32_t length);
int fr_send(struct fr_end *e, uint64_t wr_id, uint32_t length, unsigned flags);
/* Posts a buffer of `length` bytes at `offset`. */
void fr_buffer(struct fr_end *e, uint64_t wr_id, size_t offset, uint32_t length);
/* Polls until there is a completion; fails the test after some seconds. */
struct ibv_wc fr_next(struct fr_end *e);
/* Expects this completion to be the next. */
void fr_expect(struct fr_end *e, uint64_t wr_id, enum ibv_wc_status status);
void fr_expect_none(struct fr_end *e);
enum ibv_qp_state fr_state(struct fr_end *e);
/* Takes the next asynchronous event, which must be of that type. */
void fr_expect_event(struct fr_end *e, enum ibv_event_type type);
bool fr_is_readable(int fd, int ms);

#endif
