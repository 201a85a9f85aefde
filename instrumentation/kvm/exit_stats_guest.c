// SPDX-License-Identifier: GPL-2.0
/*
 * VM-exit accounting: what a guest reads with CPUID.
 *
 * Only figures of the VM that asks, all its vCPUs summed. Each answer is a whole
 * CPUID entry: all four registers, whatever the path.
 */
#include <linux/kvm_host.h>
#include <asm/tsc.h>

#include "exit_stats.h"
#include "exit_stats_internal.h"

#define UNDEFINED_REASON_EDX	0xffffffff

static u64 exits_of_slot(struct kvm *kvm, int slot)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	u64 sum = 0;

	kvm_for_each_vcpu(i, vcpu, kvm)
		sum += READ_ONCE(vcpu->stat.exits_by_reason[slot]);
	return sum;
}

static u64 cycles_of_slot(struct kvm *kvm, int slot)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	u64 sum = 0;

	kvm_for_each_vcpu(i, vcpu, kvm)
		sum += READ_ONCE(vcpu->stat.exit_cycles_by_reason[slot]);
	return sum;
}

/* Totals are sums of the same array, so the two views cannot disagree. */
static u64 sum_of_slots(struct kvm *kvm, u64 (*of_slot)(struct kvm *kvm, int slot))
{
	u64 sum = 0;
	int slot;

	for (slot = 0; slot < KVM_EXIT_STATS_SLOTS; slot++)
		sum += of_slot(kvm, slot);
	return sum;
}

static struct kvm_cpuid_entry2 exits_leaf(u64 exits)
{
	return (struct kvm_cpuid_entry2) {
		.eax = lower_32_bits(exits),
		.ebx = upper_32_bits(exits),
	};
}

static struct kvm_cpuid_entry2 cycles_leaf(u64 cycles)
{
	return (struct kvm_cpuid_entry2) {
		.ebx = upper_32_bits(cycles),
		.ecx = lower_32_bits(cycles),
	};
}

static struct kvm_cpuid_entry2 info_leaf(struct kvm *kvm)
{
	bool svm = kvm_exit_stats_isa() == KVM_EXIT_STATS_ISA_SVM;

	/* "SVM\0" or "VMX\0", as the bytes lie in memory */
	return (struct kvm_cpuid_entry2) {
		.eax = KVM_EXIT_STATS_VERSION,
		.ebx = svm ? 0x004d5653 : 0x00584d56,
		.ecx = atomic_read(&kvm->online_vcpus),
		.edx = tsc_khz,
	};
}

static struct kvm_cpuid_entry2 reason_leaf(struct kvm *kvm, u32 leaf, u32 reason)
{
	int slot = kvm_exit_stats_lookup(reason);

	if (slot == -ENOENT)
		return (struct kvm_cpuid_entry2) { .edx = UNDEFINED_REASON_EDX };
	if (slot < 0)
		return (struct kvm_cpuid_entry2) {};
	if (leaf == KVM_EXIT_STATS_LEAF_REASON_EXITS)
		return exits_leaf(exits_of_slot(kvm, slot));
	return cycles_leaf(cycles_of_slot(kvm, slot));
}

/**
 * kvm_exit_stats_cpuid() - answer one of the accounting leaves
 * @vcpu: the vCPU that executes CPUID
 * @leaf: eax as the guest set it
 * @index: ecx as the guest set it; the exit reason, for the leaves of one reason
 *
 * Called where KVM has no entry of the VMM's for the leaf: one that was set with
 * KVM_SET_CPUID2 has precedence, and looking it up costs what it did before.
 *
 * Return: the answer, valid until the vCPU asks again; NULL if this is another
 * leaf or the leaves are switched off.
 */
struct kvm_cpuid_entry2 *kvm_exit_stats_cpuid(struct kvm_vcpu *vcpu, u32 leaf,
					      u32 index)
{
	struct kvm_cpuid_entry2 *answer = &vcpu->arch.exit_stats.leaf;
	struct kvm *kvm = vcpu->kvm;

	if (leaf < KVM_EXIT_STATS_LEAF_INFO ||
	    leaf > KVM_EXIT_STATS_LEAF_TOTAL_EXITS ||
	    !kvm_exit_stats_leaves_on(kvm))
		return NULL;

	switch (leaf) {
	case KVM_EXIT_STATS_LEAF_TOTAL_EXITS:
		*answer = exits_leaf(sum_of_slots(kvm, exits_of_slot));
		break;
	case KVM_EXIT_STATS_LEAF_TOTAL_CYCLES:
		*answer = cycles_leaf(sum_of_slots(kvm, cycles_of_slot));
		break;
	case KVM_EXIT_STATS_LEAF_INFO:
		*answer = info_leaf(kvm);
		break;
	default:
		*answer = reason_leaf(kvm, leaf, index);
		break;
	}
	return answer;
}
