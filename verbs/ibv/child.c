/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Children of fork(2), and the device. The kernel ends our queue pairs when the last copy of the
 * device's descriptor is gone. Each mapping of that file counts as a copy: doorbells, and with some
 * drivers the queues. Until then the queue pairs answer the peers' beacon READs, as if this process
 * lived. So children get neither the descriptors (base/child.h) nor these mappings.
 *
 * A device's landing memory must not be copied on the parent's next store, else the parent looks at
 * the copy. Kernels from 5.12 on take care of it when they fork. For older ones ibv_fork_init keeps
 * registered memory out of children.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/utsname.h>

#include "ibv.h"

/*
 * Notes all mappings of RDMA devices in this process, the program's too. A child could not
 * use any.
 */
static void keep_maps(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	size_t size = 0;
	char *line = NULL;

	while (f && getline(&line, &size, f) > 0) {
		uintptr_t from, to;
		char *end;

		if (!strstr(line, "/infiniband/uverbs"))
			continue;
		from = strtoul(line, &end, 16);
		to = *end == '-' ? strtoul(end + 1, NULL, 16) : 0;
		if (from < to)
			rb_not_in_child((void *)from, to - from);
	}
	free(line);
	if (f)
		fclose(f);
}

void rvi_keep_begin(void)
{
	rb_no_fork_begin();
}

void rvi_keep_fd(int fd)
{
	rb_hold();
	rb_note(fd);
	rb_release();
}

/* Ends the section. errno stays as it is: the caller looks at it for the call in between. */
void rvi_keep_end(void)
{
	int err = errno;

	keep_maps();
	rb_no_fork_end();
	errno = err;
}

/* Tells whether fork(2) copies pages that a device writes to. The kernel may not say so. */
static bool kernel_copies(void)
{
	unsigned major, minor;
	struct utsname u;

	if (ibv_is_fork_initialized() == IBV_FORK_UNNEEDED)
		return true;
	return !uname(&u) && sscanf(u.release, "%u.%u", &major, &minor) == 2 &&
	       (major > 5 || (major == 5 && minor >= 12));
}

int rvi_child_begin(const struct rv_options *opt)
{
	int err;

	if (rb_child_begin())
		return rv_fail(ENOMEM, "no memory for a fork handler");
	/* The call would take the program's own registered memory out of its children. */
	if (kernel_copies())
		return 0;
	/* The call is in vain if the program has used verbs before. */
	err = ibv_fork_init();
	if (err && ibv_is_fork_initialized() == IBV_FORK_DISABLED && opt->log)
		opt->log(opt->log_ctx, 1,
			 "this kernel needs ibv_fork_init, and it came too late: "
			 "the program used verbs before. Set RDMAV_FORK_SAFE=1, or this process "
			 "may "
			 "see old data after a fork(2)");
	return 0;
}

struct ibv_context *rvi_context_open(struct ibv_device *device)
{
	struct ibv_context *ctx;

	rvi_keep_begin();
	ctx = ibv_open_device(device);
	if (ctx) {
		rvi_keep_fd(ctx->cmd_fd);
		rvi_keep_fd(ctx->async_fd);
	}
	rvi_keep_end();
	return ctx;
}

void rvi_context_close(struct ibv_context *ctx)
{
	rb_no_fork_begin();
	rb_hold();
	rb_forget(ctx->cmd_fd);
	rb_forget(ctx->async_fd);
	rb_release();
	ibv_close_device(ctx);
	rb_no_fork_end();
}
