// SPDX-License-Identifier: GPL-2.0
/*
 * VM-exit accounting: what a reason's number means, which slot counts it and
 * whether the loaded vendor module has a handler for it.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitmap.h>
#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/nospec.h>

#include "exit_stats.h"
#include "exit_stats_compat.h"
#include "exit_stats_internal.h"
#include "exit_stats_table.h"

static_assert(KVM_EXIT_STATS_SLOTS == KVM_EXIT_STATS_NR_SLOTS);
static_assert(KVM_EXIT_STATS_VMX_REST == KVM_EXIT_STATS_VMX_NR_REASONS);
static_assert(KVM_EXIT_STATS_VMX_REST == KVM_EXIT_STATS_VMX_OTHER);
static_assert(KVM_EXIT_STATS_VMX_OTHER < KVM_EXIT_STATS_SLOTS);
static_assert(KVM_EXIT_STATS_SVM_LOW_END == KVM_EXIT_STATS_SVM_NR_LOW);
static_assert(KVM_EXIT_STATS_SVM_NPF == KVM_EXIT_STATS_SVM_HIGH);
static_assert(KVM_EXIT_STATS_SVM_NPF_END - KVM_EXIT_STATS_SVM_NPF ==
	      KVM_EXIT_STATS_SVM_NR_HIGH);
static_assert(KVM_EXIT_STATS_SVM_REST == KVM_EXIT_STATS_SVM_OTHER);
static_assert(KVM_EXIT_STATS_SVM_OTHER < KVM_EXIT_STATS_SLOTS);

/* Whose exits these are: set as kvm-intel or kvm-amd loads. */
static enum kvm_exit_stats_isa __read_mostly active_isa;

/* Slots for which the loaded vendor module's dispatch table has a handler. */
static DECLARE_BITMAP(handled_slots, KVM_EXIT_STATS_SLOTS);

enum kvm_exit_stats_isa kvm_exit_stats_isa(void)
{
	return READ_ONCE(active_isa);
}

/* Slot of a reason of the manual, or -ENOENT where the manual has none. */
static int slot_of_reason(u32 reason)
{
	switch (kvm_exit_stats_isa()) {
	case KVM_EXIT_STATS_ISA_VMX:
		if (reason < KVM_EXIT_STATS_VMX_NR_REASONS)
			return reason;
		break;
	case KVM_EXIT_STATS_ISA_SVM:
		if (reason < KVM_EXIT_STATS_SVM_NR_LOW)
			return reason;
		if (reason >= KVM_EXIT_STATS_SVM_HIGH &&
		    reason < KVM_EXIT_STATS_SVM_NPF_END)
			return reason - KVM_EXIT_STATS_SVM_HIGH +
			       KVM_EXIT_STATS_SVM_NR_LOW;
		break;
	default:
		break;
	}
	return -ENOENT;
}

/* What the table says of a slot; NULL for the slot of everything else. */
const struct kvm_exit_stats_reason *kvm_exit_stats_reason_of_slot(u32 slot)
{
	switch (kvm_exit_stats_isa()) {
	case KVM_EXIT_STATS_ISA_VMX:
		if (slot >= KVM_EXIT_STATS_VMX_OTHER)
			return NULL;
		slot = array_index_nospec(slot, KVM_EXIT_STATS_VMX_OTHER);
		return &kvm_exit_stats_vmx_reasons[slot];
	case KVM_EXIT_STATS_ISA_SVM:
		if (slot >= KVM_EXIT_STATS_SVM_OTHER)
			return NULL;
		slot = array_index_nospec(slot, KVM_EXIT_STATS_SVM_OTHER);
		return &kvm_exit_stats_svm_reasons[slot];
	default:
		return NULL;
	}
}

/**
 * kvm_exit_stats_lookup() - judge a reason that a guest asks for
 * @reason: any 32-bit number
 *
 * Return: the reason's slot if it is defined and enabled, safe as an index even
 * under speculation; -ENOENT if the manual does not define it; -EOPNOTSUPP if
 * it does and KVM has no handler for it.
 */
int kvm_exit_stats_lookup(u32 reason)
{
	const struct kvm_exit_stats_reason *entry;
	int slot = slot_of_reason(reason);

	if (slot < 0)
		return slot;
	slot = array_index_nospec(slot, KVM_EXIT_STATS_SLOTS);

	entry = kvm_exit_stats_reason_of_slot(slot);
	if (!entry || entry->status == KVM_EXIT_STATS_UNDEFINED)
		return -ENOENT;
	if (entry->status == KVM_EXIT_STATS_NOT_ENABLED)
		return -EOPNOTSUPP;
	return slot;
}

/**
 * kvm_exit_stats_register() - tell which instruction set's exits will come
 * @isa: the instruction set of the vendor module
 * @handlers: its dispatch table, an array of function pointers
 * @nr: entries of @handlers
 *
 * Called as the vendor module loads, when no VM exists.
 */
void kvm_exit_stats_register(enum kvm_exit_stats_isa isa, const void *handlers,
			     size_t nr)
{
	const void *const *handler = handlers;
	size_t reason;
	int slot;

	WRITE_ONCE(active_isa, isa);
	bitmap_zero(handled_slots, KVM_EXIT_STATS_SLOTS);
	for (reason = 0; reason < nr; reason++) {
		slot = slot_of_reason(reason);
		if (handler[reason] && slot >= 0)
			__set_bit(slot, handled_slots);
		else if (handler[reason])
			pr_warn("exit_stats: reason %zu has a handler and no slot\n",
				reason);
	}
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_exit_stats_register);

bool kvm_exit_stats_is_handled(u32 slot)
{
	return test_bit(slot, handled_slots);
}

static int exit_stats_handled_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%*pbl\n", KVM_EXIT_STATS_SLOTS, handled_slots);
}

/* Like a parameter that the module does not have: it still loads. */
static int exit_stats_handled_set(const char *val, const struct kernel_param *kp)
{
	pr_warn("%s can only be read, ignored\n", kp->name);
	return 0;
}

static const struct kernel_param_ops exit_stats_handled_ops = {
	.flags = KERNEL_PARAM_OPS_FL_NOARG,
	.set = exit_stats_handled_set,
	.get = exit_stats_handled_get,
};

module_param_cb(exit_stats_handled, &exit_stats_handled_ops, NULL, 0444);
MODULE_PARM_DESC(exit_stats_handled,
		 "Slots that the running dispatch table has a handler for");
