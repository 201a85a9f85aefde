// SPDX-License-Identifier: GPL-2.0
/*
 * VM-exit accounting: what a guest reads with CPUID.
 *
 * Only figures of the VM that asks, all its vCPUs summed. Every register is
 * written on every path.
 */
#include <linux/kvm_host.h>
#include <linux/sched.h>
#include <asm/tsc.h>

#include "exit_stats.h"

#define LEAF_INFO		0x4ffffffb
#define LEAF_REASON_CYCLES	0x4ffffffc
#define LEAF_REASON_EXITS	0x4ffffffd
#define LEAF_TOTAL_CYCLES	0x4ffffffe
#define LEAF_TOTAL_EXITS	0x4fffffff

#define UNDEFINED_REASON_EDX	0xffffffff

struct leaf {
	u32 eax, ebx, ecx, edx;
};

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

static struct leaf exits_leaf(u64 exits)
{
	return (struct leaf) {
		.eax = lower_32_bits(exits),
		.ebx = upper_32_bits(exits),
	};
}

static struct leaf cycles_leaf(u64 cycles)
{
	return (struct leaf) {
		.ebx = upper_32_bits(cycles),
		.ecx = lower_32_bits(cycles),
	};
}

static struct leaf info_leaf(struct kvm *kvm)
{
	bool svm = kvm_exit_stats_isa() == KVM_EXIT_STATS_ISA_SVM;

	/* "SVM\0" or "VMX\0", as the bytes lie in memory */
	return (struct leaf) {
		.eax = KVM_EXIT_STATS_VERSION,
		.ebx = svm ? 0x004d5653 : 0x00584d56,
		.ecx = atomic_read(&kvm->online_vcpus),
		.edx = tsc_khz,
	};
}

static struct leaf reason_leaf(struct kvm *kvm, u32 leaf, u32 reason)
{
	int slot = kvm_exit_stats_lookup(reason);

	if (slot == -ENOENT)
		return (struct leaf) { .edx = UNDEFINED_REASON_EDX };
	if (slot < 0)
		return (struct leaf) {};
	if (leaf == LEAF_REASON_EXITS)
		return exits_leaf(exits_of_slot(kvm, slot));
	return cycles_leaf(cycles_of_slot(kvm, slot));
}

/**
 * kvm_exit_stats_cpuid() - answer one of the accounting leaves
 * @vcpu: the vCPU that executes CPUID
 * @eax: leaf, and output
 * @ebx: output
 * @ecx: exit reason for the leaves of one reason, and output
 * @edx: output
 *
 * Called for a leaf that the VMM did not set with KVM_SET_CPUID2: an entry of
 * the VMM's has precedence.
 *
 * Return: true if this is such a leaf, it is switched on for the VM and all four
 * registers are written; false, with nothing written, if not.
 */
bool kvm_exit_stats_cpuid(struct kvm_vcpu *vcpu, u32 *eax, u32 *ebx, u32 *ecx,
			  u32 *edx)
{
	struct kvm *kvm = vcpu->kvm;
	struct leaf leaf;

	if (*eax < LEAF_INFO || *eax > LEAF_TOTAL_EXITS ||
	    !kvm_exit_stats_leaves_on(kvm))
		return false;

	switch (*eax) {
	case LEAF_TOTAL_EXITS:
		leaf = exits_leaf(sum_of_slots(kvm, exits_of_slot));
		break;
	case LEAF_TOTAL_CYCLES:
		leaf = cycles_leaf(sum_of_slots(kvm, cycles_of_slot));
		break;
	case LEAF_INFO:
		leaf = info_leaf(kvm);
		break;
	default:
		leaf = reason_leaf(kvm, *eax, *ecx);
		break;
	}

	*eax = leaf.eax;
	*ebx = leaf.ebx;
	*ecx = leaf.ecx;
	*edx = leaf.edx;
	return true;
}
