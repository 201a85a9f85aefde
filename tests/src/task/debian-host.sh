for driver in /lab/drivers/*; do
    insmod $driver || exit 1
done
mkdir /debian /work
mount -t ext4 -o ro /dev/vda /debian && mount -t ext4 /dev/vdb /work || exit 1
for place in dev proc sys tmp work; do
    mount --bind /$place /debian/$place
done
mkdir -p /dev/net
test -c /dev/net/tun || mknod /dev/net/tun c 10 200
