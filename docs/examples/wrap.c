/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of the program, lent as a value without a copy. It may not change until it is back. */
#include <rref.h>
#include <stdio.h>

static int show(struct rref_call *call, void *arg)
{
	char buf[64];
	size_t n;
	int err = rref_to_here_into(rref_call_ref(call, 0), buf, 0, sizeof(buf), RREF_DEFAULT, &n);

	(void)arg;
	if (!err)
		printf("rank 1 read: %.*s\n", (int)n, buf);
	return err;
}

static void come_back(void *mem) /* runs once, when all readers have finished */
{
	printf("rank 0 has its memory back\n"); /* write, wrap or give up the memory */
	rref_mem_deregister((struct rref_mem *)mem);
}

static int lend(struct rref_ctx *ctx)
{
	struct rref *ref = NULL;
	struct rref_args args = { NULL, 0, &ref, 1, NULL, 0 }; /* no bytes, one reference */
	struct rref_mem *mem;
	void *memory;
	int length, failed;

	if (rref_mem_alloc(ctx, 4096, &mem, &memory)) /* over RDMA: or rref_mem_register */
		return 1;
	length = snprintf((char *)memory, 4096, "a text in memory of rank 0");
	struct rref_value_desc text = { memory, (size_t)length, NULL, 0, NULL, NULL, 0 };
	failed = rref_wrap(mem, &text, come_back, mem, &ref) ||
		 rref_rpc_sync(ctx, 1, "show", &args, RREF_DEFAULT, NULL);
	rref_release(ref); /* NULL: rref_free_ctx gives up the memory */
	return failed;
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
		 (rref_rank(ctx) == 0 && lend(ctx)) ||
		 rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT);
	if (failed)
		fprintf(stderr, "%s\n", rref_last_error());
	rref_free_ctx(ctx);
	return failed;
}
