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
 * rv_raw_open: one end, with a buffer of `head` and `bytes` bytes that the other end may READ; each
 * of its own READs brings both. device, port and gid_index as the fields of struct rv_options.
 * -ENODEV, -ENOMEM, ...: rv_raw_error() has the words. rv_raw_end: the description of this end for
 * the other one, RV_RAW_END_BYTES. rv_raw_connect: with the other's. rv_raw_read: n READs of bytes,
 * one after the other. rv_raw_stream: window of them in flight. 0 or -errno.
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
