// SPDX-License-Identifier: GPL-2.0
/*
 * VM-exit accounting: the rare paths of a vCPU's clock. The hot path is in
 * exit_stats.h.
 */
#include <linux/kvm_host.h>
#include <asm/msr.h>

#include "exit_stats.h"
#include "exit_stats_compat.h"
#include "exit_stats_internal.h"

/* The kernel's image writes to KVM's structures: exit_stats_types.h says where. */
static_assert(sizeof_field(struct kvm_vcpu, exit_clock) ==
	      sizeof_field(struct kvm_vcpu, async_pf));
static_assert(offsetof(struct kvm_vcpu_stat, exits) -
	      offsetof(struct kvm_vcpu_stat, guest_cycles) == 2 * sizeof(u64));

/* A vCPU's figures are zeroed with the structure they live in. */
void kvm_exit_stats_vcpu_init(struct kvm_vcpu *vcpu)
{
	set_bit(KVM_EXIT_STATS_F_START, &vcpu->exit_clock.flags);
}

static __always_inline void record_latency(struct kvm_vcpu *vcpu, u64 ticks)
{
	struct kvm_exit_stats_latency *latency;
	u32 bucket;

	/* Pairs with the release in kvm_exit_stats_latency_on(). */
	latency = smp_load_acquire(&vcpu->exit_stats.latency);
	if (!latency)
		return;
	bucket = min_t(u32, fls64(ticks), KVM_EXIT_STATS_LATENCY_BUCKETS - 1);
	kvm_exit_stats_add(&latency->buckets[vcpu->exit_clock.slot][bucket], 1);
}

/*
 * The clock starts, at a vCPU's first entry or when accounting is switched on.
 * Every exit so far is in KVM's own count by now, since the next one is to come.
 */
static __always_inline void start_clock(struct kvm_vcpu *vcpu)
{
	struct kvm_exit_stats_clock *clock = &vcpu->exit_clock;
	u64 counted = 0;
	int slot;

	for (slot = 0; slot < KVM_EXIT_STATS_SLOTS; slot++)
		counted += vcpu->stat.exits_by_reason[slot];
	WRITE_ONCE(clock->uncounted, vcpu->stat.exits - counted);
	clock->handled = 0;
	clock->preempted_at = 0;
	clock->asleep = 0;
	vcpu->exit_stats.in_run = true;
	/* Readers of @uncounted look at the flag first: sum_of_exits(). */
	smp_mb__before_atomic();
	arch_clear_bit(KVM_EXIT_STATS_F_START, &clock->flags);
}

/**
 * kvm_exit_stats_entry_slow() - close the open exit, or start the clock
 * @vcpu: the vCPU about to enter the guest
 * @ticks: since the clock was read last
 *
 * Called with interrupts off, where nothing may be instrumented.
 */
noinstr void kvm_exit_stats_entry_slow(struct kvm_vcpu *vcpu, u64 ticks)
{
	struct kvm_exit_stats_clock *clock = &vcpu->exit_clock;

	clock->last += ticks;
	if (arch_test_bit(KVM_EXIT_STATS_F_START, &clock->flags)) {
		start_clock(vcpu);
		arch_clear_bit(KVM_EXIT_STATS_F_PARTIAL, &clock->flags);
		return;
	}

	kvm_exit_stats_add(&vcpu->stat.exit_cycles_by_reason[clock->slot], ticks);
	kvm_exit_stats_add(&vcpu->stat.exit_cycles, ticks);
	if (!arch_test_and_clear_bit(KVM_EXIT_STATS_F_PARTIAL, &clock->flags) &&
	    arch_test_bit(KVM_EXIT_STATS_F_LATENCY, &clock->flags))
		record_latency(vcpu, clock->handled + ticks);
	clock->handled = 0;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_exit_stats_entry_slow);

/*
 * Ends the current place at one TSC reading, and with it the kernel's share of
 * the open exit if @place is NULL. Preemption is off in between lest the task
 * move to a CPU whose TSC is behind the reading it is about to store.
 */
static void book(struct kvm_vcpu *vcpu, u64 *place)
{
	struct kvm_exit_stats_clock *clock = &vcpu->exit_clock;
	u64 now, ticks;

	preempt_disable();
	now = rdtsc();
	ticks = now - clock->last;
	if (test_bit(KVM_EXIT_STATS_F_START, &clock->flags)) {
		/* Nothing is booked before the next entry. */
	} else if (place) {
		kvm_exit_stats_add(&place[clock->slot], ticks);
	} else {
		kvm_exit_stats_add(&vcpu->stat.exit_cycles_by_reason[clock->slot],
				   ticks);
		kvm_exit_stats_add(&vcpu->stat.exit_cycles, ticks);
		clock->handled += ticks;
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
	kvm_exit_stats_entry(vcpu);
	kvm_exit_stats_count(vcpu, slot);
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_exit_stats_no_entry);

void __kvm_exit_stats_run_begin(struct kvm_vcpu *vcpu)
{
	book(vcpu, vcpu->stat.exit_userspace_cycles_by_reason);
	vcpu->exit_stats.in_run = true;
}

void __kvm_exit_stats_run_end(struct kvm_vcpu *vcpu)
{
	vcpu->exit_stats.in_run = false;
	book(vcpu, NULL);
}

void __kvm_exit_stats_block(struct kvm_vcpu *vcpu)
{
	if (!vcpu->exit_clock.asleep++)
		book(vcpu, NULL);
}

/* Accounting may have been switched on in between: then there is no beginning. */
void __kvm_exit_stats_unblock(struct kvm_vcpu *vcpu)
{
	struct kvm_exit_stats_clock *clock = &vcpu->exit_clock;

	if (clock->asleep && !--clock->asleep)
		book(vcpu, vcpu->stat.exit_blocked_cycles_by_reason);
}

/*
 * KVM just read the TSC for its own use. Outside KVM_RUN the vCPU is out in user
 * space, whoever runs on the CPU.
 */
void __kvm_exit_stats_vcpu_put(struct kvm_vcpu *vcpu)
{
	vcpu->exit_clock.preempted_at =
		vcpu->preempted && vcpu->exit_stats.in_run ?
		vcpu->arch.last_host_tsc : 0;
}

/*
 * Between two loads a vCPU stays on one CPU, whose TSC does not step back. So
 * this is the one place where a difference could turn negative: on a host with
 * unsynchronized TSCs the ticks in question are dropped, and the move counted.
 */
void __kvm_exit_stats_vcpu_load(struct kvm_vcpu *vcpu)
{
	struct kvm_exit_stats_clock *clock = &vcpu->exit_clock;
	u64 left = clock->preempted_at;
	u64 now = rdtsc();

	clock->preempted_at = 0;
	if (unlikely(now < clock->last || now < left)) {
		clock->last = min(now, clock->last);
		kvm_exit_stats_add(&vcpu->stat.exit_tsc_backward, 1);
		return;
	}

	if (!left || test_bit(KVM_EXIT_STATS_F_START, &clock->flags))
		return;
	/* The place that the vCPU was in goes on as if no time had passed. */
	kvm_exit_stats_add(&vcpu->stat.exit_preempted_cycles_by_reason[clock->slot],
			   now - left);
	clock->last += now - left;
}
