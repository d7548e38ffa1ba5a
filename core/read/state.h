/* SPDX-License-Identifier: Apache-2.0 */
/* The state of read/ in a context. */
#ifndef RC_READ_STATE_H
#define RC_READ_STATE_H

#include "core/base/locked.h"

struct rc_in_flight;
struct rc_reader;

/* Reads. */
struct rc_read_state {
	struct rc_reader *readers;        /* value/reader.c */
	struct rc_in_flight *flights under_lock; /* value/reader.c */
};

#endif
