#!/bin/busybox sh
# First program of an emulated host: loads KVM, runs the suites, powers off.
# The kernel's console is the first serial port; results go over the second.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
mkdir -p /dev/pts /dev/shm /tmp
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
ip link set lo up
export PATH=/lab/bin:/bin HOME=/ TERM=linux

# What the log says before this has nothing to do with KVM.
echo 'lab: loading KVM' >/dev/kmsg
for module in irqbypass kvm; do
    insmod /lab/modules/$module.ko || echo "@lab cannot load $module"
done
if grep -qw vmx /proc/cpuinfo; then
    insmod /lab/modules/kvm-intel.ko || echo "@lab cannot load kvm-intel"
elif grep -qw svm /proc/cpuinfo; then
    insmod /lab/modules/kvm-amd.ko || echo "@lab cannot load kvm-amd"
fi
if grep -qw lab=keep-vm /proc/cmdline; then
    lab-suites --isa svm --modules stock keep-vm &
    echo $! >/tmp/kept-vm
fi
echo "@lab host up $(cut -d' ' -f1 /proc/uptime)"

if grep -qw lab=shell /proc/cmdline; then
    cat /lab/motd
    setsid -c sh -l </dev/ttyS0 >/dev/ttyS0 2>&1
    sleep 1
    poweroff -f
fi

stty -F /dev/ttyS1 raw -echo 115200
cd /tmp
sh /lab/run >/dev/ttyS1 2>&1
echo "@lab exit $?" >/dev/ttyS1
# Both ports drain through the tty layer, which power-off does not wait for.
sleep 1
poweroff -f
