/* SPDX-License-Identifier: Apache-2.0 */
/* Looks into a machine of the reference protocol and says what
 * of its insides contradicts itself. */
#ifndef TL_RPCHECK_H
#define TL_RPCHECK_H

#include "core/protocol/protocol.h"

/* NULL when all is well, else static text. Linear in the machine's size. */
const char *tl_rp_check(const struct rp *m);

#endif
