#include <rref.h>
#include <stdio.h>

/* Runs on rank 0, called by rank 1: makes a value and answers with a reference to it. */
static int get(struct rref_call *call, void *arg)
{
	struct rref *greeting;
	struct rref_args answer = { NULL, 0, &greeting, 1, NULL, 0 }; /* no bytes, one reference */
	int err = rref_new(rref_call_context(call), "hello from rank 0", 18, &greeting);

	(void)arg;
	if (err)
		return err; /* rank 1 gets it, with its text */
	err = rref_call_reply(call, &answer);
	rref_release(greeting); /* the value lives on by rank 1's reference */
	return err;
}

static int read_greeting(struct rref_ctx *ctx)
{
	struct rref_future *result = NULL;
	struct rref_view *view = NULL;
	struct rref *ref = NULL;
	int err = rref_rpc_sync(ctx, 0, "get", NULL, RREF_DEFAULT, &result);

	if (!err)
		err = rref_future_ref(result, 0, &ref);
	if (!err)
		err = rref_to_here(ref, RREF_DEFAULT, &view); /* one READ; rank 0 does nothing */
	if (!err)
		printf("rank 1 read: %s\n", (const char *)rref_view_data(view));
	rref_view_free(view);
	rref_release(ref);
	rref_future_free(result);
	return err;
}

int main(void)
{
	struct rref_function function = { "get", get, NULL, 0 };
	struct rref_options opt;
	struct rref_ctx *ctx = NULL;
	int err;

	rref_options_init(&opt);
	opt.functions = &function;
	opt.nr_functions = 1;
	err = rref_options_from_env(&opt); /* RREF_RANK and others */
	if (!err)
		err = rref_init(&opt, &ctx); /* waits until all ranks are here */
	if (!err && rref_rank(ctx) == 1)
		err = read_greeting(ctx);
	if (!err)
		err = rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT); /* waits too */
	if (err)
		fprintf(stderr, "%s\n", rref_last_error());
	rref_free_ctx(ctx);
	return err != 0;
}
