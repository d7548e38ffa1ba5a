/* SPDX-License-Identifier: Apache-2.0 */
/* Many values of rank 0 are read by rank 1, which uses each as soon as it is there. */
#include <rref.h>
#include <stdio.h>
#define NR 1000 /* a call takes up to RREF_REFS_MAX references */

static int read_as_they_come(struct rref_call *call, void *arg)
{
	struct rref_queue *q = NULL;
	struct rref_future *f;
	struct rref_view *v;
	int i, sum = 0, err = rref_queue_new(rref_call_context(call), &q);

	(void)arg;
	for (i = 0; err == 0 && i < NR; i++)
		if (!(err = rref_to_here_async(rref_call_ref(call, (size_t)i), RREF_DEFAULT, &f)))
			err = rref_queue_add(q, f, NULL); /* a tag would come out with it */
	for (v = NULL; rref_queue_next(q, RREF_FOREVER, &f, NULL) == 0; v = NULL) {
		err = err ? err : rref_future_view(f, &v); /* also a failed read's error */
		sum += v ? *(const int *)rref_view_data(v) : 0;
		rref_view_free(v);
		rref_future_free(f);
	} /* the queue is empty */
	rref_queue_free(q);
	if (err == 0)
		printf("rank 1 added %d values as they came: %d\n", i, sum);
	return err;
}

static int hand_out(struct rref_ctx *ctx)
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
	struct rref_function function = { "add", read_as_they_come, NULL, 0 };
	struct rref_options opt;
	struct rref_ctx *ctx = NULL;

	rref_options_init(&opt);
	opt.functions = &function, opt.nr_functions = 1;
	int failed = rref_options_from_env(&opt) || rref_init(&opt, &ctx) ||
		     (rref_rank(ctx) == 0 && hand_out(ctx)) ||
		     rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT);
	if (failed)
		fprintf(stderr, "%s\n", rref_last_error());
	rref_free_ctx(ctx);
	return failed;
}
