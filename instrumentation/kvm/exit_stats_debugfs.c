// SPDX-License-Identifier: GPL-2.0
/*
 * VM-exit accounting: the files in a VM's debugfs folder.
 */
#include <linux/debugfs.h>
#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <asm/tsc.h>

#include "exit_stats.h"
#include "exit_stats_internal.h"

/**
 * kvm_exit_stats_debugfs_readonly() - may debugfs clear this statistic?
 * @name: a vCPU statistic's name
 *
 * debugfs would clear one element of an array, and the sums would no longer
 * agree. The same goes for KVM's own total, which the sum over reasons equals.
 *
 * Return: true if its file must be read-only.
 */
bool kvm_exit_stats_debugfs_readonly(const char *name)
{
	static const char * const ours[] = {
		"exits", "guest_cycles", "exit_cycles", "exit_tsc_backward",
		"exits_by_reason", "exit_cycles_by_reason",
		"exit_blocked_cycles_by_reason", "exit_userspace_cycles_by_reason",
		"exit_preempted_cycles_by_reason",
	};

	return match_string(ours, ARRAY_SIZE(ours), name) >= 0;
}

struct exit_stats_row {
	u64 exits;
	u64 cycles;
	u64 blocked;
	u64 userspace;
	u64 preempted;
};

/* What is summed over the vCPUs: a row for each slot, and the totals above them. */
struct exit_stats_sums {
	u64 exits;
	u64 guest;
	u64 tsc_backward;
	struct exit_stats_row rows[KVM_EXIT_STATS_SLOTS];
};

static void add_vcpu(struct exit_stats_sums *sums, struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_stat *stat = &vcpu->stat;
	struct exit_stats_row *row;
	u32 slot;

	sums->exits += READ_ONCE(stat->exits);
	sums->guest += READ_ONCE(stat->guest_cycles);
	sums->tsc_backward += READ_ONCE(stat->exit_tsc_backward);
	for (slot = 0; slot < KVM_EXIT_STATS_SLOTS; slot++) {
		row = &sums->rows[slot];
		row->exits += READ_ONCE(stat->exits_by_reason[slot]);
		row->cycles += READ_ONCE(stat->exit_cycles_by_reason[slot]);
		row->blocked +=
			READ_ONCE(stat->exit_blocked_cycles_by_reason[slot]);
		row->userspace +=
			READ_ONCE(stat->exit_userspace_cycles_by_reason[slot]);
		row->preempted +=
			READ_ONCE(stat->exit_preempted_cycles_by_reason[slot]);
	}
}

static void show_figures(struct seq_file *m, const struct exit_stats_row *row)
{
	seq_printf(m, " %14llu %18llu %18llu %18llu %18llu\n", row->exits,
		   row->cycles, row->blocked, row->userspace, row->preempted);
}

static void show_row(struct seq_file *m, u32 slot, const struct exit_stats_row *row)
{
	const struct kvm_exit_stats_reason *reason = kvm_exit_stats_reason_of_slot(slot);

	if (reason)
		seq_printf(m, "%#6x %-20s", reason->number,
			   reason->symbol ?: "(undefined)");
	else
		seq_printf(m, "%6s %-20s", "-", "OTHER");
	seq_printf(m, " %7s", kvm_exit_stats_is_handled(slot) ? "yes" : "no");
	show_figures(m, row);
}

