# The first process of a host: makes the place its own, starts sshd, and lives as long as its stdin is open.
# Arguments: the host's name and the cluster's folder. Its end is the end of every process of the host.
set -eu
name=$1 folder=$2 own=$2/$1
hostname "$name"
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs "$folder/private"
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/ssh_config" /etc/ssh/ssh_config
# What the user has of his own must not change how hosts reach each other.
if [ -d ~/.ssh ]; then mount -t tmpfs -o mode=700 tmpfs ~/.ssh; fi
mkdir -p /run/sshd /run/lock
ip link set lo up
# Rules that drop packets must come before the table of this host's own addresses.
ip rule add pref 100 lookup local
ip rule del pref 0
echo made
read -r _
ip addr add "$(cat "$own/address")/24" dev eth0
ip link set eth0 up
"$(command -v sshd)" -f "$folder/sshd_config" -E "$own/sshd.log"
echo ready
# As the parent of all orphans it reaps them here.
while read -r _; do :; done
