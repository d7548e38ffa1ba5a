/* SPDX-License-Identifier: Apache-2.0 */
/* Calls with an argument and a result. One call is refused: its caller gets the reason in words. */
#include <rref.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Runs on rank 0: of "name=value" it answers with the value. */
static int value(struct rref_call *call, void *arg)
{
	const char *text = (const char *)rref_call_data(call);
	size_t length = rref_call_length(call), i = 0;

	(void)arg;
	/* Another process sent the text. It may lack the sign, and has no NUL at its end. */
	while (i < length && text[i] != '=')
		i++;
	if (i == length)
		return rref_call_error(call, -ENOENT, "no = in '%.*s'", (int)length, text);
	struct rref_args answer = { text + i + 1, length - i - 1, NULL, 0, NULL, 0 };
	return rref_call_reply(call, &answer);
}

static int ask(struct rref_ctx *ctx, const char *text)
{
	struct rref_args args = { text, strlen(text), NULL, 0, NULL, 0 };
	struct rref_future *result = NULL;
	const void *data;
	size_t length;
	int err = rref_rpc_sync(ctx, 0, "value", &args, RREF_DEFAULT, &result);

	if (!err)
		err = rref_future_data(result, &data, &length);
	if (err)
		printf("%s: refused: %s\n", text, rref_last_error());
	else
		printf("%s: %.*s\n", text, (int)length, (const char *)data);
	rref_future_free(result); /* the data goes with it */
	return err;
}

int main(void)
{
	struct rref_function function = { "value", value, NULL, 0 };
	struct rref_options opt;
	struct rref_ctx *ctx = NULL;
	int failed;

	rref_options_init(&opt);
	opt.functions = &function;
	opt.nr_functions = 1;
	failed = rref_options_from_env(&opt) || rref_init(&opt, &ctx) ||
		 (rref_rank(ctx) == 1 && (ask(ctx, "size=12") || ask(ctx, "size") != -ENOENT)) ||
		 rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT);
	if (failed)
		fprintf(stderr, "%s\n", rref_last_error());
	rref_free_ctx(ctx);
	return failed;
}
