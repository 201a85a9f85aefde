// SPDX-License-Identifier: GPL-2.0
/*
 * VM-exit accounting: a vCPU's counters as a whole, for whoever stops a vCPU here
 * and has it go on elsewhere.
 */
#include <linux/kvm_host.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "exit_stats.h"
#include "exit_stats_internal.h"

/* The arrays lie in one row, in both structures. */
#define ARRAYS_SIZE	(5 * KVM_EXIT_STATS_SLOTS * sizeof(u64))

static_assert(offsetof(struct kvm_vcpu_stat, exit_preempted_cycles_by_reason) +
	      KVM_EXIT_STATS_SLOTS * sizeof(u64) -
	      offsetof(struct kvm_vcpu_stat, exits_by_reason) == ARRAYS_SIZE);
static_assert(sizeof(struct kvm_exit_stats_counters) -
	      offsetof(struct kvm_exit_stats_counters, exits_by_reason) == ARRAYS_SIZE);

static int get_counters(struct kvm_vcpu *vcpu, void __user *to)
{
	struct kvm_exit_stats_counters *counters;
	u32 size;
	int r = 0;

	/* The caller says how much room there is. */
	if (get_user(size, (u32 __user *)to))
		return -EFAULT;
	if (size != sizeof(*counters))
		return -EINVAL;

	counters = kvzalloc(sizeof(*counters), GFP_KERNEL_ACCOUNT);
	if (!counters)
		return -ENOMEM;

	counters->size = sizeof(*counters);
	counters->isa = kvm_exit_stats_isa();
	counters->slots = KVM_EXIT_STATS_SLOTS;
	counters->exits = vcpu->stat.exits;
	counters->guest_cycles = vcpu->stat.guest_cycles;
	unsafe_memcpy(counters->exits_by_reason, vcpu->stat.exits_by_reason,
		      ARRAYS_SIZE, /* five arrays in a row, see above */);
	if (copy_to_user(to, counters, sizeof(*counters)))
		r = -EFAULT;
	kvfree(counters);
	return r;
}

static int set_counters(struct kvm_vcpu *vcpu, const void __user *from)
{
	struct kvm_exit_stats_counters *counters;
	u64 exits = 0, cycles = 0;
	int r = -EINVAL;
	u32 slot;

	/* What is there already would be lost, and figures never fall. */
	if (vcpu->arch.last_vmentry_cpu != -1)
		return -EBUSY;

	counters = vmemdup_user(from, sizeof(*counters));
	if (IS_ERR(counters))
		return PTR_ERR(counters);
	if (counters->size != sizeof(*counters) ||
	    counters->isa != kvm_exit_stats_isa() ||
	    counters->slots != KVM_EXIT_STATS_SLOTS)
		goto out;
	for (slot = 0; slot < KVM_EXIT_STATS_SLOTS; slot++) {
		if (check_add_overflow(exits, counters->exits_by_reason[slot], &exits))
			goto out;
		cycles += counters->exit_cycles_by_reason[slot];
	}
	if (exits > counters->exits)
		goto out;

	vcpu->stat.exits = counters->exits;
	vcpu->stat.guest_cycles = counters->guest_cycles;
	vcpu->stat.exit_cycles = cycles;
	unsafe_memcpy(vcpu->stat.exits_by_reason, counters->exits_by_reason,
		      ARRAYS_SIZE, /* five arrays in a row, see above */);
	r = 0;
out:
	kvfree(counters);
	return r;
}

/**
 * kvm_exit_stats_vcpu_attr() - answer for the attribute of a vCPU
 * @vcpu: the vCPU, whose mutex the caller holds: it is not running
 * @ioctl: KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR or KVM_SET_DEVICE_ATTR
 * @attr: group KVM_VCPU_EXIT_STATS
 *
 * Return: 0; -ENXIO for an attribute that there is not; -EBUSY for setting after
 * the vCPU's first entry; -EINVAL for counters of another shape; -EFAULT, -ENOMEM.
 */
int kvm_exit_stats_vcpu_attr(struct kvm_vcpu *vcpu, unsigned int ioctl,
			     struct kvm_device_attr *attr)
{
	void __user *address = u64_to_user_ptr(attr->addr);

	if (attr->attr != KVM_VCPU_EXIT_STATS_COUNTERS || attr->flags)
		return -ENXIO;

	switch (ioctl) {
	case KVM_HAS_DEVICE_ATTR:
		return 0;
	case KVM_GET_DEVICE_ATTR:
		return get_counters(vcpu, address);
	case KVM_SET_DEVICE_ATTR:
		return set_counters(vcpu, address);
	default:
		return -EINVAL;
	}
}
