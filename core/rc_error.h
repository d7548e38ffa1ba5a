/* SPDX-License-Identifier: Apache-2.0 */
/* The calling thread's error text. One line where a failure is found: return rc_fail(EINVAL, "rank %d: ...", rank). */
#ifndef RC_ERROR_H
#define RC_ERROR_H

int rc_fail(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3))); /* err positive; returns -err */
/* As rc_fail, for a code that is negative already and a text that is complete. */
int rc_fail_text(int err, const char *text);
const char *rc_error_text(void);

#endif
