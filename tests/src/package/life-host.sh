#!/bin/sh
# First program of the host that the DKMS package lives on: its modules come and
# go while KVM is loaded. Each line that begins with @life is compared.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
# Debian's initramfs mounted /proc, /sys, /dev and /run.
kernel=/lib/modules/$(uname -r)/kernel

loaded() {
    [ -d /sys/module/kvm_amd ] || { echo nothing; return; }
    if [ -e /sys/module/kvm/parameters/exit_stats ]; then echo ours; else echo stock; fi
}

modprobe kvm_amd
echo "@life boot loads $(loaded)"

# As it was before the package came.
modprobe -r kvm_amd kvm
insmod "$kernel/virt/lib/irqbypass.ko" 2>/dev/null
insmod "$kernel/arch/x86/kvm/kvm.ko"
insmod "$kernel/arch/x86/kvm/kvm-amd.ko"
echo "@life before installation $(loaded) is loaded"

# What postinst does; a VM holds the vendor module as an open /dev/kvm does.
exec 3<>/dev/kvm
said=$(/usr/lib/kvm-exit-stats/swap-modules 2>&1)
case "$said" in
*"VM is running"*) told="and says so" ;;
*) told="and says \"$said\"" ;;
esac
echo "@life while a VM runs swapping leaves $(loaded), $told"
exec 3>&-

/usr/lib/kvm-exit-stats/swap-modules
echo "@life swapping loads $(loaded)"

dpkg --remove kvm-exit-stats-dkms
echo "@life removal loads $(loaded)"

echo "@life done"
echo o > /proc/sysrq-trigger
sleep 10
