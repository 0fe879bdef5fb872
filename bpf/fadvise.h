/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* fadvise calls: by outcome, by advice, by process. */
#ifndef FADVISE_H
#define FADVISE_H

#include "processes.h"

/*
 * Only the return of a call is of interest: its arguments are still there, or in the registers saved at its
 * entry, so nothing has to be carried from entry to return and concurrent calls cannot mix.
 */
static __always_inline int fadvise_returned(settings_t *set, __u32 advice, long ret)
{
	__u64 slot = index_of(advice < ADVICE_INVALID ? advice : ADVICE_INVALID);
	struct totals *t = cpu_totals();
	__u64 *did;

	if (!t || slot >= ADVICES)
		return 0;
	ADD((ret ? t->fadvise_failed : t->fadvise_success)[slot], 1);

	did = named_activity(set);
	if (did) {
		ADD(did[DID_FADVISE], 1);
		if (!ret)
			ADD(did[DID_FADVISE_SUCCESS], 1);
	}
	return 0;
}

/* The advice of the system call that the task is in. */
static __always_inline __u32 advice_asked(void)
{
	struct syscall call;

	current_syscall(&call);
	if (call.nr == NR_NONE)
		return ADVICE_INVALID;
	if (call.nr == COMPAT(NR_compat_fadvise64))
		return REGISTER(&call, COMPAT_FADVISE64_ADVICE);
	if (call.nr == COMPAT(NR_compat_fadvise64_64))
		return REGISTER(&call, COMPAT_FADVISE64_64_ADVICE);
	return SYSCALL_ARG(&call, 3);
}

#endif
