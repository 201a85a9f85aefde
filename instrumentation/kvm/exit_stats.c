// SPDX-License-Identifier: GPL-2.0
/*
 * VM-exit accounting: the rare paths of a vCPU's clock. The hot path is in
 * exit_stats.h.
 */
#include <linux/kvm_host.h>
#include <asm/msr.h>

#include "exit_stats.h"
#include "exit_stats_internal.h"

/* A vCPU's figures are zeroed with the structure they live in. */
void kvm_exit_stats_vcpu_init(struct kvm_vcpu *vcpu)
{
	set_bit(KVM_EXIT_STATS_F_START, &vcpu->arch.exit_stats.flags);
}

/**
 * kvm_exit_stats_entry_slow() - close the open exit, or start the clock
 * @vcpu: the vCPU about to enter the guest
 * @now: host TSC
 *
 * Called with interrupts off.
 */
void kvm_exit_stats_entry_slow(struct kvm_vcpu *vcpu, u64 now)
{
	struct kvm_exit_stats_clock *clock = &vcpu->arch.exit_stats;
	u64 ticks = now - clock->last;

	if (test_and_clear_bit(KVM_EXIT_STATS_F_START, &clock->flags)) {
		clear_bit(KVM_EXIT_STATS_F_PARTIAL, &clock->flags);
		clock->handled = 0;
		return;
	}

	kvm_exit_stats_add(&vcpu->stat.exit_cycles_by_reason[clock->slot], ticks);
	if (!test_and_clear_bit(KVM_EXIT_STATS_F_PARTIAL, &clock->flags) &&
	    test_bit(KVM_EXIT_STATS_F_LATENCY, &clock->flags))
		kvm_exit_stats_record_latency(clock, clock->handled + ticks);
	clock->handled = 0;
}
EXPORT_SYMBOL_GPL(kvm_exit_stats_entry_slow);

/*
 * Ends the current place at one TSC reading. Preemption is off in between lest
 * the task move to a CPU whose TSC is behind the reading it is about to store.
 */
static void book(struct kvm_vcpu *vcpu, u64 *place, bool handling)
{
	struct kvm_exit_stats_clock *clock = &vcpu->arch.exit_stats;
	u64 now;

	preempt_disable();
	now = rdtsc();
	if (!test_bit(KVM_EXIT_STATS_F_START, &clock->flags)) {
		kvm_exit_stats_add(&place[clock->slot], now - clock->last);
		if (handling)
			clock->handled += now - clock->last;
	}
	clock->last = now;
	preempt_enable();
}

/**
 * kvm_exit_stats_no_entry() - count an exit that no VM entry preceded
 * @vcpu: the vCPU
 * @slot: the slot to count
 *
 * The time so far belongs to the exit before. Called with interrupts off.
 */
void kvm_exit_stats_no_entry(struct kvm_vcpu *vcpu, u64 slot)
{
	struct kvm_exit_stats_clock *clock = &vcpu->arch.exit_stats;
	u64 now = kvm_exit_stats_entry(vcpu);

	clock->last = now;
	kvm_exit_stats_count(vcpu, slot);
}
EXPORT_SYMBOL_GPL(kvm_exit_stats_no_entry);

void __kvm_exit_stats_run_begin(struct kvm_vcpu *vcpu)
{
	book(vcpu, vcpu->stat.exit_userspace_cycles_by_reason, false);
}

void __kvm_exit_stats_run_end(struct kvm_vcpu *vcpu)
{
	book(vcpu, vcpu->stat.exit_cycles_by_reason, true);
}

void __kvm_exit_stats_block(struct kvm_vcpu *vcpu)
{
	book(vcpu, vcpu->stat.exit_cycles_by_reason, true);
}

void __kvm_exit_stats_unblock(struct kvm_vcpu *vcpu)
{
	book(vcpu, vcpu->stat.exit_blocked_cycles_by_reason, false);
}

/*
 * Between two loads a vCPU stays on one CPU, whose TSC does not step back. So
 * this is the one place where a difference could turn negative: on a host with
 * unsynchronized TSCs the ticks in question are dropped.
 */
void __kvm_exit_stats_vcpu_load(struct kvm_vcpu *vcpu)
{
	struct kvm_exit_stats_clock *clock = &vcpu->arch.exit_stats;
	u64 now = rdtsc();

	if (unlikely(now < clock->last))
		clock->last = now;
}
