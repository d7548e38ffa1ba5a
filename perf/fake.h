/* SPDX-License-Identifier: Apache-2.0 */
/* rref-fake: reads over fake devices. */
#ifndef FAKE_H
#define FAKE_H

#include "fg.h"
#include "fr.h"
#include "perf/rref-perf/pf.h"

/* Measures reads beside a noise, and tells the row. Returns the program's status. */
int fake_busy(const struct pf_config *cfg);

#endif
