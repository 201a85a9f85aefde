#!/bin/busybox sh
# First program of a Debian guest, in an initramfs: loads the drivers, mounts
# the root file system, goes there. The command line says how:
#   lab.root=rw       the disk itself, writable
#   lab.root=overlay  the disk read-only, with changes kept in memory
#   lab.init=PATH     what to run there
#   lab.disk=DEVICE   where the root file system is
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
how=rw init=/sbin/init disk=/dev/vda
for word in $(cat /proc/cmdline); do
    case $word in
    lab.root=*) how=${word#*=} ;;
    lab.disk=*) disk=${word#*=} ;;
    lab.init=*) init=${word#*=} ;;
    esac
done
for module in $(cat /modules/order); do
    insmod /modules/$module.ko || echo "@guest cannot load $module"
done
while ! [ -b $disk ]; do usleep 10000; done
case $how in
overlay)
    mount -t ext4 -o ro $disk /disk
    mount -t tmpfs changes /changes
    mkdir /changes/upper /changes/work
    mount -t overlay -o lowerdir=/disk,upperdir=/changes/upper,workdir=/changes/work root /root
    ;;
rw) mount -t ext4 $disk /root ;;
esac
mount -t devtmpfs dev /root/dev
umount /proc /sys
exec switch_root /root $init
echo "@guest cannot go to its root"
