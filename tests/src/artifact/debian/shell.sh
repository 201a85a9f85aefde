#!/bin/sh
# A guest's shell on its serial console: runs each line that comes, then says
# so with the line's exit status. As first program it mounts what systemd would.
if [ $$ = 1 ]; then
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mkdir -p /dev/pts /dev/shm
    mount -t devpts pts /dev/pts
    mount -t tmpfs shm /dev/shm
    mount -t tmpfs tmp /tmp
    mount -t tmpfs run /run
    ip link set lo up
    exec </dev/ttyS0 >/dev/ttyS0 2>&1
fi
stty -echo -opost
echo "@shell ready"
while read -r line; do
    eval "$line"
    echo "@shell status $?"
done
