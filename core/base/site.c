/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The place in the program that makes a reference, for the report of leaks.
 *
 * rref.h wraps the functions that make references when the program defines RREF_DEBUG. Each wrapper
 * puts the place into a word of the thread just before the call. So a release build has neither the
 * texts nor a wider API.
 */
#include <stddef.h>

#include "core/base/site.h"

static _Thread_local const char *the_site;

void rref_site(const char *site)
{
	the_site = site;
}

const char *rc_site_take(void)
{
	const char *site = the_site;

	the_site = NULL;
	return site;
}
