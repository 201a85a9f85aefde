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

/*
 * A guest may ask as often as it likes, from its user space too, and holds a CPU
 * of the host for as long as the answer takes. So each vCPU adds a handful of
 * instructions: totals are kept, not added up, and the vCPUs are a plain list.
 */
static struct kvm_vcpu *first_vcpu(struct kvm *kvm)
{
	/* Pairs with the release in kvm_exit_stats_vcpu_postcreate(). */
	return smp_load_acquire(&kvm->arch.exit_stats.vcpus);
}

static struct kvm_vcpu *next_vcpu(struct kvm_vcpu *vcpu)
{
	return vcpu->exit_stats.next;
}

/* The sum of one figure, so many bytes into the statistics, over all vCPUs. */
static noinline u64 sum_of_figure(struct kvm *kvm, size_t offset)
{
	struct kvm_vcpu *vcpu;
	u64 sum = 0;

	for (vcpu = first_vcpu(kvm); vcpu; vcpu = next_vcpu(vcpu))
		sum += READ_ONCE(*(u64 *)((char *)&vcpu->stat + offset));
	return sum;
}

static u64 sum_of_cycles(struct kvm *kvm)
{
	return sum_of_figure(kvm, offsetof(struct kvm_vcpu_stat, exit_cycles));
}

/* The sum over a vCPU's reasons, before its clock starts. */
static noinline u64 exits_before_start(struct kvm_vcpu *vcpu)
{
	u64 sum = 0;
	int slot;

	/* It never ran, as most vCPUs that a guest does not bring up. */
	if (!READ_ONCE(vcpu->stat.exits))
		return 0;

	for (slot = 0; slot < KVM_EXIT_STATS_SLOTS; slot++)
		sum += READ_ONCE(vcpu->stat.exits_by_reason[slot]);
	return sum;
}

/* The sum over all reasons: KVM counts each exit by itself, in one figure. */
static noinline u64 sum_of_exits(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	u64 sum = 0;

	for (vcpu = first_vcpu(kvm); vcpu; vcpu = next_vcpu(vcpu)) {
		/* Pairs with the barrier in start_clock(). */
		if (unlikely(smp_load_acquire(&vcpu->exit_clock.flags) &
			     BIT(KVM_EXIT_STATS_F_START)))
			sum += exits_before_start(vcpu);
		else
			sum += READ_ONCE(vcpu->stat.exits) -
			       READ_ONCE(vcpu->exit_clock.uncounted);
	}
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
		.eax = KVM_EXIT_STATS_LEAVES_VERSION,
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
		return exits_leaf(sum_of_figure(kvm, offsetof(struct kvm_vcpu_stat,
							      exits_by_reason[slot])));
	return cycles_leaf(sum_of_figure(kvm, offsetof(struct kvm_vcpu_stat,
						       exit_cycles_by_reason[slot])));
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
	struct kvm_cpuid_entry2 *answer = &vcpu->exit_stats.leaf;
	struct kvm *kvm = vcpu->kvm;

	if (leaf < KVM_EXIT_STATS_LEAF_INFO ||
	    leaf > KVM_EXIT_STATS_LEAF_TOTAL_EXITS ||
	    !kvm_exit_stats_leaves_on(kvm))
		return NULL;

	switch (leaf) {
	case KVM_EXIT_STATS_LEAF_TOTAL_EXITS:
		*answer = exits_leaf(sum_of_exits(kvm));
		break;
	case KVM_EXIT_STATS_LEAF_TOTAL_CYCLES:
		*answer = cycles_leaf(sum_of_cycles(kvm));
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
