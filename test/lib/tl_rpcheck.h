/* SPDX-License-Identifier: Apache-2.0 */
/* Looks into a machine of the reference protocol, and names a contradiction of its insides. */
#ifndef TL_RPCHECK_H
#define TL_RPCHECK_H

#include "core/protocol/protocol.h"

/* Returns NULL when all is well, else a static text. Takes time linear in the machine's size. */
const char *tl_rp_check(const struct rp *m);

#endif
