/* SPDX-License-Identifier: Apache-2.0 */
/* The device's words as -errno. Total: unknown numbers have an answer too. */
#ifndef RVI_STATUS_H
#define RVI_STATUS_H

#include <stdbool.h>

/* A work completion's status: 0 for success, else one of -EACCES,
 * -EFAULT, -EPROTO, -ETIMEDOUT, -ECONNRESET; see status.c. */
int rvi_wc_errno(int wc_status);

/* "remote access error", for people. Static. */
const char *rvi_wc_text(int wc_status);

/* The end of a connect or accept: event (enum rdma_cm_event_type)
 * and its status as librdmacm gives it. -errno, never 0. */
int rvi_cm_errno(int event, int status);

#endif
