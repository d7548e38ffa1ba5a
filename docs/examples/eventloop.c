/* SPDX-License-Identifier: Apache-2.0 */
/* The program's own event loop waits for an answer. The library has no thread for that. */
#include <rref.h>
#include <poll.h>
#include <stdio.h>

static int echo(struct rref_call *call, void *arg)
{
	struct rref_args args = { rref_call_data(call), rref_call_length(call), NULL, 0, NULL, 0 };

	(void)arg;
	return rref_call_reply(call, &args);
}

static int loop(struct rref_ctx *ctx)
{
	struct rref_args args = { "round trip", 10, NULL, 0, NULL, 0 };
	struct pollfd fd = { rref_ctx_fd(ctx), POLLIN, 0 }; /* a program has others beside it */
	struct rref_future *answer;
	const void *data;
	size_t length;
	int err = rref_rpc_async(ctx, 0, "echo", &args, RREF_DEFAULT, &answer);

	if (err)
		return err;
	while (err >= 0 && !rref_future_test(answer)) {
		err = rref_ctx_arm(ctx);
		if (err == 0) /* 1: something came meanwhile, so do not sleep */
			poll(&fd, 1, -1); /* no time-out: the call has one */
		if (err >= 0)
			err = rref_progress(ctx);
	}
	if (err >= 0)
		err = rref_future_data(answer, &data, &length); /* also a failed call's error */
	if (err == 0)
		printf("rank %d: %.*s\n", rref_rank(ctx), (int)length, (const char *)data);
	rref_future_free(answer);
	return err;
}

int main(void)
{
	struct rref_function function = { "echo", echo, NULL, 0 };
	struct rref_options opt;
	struct rref_ctx *ctx = NULL;
	int failed;

	rref_options_init(&opt);
	opt.functions = &function;
	opt.nr_functions = 1;
	opt.mode = RREF_PROGRESS_MANUAL; /* the loop works in each mode */
	failed = rref_options_from_env(&opt) || rref_init(&opt, &ctx) ||
		 (rref_rank(ctx) > 0 && loop(ctx)) ||
		 rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT);
	if (failed)
		fprintf(stderr, "%s\n", rref_last_error());
	rref_free_ctx(ctx);
	return failed;
}
