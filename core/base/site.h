/* SPDX-License-Identifier: Apache-2.0 */
/* The place in the program that made a reference: debug builds alone. */
#ifndef RC_BASE_SITE_H
#define RC_BASE_SITE_H

#include "core/ctx.h"

/* Returns the place of the call under way; NULL but in debug builds. */
const char *rc_site_take(void);

#endif
