#!/bin/bash
# Boots systemd as the first process of namespaces of its own, on a copy-on-write view of this machine, with Postern
# installed as a package would install it, and has it carry out a script. What the script prints ends up in REPORT.
#
#     unshare --kill-child --mount --propagation private --net --pid --uts --ipc --fork systemd.sh PROGRAMS UNITS REPORT
set -euo pipefail
programs=$1 units=$2 report=$3

base=/run/postern-boot
mkdir -p "$base"
mount -t tmpfs tmpfs "$base"
mkdir "$base"/{upper,work,root}
root=$base/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount --rbind /dev "$root/dev"
if [[ $(stat -f -c %T /sys/fs/cgroup) == cgroup2fs ]]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
    mkdir "$root"/sys/fs/cgroup/{systemd,unified}
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
fi

install -m 755 "$programs"/{posternd,postern} "$root/usr/local/sbin/"
# Nothing of this machine's own is started.
rm -rf "$root"/etc/systemd/system
install -d "$root/etc/systemd/system/posternd.service.d"
install -m 644 "$units"/*.service "$root/etc/systemd/system/"
printf '[Service]\nWatchdogSec=2s\nTimeoutAbortSec=2s\n' >"$root/etc/systemd/system/posternd.service.d/impatient.conf"
ln -s /dev/null "$root/etc/systemd/system/systemd-udevd.service"
grep -q '^postern:' "$root/etc/passwd" || chroot "$root" useradd --system --shell /usr/sbin/nologin postern
rm -rf "$root/etc/postern" "$root/var/lib/postern" "$root/var/log/journal"
chroot "$root" /usr/local/sbin/posternd init --address 192.0.2.1 >/dev/null

cat >"$root/etc/systemd/system/boot.target" <<'EOF'
[Unit]
Requires=basic.target network.target
Wants=posternd.service script.service
AllowIsolate=yes
EOF
cat >"$root/etc/systemd/system/script.service" <<'EOF'
[Unit]
After=posternd.service network.target
[Service]
Type=oneshot
ExecStart=/bin/bash /script
StandardOutput=file:/report
StandardError=inherit
ExecStopPost=/bin/sh -c 'cat /report >/report-outside; poweroff -ff'
EOF
cat >"$root/script"
touch "$root/report-outside"
mount --bind "$report" "$root/report-outside"
cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
export container=other
exec /lib/systemd/systemd --system --unit=boot.target --log-target=null --show-status=no
