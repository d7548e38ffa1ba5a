/* SPDX-License-Identifier: Apache-2.0 */
/* A value of rank 0 is shared with every other rank, which reads it. */
#include <rref.h>
#include <stdio.h>
#include <string.h>

/* Reads the value of the call's reference, on ranks 1 and up. */
static int show(struct rref_call *call, void *arg)
{
	struct rref_view *view;
	/* The read fails without a reference in the call, and its text says why. */
	int err = rref_to_here(rref_call_ref(call, 0), RREF_DEFAULT, &view);

	(void)arg;
	if (err)
		return err; /* rank 0 gets it, with its text */
	printf("rank %d read: %.*s\n", rref_rank(rref_call_context(call)),
	       (int)rref_view_length(view), (const char *)rref_view_data(view));
	rref_view_free(view);
	return 0; /* an empty answer; the call's reference ends with the call */
}

static int share(struct rref_ctx *ctx)
{
	const char text[] = "one value, many readers";
	struct rref *ref;
	struct rref_args args = { NULL, 0, &ref, 1, NULL, 0 }; /* no bytes, one reference */
	int rank, err = rref_new(ctx, text, strlen(text), &ref);

	if (err)
		return err;
	/* A call takes the reference along. The value moves only when it is read. */
	for (rank = 1; !err && rank < rref_world_size(ctx); rank++)
		err = rref_rpc_sync(ctx, rank, "show", &args, RREF_DEFAULT, NULL);
	rref_release(ref); /* the value is reclaimed when no rank holds a reference */
	return err;
}

int main(void)
{
	struct rref_function function = { "show", show, NULL, 0 };
	struct rref_options opt;
	struct rref_ctx *ctx = NULL;
	int failed;

	rref_options_init(&opt);
	opt.functions = &function;
	opt.nr_functions = 1;
	failed = rref_options_from_env(&opt) || rref_init(&opt, &ctx) ||
		 (rref_rank(ctx) == 0 && share(ctx)) ||
		 rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT);
	if (failed)
		fprintf(stderr, "%s\n", rref_last_error());
	rref_free_ctx(ctx);
	return failed;
}
