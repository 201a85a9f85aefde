#!/bin/sh -eu
# mmdebstrap's last hook: settles the new root, $1, and makes the image of it.
root=$1
install -m 755 "$LAB_SHELL" "$root/usr/local/sbin/lab-shell"
mkdir "$root/work"
chroot "$root" passwd --quiet --delete root
echo debian >"$root/etc/hostname"
# A first boot would go through everything that can be chosen.
echo 6d0a5f0c1e5b4c0fa6a9a2a4d0e3b7c1 >"$root/etc/machine-id"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
# What is mounted there is no part of it.
unshare --mount sh -euc '
    umount -l "$0/proc" "$0/sys"
    mke2fs -q -t ext4 -L debian -d "$0" "$1" "$2"
' "$root" "$LAB_IMAGE" "$LAB_SIZE"