static int exit_stats_show(struct seq_file *m, void *v)
{
	static const char * const isa_names[] = { "none", "VMX", "SVM" };
	struct exit_stats_row *row, total = {};
	struct exit_stats_sums *sums;
	struct kvm *kvm = m->private;
	struct kvm_vcpu *vcpu;
	unsigned long i;
	u32 slot;

	sums = kvzalloc(sizeof(*sums), GFP_KERNEL_ACCOUNT);
	if (!sums)
		return -ENOMEM;
	kvm_for_each_vcpu(i, vcpu, kvm)
		add_vcpu(sums, vcpu);

	seq_printf(m, "isa %s\nvcpus %d\ntsc_khz %u\naccounting %s\nexits %llu\nguest_cycles %llu\ntsc_backward %llu\n\n",
		   isa_names[kvm_exit_stats_isa()],
		   atomic_read(&kvm->online_vcpus), tsc_khz,
		   static_key_enabled(&kvm_exit_stats_key) ? "on" : "off",
		   sums->exits, sums->guest, sums->tsc_backward);
	seq_printf(m, "%6s %-20s %7s %14s %18s %18s %18s %18s\n", "reason", "name",
		   "handler", "exits", "cycles", "blocked_cycles",
		   "userspace_cycles", "preempted_cycles");

	for (slot = 0; slot < KVM_EXIT_STATS_SLOTS; slot++) {
		row = &sums->rows[slot];
		if (!memchr_inv(row, 0, sizeof(*row)))
			continue;
		show_row(m, slot, row);
		total.exits += row->exits;
		total.cycles += row->cycles;
		total.blocked += row->blocked;
		total.userspace += row->userspace;
		total.preempted += row->preempted;
	}
	seq_printf(m, "%6s %-20s %7s", "", "total", "");
	show_figures(m, &total);
	kvfree(sums);
	return 0;
}

static ssize_t latency_write(struct file *file, const char __user *buf,
			     size_t count, loff_t *ppos)
{
	struct kvm *kvm = ((struct seq_file *)file->private_data)->private;
	bool on;
	int r;

	r = kstrtobool_from_user(buf, count, &on);
	if (r)
		return r;

	mutex_lock(&kvm_exit_stats_lock);
	if (on)
		r = kvm_exit_stats_latency_on(kvm);
	else
		kvm_exit_stats_latency_off(kvm);
	mutex_unlock(&kvm_exit_stats_lock);
	return r ? r : count;
}

/* The file holds its VM, which may be going as the file is opened. */
static int open_vm_file(struct inode *inode, struct file *file,
			int (*show)(struct seq_file *m, void *v))
{
	struct kvm *kvm = inode->i_private;
	int r;

	if (!kvm_get_kvm_safe(kvm))
		return -ENOENT;

	r = single_open(file, show, kvm);
	if (r < 0)
		kvm_put_kvm(kvm);
	return r;
}

static int release_vm_file(struct inode *inode, struct file *file)
{
	struct kvm *kvm = inode->i_private;
	int r = single_release(inode, file);

	kvm_put_kvm(kvm);
	return r;
}

static int exit_stats_open(struct inode *inode, struct file *file)
{
	return open_vm_file(inode, file, exit_stats_show);
}

static int latency_open(struct inode *inode, struct file *file)
{
	return open_vm_file(inode, file, kvm_exit_stats_latency_show);
}

static const struct file_operations exit_stats_fops = {
	.owner		= THIS_MODULE,
	.open		= exit_stats_open,
	.read		= seq_read,
	.llseek		= seq_lseek,
	.release	= release_vm_file,
};

static const struct file_operations latency_fops = {
	.owner		= THIS_MODULE,
	.open		= latency_open,
	.read		= seq_read,
	.write		= latency_write,
	.llseek		= seq_lseek,
	.release	= release_vm_file,
};

static const struct file_operations latency_switch_fops = {
	.owner		= THIS_MODULE,
	.open		= latency_open,
	.write		= latency_write,
	.release	= release_vm_file,
};

/*
 * A kernel that is locked down opens none of debugfs's files that could be
 * written, not even to read them. So the table is read-only, with a switch beside
 * it; as ever, root may write to the table too where nothing is locked down.
 */
void kvm_exit_stats_create_debugfs(struct kvm *kvm)
{
	debugfs_create_file("exit_stats", 0444, kvm->debugfs_dentry, kvm,
			    &exit_stats_fops);
	debugfs_create_file("exit_stats_latency", 0444, kvm->debugfs_dentry, kvm,
			    &latency_fops);
	debugfs_create_file("exit_stats_latency_switch", 0200, kvm->debugfs_dentry,
			    kvm, &latency_switch_fops);
}
