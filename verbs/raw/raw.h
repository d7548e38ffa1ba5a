/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rv_raw: READs on a queue pair of one's own, with nothing around them. rref-perf measures the
 * library against it. No part of the library; linked into rref-perf only. One thread; both ends in
 * processes that trust each other.
 */
#ifndef RV_RAW_H
#define RV_RAW_H

#include <stddef.h>
#include <stdint.h>

#define RV_RAW_END_BYTES 64

struct rv_raw;

/*
 * rv_raw_open: opens one end, with a buffer of `head` and `bytes` bytes. The other end may READ it,
 * and each of its READs brings both. device, port and gid_index are as the fields of struct
 * rv_options. Returns -ENODEV, -ENOMEM, ...: rv_raw_error() has the words. rv_raw_end: writes the
 * description of this end for the other end, RV_RAW_END_BYTES. rv_raw_connect: connects to the end
 * with that description. rv_raw_read: makes n READs of bytes, one after the other. rv_raw_stream:
 * keeps window of them in flight. Both return 0 or -errno.
 */
int rv_raw_open(const char *device, int port, int gid_index, size_t head, size_t bytes,
		struct rv_raw **out);
void rv_raw_end(const struct rv_raw *raw, uint8_t out[RV_RAW_END_BYTES]);
int rv_raw_connect(struct rv_raw *raw, const uint8_t end[RV_RAW_END_BYTES]);
int rv_raw_read(struct rv_raw *raw, size_t bytes, unsigned n);
int rv_raw_stream(struct rv_raw *raw, size_t bytes, unsigned n, unsigned window);
const char *rv_raw_error(void);
void rv_raw_close(struct rv_raw *raw);

#endif
