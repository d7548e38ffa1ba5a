/* SPDX-License-Identifier: Apache-2.0 */
/* Many small values of rank 0 are read at once by rank 1. */
#include <rref.h>
#include <stdio.h>
#define NR 1000 /* a call takes up to RREF_REFS_MAX references */

static int add(struct rref_call *call, void *arg)
{
	struct rref *refs[NR];
	struct rref_view *views[NR] = { NULL };
	int status[NR], i, got, sum = 0;

	(void)arg;
	for (i = 0; i < NR; i++)
		refs[i] = rref_call_ref(call, (size_t)i); /* the call's own */
	got = rref_to_here_batch(refs, NR, RREF_DEFAULT, views, status);
	for (i = 0; i < NR; i++) {
		if (got >= 0 && status[i])
			got = status[i]; /* a failed future fails the call */
		sum += views[i] ? *(const int *)rref_view_data(views[i]) : 0;
		rref_view_free(views[i]);
	}
	if (got >= 0)
		printf("rank 1 read %d values, their sum is %d\n", got, sum);
	return got < 0 ? got : 0;
}

static int offer(struct rref_ctx *ctx)
{
	struct rref *refs[NR] = { NULL };
	struct rref_args args = { NULL, 0, refs, NR, NULL, 0 }; /* no bytes, all references */
	int i, failed = 0;

	for (i = 0; !failed && i < NR; i++)
		failed = rref_new(ctx, &i, sizeof(i), &refs[i]);
	failed = failed || rref_rpc_sync(ctx, 1, "add", &args, RREF_DEFAULT, NULL);
	for (i = 0; i < NR; i++)
		rref_release(refs[i]); /* a missing one is NULL, which does nothing */
	return failed;
}

int main(void)
{
	struct rref_function function = { "add", add, NULL, 0 };
	struct rref_options opt;
	struct rref_ctx *ctx = NULL;
	int failed;

	rref_options_init(&opt);
	opt.functions = &function;
	opt.nr_functions = 1;
	failed = rref_options_from_env(&opt) || rref_init(&opt, &ctx) ||
		 (rref_rank(ctx) == 0 && offer(ctx)) ||
		 rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT);
	if (failed)
		fprintf(stderr, "%s\n", rref_last_error());
	rref_free_ctx(ctx);
	return failed;
}
