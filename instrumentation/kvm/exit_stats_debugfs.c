// SPDX-License-Identifier: GPL-2.0
/*
 * VM-exit accounting: the files in a VM's debugfs folder.
 */
#include <linux/debugfs.h>
#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/seq_file.h>
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
	return !strcmp(name, "exits") || !strcmp(name, "guest_cycles") ||
	       !strcmp(name, "exits_by_reason") ||
	       !strcmp(name, "exit_cycles_by_reason") ||
	       !strcmp(name, "exit_blocked_cycles_by_reason") ||
	       !strcmp(name, "exit_userspace_cycles_by_reason");
}

struct exit_stats_row {
	u64 exits;
	u64 cycles;
	u64 blocked;
	u64 userspace;
};

static void add_row(struct exit_stats_row *sum, struct kvm *kvm, u32 slot)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		struct kvm_vcpu_stat *stat = &vcpu->stat;

		sum->exits += READ_ONCE(stat->exits_by_reason[slot]);
		sum->cycles += READ_ONCE(stat->exit_cycles_by_reason[slot]);
		sum->blocked +=
			READ_ONCE(stat->exit_blocked_cycles_by_reason[slot]);
		sum->userspace +=
			READ_ONCE(stat->exit_userspace_cycles_by_reason[slot]);
	}
}

static void show_row(struct seq_file *m, u32 slot, struct exit_stats_row *row)
{
	const struct kvm_exit_stats_reason *reason = kvm_exit_stats_reason_of_slot(slot);

	if (reason)
		seq_printf(m, "%#6x %-20s", reason->number,
			   reason->symbol ?: "(undefined)");
	else
		seq_printf(m, "%6s %-20s", "-", "OTHER");
	seq_printf(m, " %7s %14llu %18llu %18llu %18llu\n",
		   kvm_exit_stats_is_handled(slot) ? "yes" : "no", row->exits,
		   row->cycles, row->blocked, row->userspace);
}

static int exit_stats_show(struct seq_file *m, void *v)
{
	static const char * const isa_names[] = { "none", "VMX", "SVM" };
	struct exit_stats_row row, total = {};
	struct kvm *kvm = m->private;
	struct kvm_vcpu *vcpu;
	u64 exits = 0, guest = 0;
	unsigned long i;
	u32 slot;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		exits += READ_ONCE(vcpu->stat.exits);
		guest += READ_ONCE(vcpu->stat.guest_cycles);
	}

	seq_printf(m, "isa %s\nvcpus %d\ntsc_khz %u\naccounting %s\nexits %llu\nguest_cycles %llu\n\n",
		   isa_names[kvm_exit_stats_isa()],
		   atomic_read(&kvm->online_vcpus), tsc_khz,
		   static_key_enabled(&kvm_exit_stats_key) ? "on" : "off",
		   exits, guest);
	seq_printf(m, "%6s %-20s %7s %14s %18s %18s %18s\n", "reason", "name",
		   "handler", "exits", "cycles", "blocked_cycles",
		   "userspace_cycles");

	for (slot = 0; slot < KVM_EXIT_STATS_SLOTS; slot++) {
		memset(&row, 0, sizeof(row));
		add_row(&row, kvm, slot);
		if (!row.exits && !row.cycles && !row.blocked && !row.userspace)
			continue;
		show_row(m, slot, &row);
		total.exits += row.exits;
		total.cycles += row.cycles;
		total.blocked += row.blocked;
		total.userspace += row.userspace;
	}
	seq_printf(m, "%6s %-20s %7s %14llu %18llu %18llu %18llu\n", "", "total",
		   "", total.exits, total.cycles, total.blocked, total.userspace);
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

	mutex_lock(&kvm->lock);
	if (on)
		r = kvm_exit_stats_latency_on(kvm);
	else
		kvm_exit_stats_latency_off(kvm);
	mutex_unlock(&kvm->lock);
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

void kvm_exit_stats_create_debugfs(struct kvm *kvm)
{
	debugfs_create_file("exit_stats", 0444, kvm->debugfs_dentry, kvm,
			    &exit_stats_fops);
	debugfs_create_file("exit_stats_latency", 0644, kvm->debugfs_dentry, kvm,
			    &latency_fops);
}
