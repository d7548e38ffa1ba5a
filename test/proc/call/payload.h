/* SPDX-License-Identifier: Apache-2.0 */
/* Calls with payloads, for payload_test and payload_ends_test. */
#ifndef PAYLOAD_H
#define PAYLOAD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/wire/wire.h"
#include "tg_death.h"

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

/* Returns the size of a test's largest payload: the maximum only if copying it is quick. */
static inline size_t largest(void)
{
	return tg_is_shm() && !SANITIZED ? (size_t)RREF_ARGS_MAX : 4 * MIB;
}

static inline struct rref_args bytes(const void *data, size_t length)
{
	return (struct rref_args){ .data = data, .length = length };
}

static inline void add(struct rref_ctx *ctx, const char *name, rref_handler handler, unsigned flags)
{
	struct rref_function f = { .name = name, .handler = handler, .flags = flags };

	TG_OK(rref_register(ctx, &f));
}

static inline unsigned char *filled(size_t length, unsigned seed)
{
	unsigned char *p = malloc(length ? length : 1);

	TG_CHECK(p);
	tg_fill(p, length, seed);
	return p;
}

static inline void expect_result(struct rref_future *f, const void *want, size_t length)
{
	const void *data;
	size_t n;

	TG_OK(rref_future_data(f, &data, &n));
	TG_IS(n, length);
	TG_CHECK(!n || memcmp(data, want, n) == 0);
}

static inline bool nothing_offered(struct rref_ctx *ctx, void *arg)
{
	struct rref_stats s = tg_stats(ctx);

	(void)arg;
	return !s.payload_bytes && !s.value_bytes && !s.quarantined && !s.landing_bytes;
}

/* No payload, value or landing buffer is left here, nor at the other worker. */
static inline void until_nothing_is_left(struct rref_ctx *ctx, int other)
{
	int64_t end = tg_deadline();

	TG_CHECK(tg_eventually(nothing_offered, ctx, NULL));
	for (;;) {
		struct rref_stats s = tg_stats_of(ctx, other);

		if (!s.payload_bytes && !s.value_bytes && !s.quarantined && !s.landing_bytes)
			return;
		TG_CHECK(now_ns() < end);
		tg_pause();
	}
}

#endif
