#!/bin/busybox sh
# First program of a guest in the lab: runs what the test gave, then powers off.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
# Lines reach the test as they were written, and input is not echoed to it.
stty -F /dev/console -opost -echo
echo "@guest up $(cut -d' ' -f1 /proc/uptime)"
if [ -f /t/run.sh ]; then
    sh /t/run.sh
    echo "@guest exit $?"
fi
poweroff -f
