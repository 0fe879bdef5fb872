/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the kernel is doing for the current task, where the number of a system call does not tell: from its stack.
 * Some microseconds, and so for rare paths only.
 */
#ifndef CALLERS_H
#define CALLERS_H

#include "scope.h"

/* The innermost ones, those of the program among them; what decides was seen at 6 to 12. */
#define FRAMES 20

/* Where it is inlined it is half of the object; kernels with BTF have calls, those of 4.14 have not. */
#ifdef NO_BTF
#define WALK static __always_inline
#else
#define WALK static __noinline
#endif

/* Why a page is filled: as the innermost function says that is one of those known. */
WALK enum fill_cause cause_by_stack(void *ctx, settings_t *set)
{
	/* Kernels before 6.3 do not take what nobody has written to. */
	__u64 stack[FRAMES] = {};
	int i, j;

	if (bpf_get_stack(ctx, stack, sizeof(stack), 0) <= 0)
		return FILL_OTHER;
#pragma unroll
	for (i = 0; i < FRAMES; i++) {
#pragma unroll
		for (j = 0; j < FUNCTIONS; j++) {
			/* A return address: behind a call, thus never the first byte. */
			if (stack[i] - set->functions[j].start < set->functions[j].len)
				return set->functions[j].cause;
		}
	}
	return FILL_OTHER;
}

#endif
