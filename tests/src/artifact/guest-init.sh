#!/bin/busybox sh
# First program of a guest in the lab: runs what the test gave, or a shell for the
# person at the terminal, then powers off.
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
else
    terminal=/dev/$(sed 's/.* //' /sys/class/tty/console/active)
    stty -F "$terminal" sane
    echo 'A guest. exit-stats and cpuid read its exits; exit powers it off.'
    cd /tmp
    setsid -c sh <"$terminal" >"$terminal" 2>&1
fi
poweroff -f
