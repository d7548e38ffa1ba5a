/* SPDX-License-Identifier: Apache-2.0 */
/* The error of a failed call, inside verbs/ only. Sets the thread's error text and returns the
 * code, so that a failure is one line. */
#ifndef RV_ERROR_H
#define RV_ERROR_H

/* Returns -err (err given positive). */
int rv_fail(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
