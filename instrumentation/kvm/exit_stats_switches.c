// SPDX-License-Identifier: GPL-2.0
/*
 * VM-exit accounting: what the operator and a VMM can switch: parameters of
 * kvm.ko, and the capability.
 */
#include <linux/kvm_host.h>
#include <linux/module.h>

#include "exit_stats.h"
#include "exit_stats_compat.h"
#include "exit_stats_internal.h"

/* Protects what is switched in a VM, and each VM's list of vCPUs. */
DEFINE_MUTEX(kvm_exit_stats_lock);

/* Whether the CPUID leaves answer, in VMs that have them on. */
bool __read_mostly kvm_exit_stats_guest = true;

/* Whether exits are accounted for at all. */
DEFINE_STATIC_KEY_TRUE(kvm_exit_stats_key);
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_exit_stats_key);

/*
 * What was accounted before the gap is worth nothing as a start: stop the clock
 * of every vCPU. Called while the key is off.
 */
static void stop_all_clocks(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm *kvm;
	unsigned long i;

	mutex_lock(&kvm_lock);
	list_for_each_entry(kvm, &vm_list, vm_list)
		kvm_for_each_vcpu(i, vcpu, kvm)
			set_bit(KVM_EXIT_STATS_F_START,
				&vcpu->exit_clock.flags);
	mutex_unlock(&kvm_lock);
}

/* Parameter writes are serialized by the core. */
static int exit_stats_set(const char *val, const struct kernel_param *kp)
{
	bool on;
	int r;

	r = kstrtobool(val, &on);
	if (r || on == static_key_enabled(&kvm_exit_stats_key))
		return r;

	if (on) {
		stop_all_clocks();
		static_branch_enable(&kvm_exit_stats_key);
	} else {
		/*
		 * Changing the text interrupts every CPU and waits for it.
		 * Entry and exit run with interrupts off, so none of them is
		 * half done afterwards.
		 */
		static_branch_disable(&kvm_exit_stats_key);
	}
	return 0;
}

static int exit_stats_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%c\n",
			  static_key_enabled(&kvm_exit_stats_key) ? 'Y' : 'N');
}

static const struct kernel_param_ops exit_stats_ops = {
	.set = exit_stats_set,
	.get = exit_stats_get,
};

module_param_cb(exit_stats, &exit_stats_ops, NULL, 0644);
MODULE_PARM_DESC(exit_stats, "Account VM exits per reason (default: on)");

module_param_named(exit_stats_guest, kvm_exit_stats_guest, bool, 0644);
MODULE_PARM_DESC(exit_stats_guest,
		 "Answer the CPUID leaves 0x4FFFFFFB to 0x4FFFFFFF (default: on)");

/**
 * kvm_exit_stats_check_extension() - answer KVM_CHECK_EXTENSION
 * @kvm: the VM that is asked, NULL for /dev/kvm itself
 *
 * Return: the version, the instruction set and what is on.
 */
int kvm_exit_stats_check_extension(struct kvm *kvm)
{
	int r = KVM_EXIT_STATS_VERSION;

	r |= kvm_exit_stats_isa() << KVM_EXIT_STATS_CAP_ISA_SHIFT;
	if (static_key_enabled(&kvm_exit_stats_key))
		r |= KVM_EXIT_STATS_CAP_ACCOUNTING;
	if (kvm_exit_stats_leaves_on(kvm))
		r |= KVM_EXIT_STATS_CAP_LEAVES;
	if (kvm && READ_ONCE(kvm->arch.exit_stats.latency))
		r |= KVM_EXIT_STATS_CAP_LATENCY;
	return r;
}

/**
 * kvm_exit_stats_enable_cap() - set what is on for a VM
 * @kvm: the VM
 * @cap: args[0] holds the wanted KVM_EXIT_STATS_LEAVES, _LATENCY; the rest is 0
 *
 * Return: 0; -EINVAL for what this version does not know; -ENOMEM.
 */
int kvm_exit_stats_enable_cap(struct kvm *kvm, struct kvm_enable_cap *cap)
{
	int r = 0;

	if (cap->args[0] & ~(KVM_EXIT_STATS_LEAVES | KVM_EXIT_STATS_LATENCY) ||
	    cap->args[1] || cap->args[2] || cap->args[3])
		return -EINVAL;

	mutex_lock(&kvm_exit_stats_lock);
	if (cap->args[0] & KVM_EXIT_STATS_LATENCY)
		r = kvm_exit_stats_latency_on(kvm);
	else
		kvm_exit_stats_latency_off(kvm);
	if (!r)
		WRITE_ONCE(kvm->arch.exit_stats.no_leaves,
			   !(cap->args[0] & KVM_EXIT_STATS_LEAVES));
	mutex_unlock(&kvm_exit_stats_lock);
	return r;
}
