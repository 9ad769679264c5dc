#!/bin/sh
# Installs chandler.deb and chandler-agent.deb of the folder $1 on a copy of this machine,
# looks at what is there, and takes them out again. Wants root and a mount namespace.
set -eu
debs=$1
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
mkdir -p /mnt/root/run /mnt/root/debs
mount -t tmpfs tmpfs /mnt/root/run # no systemd
cp "$debs"/*.deb /mnt/root/debs/
export DEBIAN_FRONTEND=noninteractive
on() { chroot /mnt/root "$@"; }
fail() { echo "$*"; exit 1; }

on dpkg -i /debs/chandler.deb /debs/chandler-agent.deb
on chandler version | grep "^chandler $VERSION (" || fail "another version"
on kubectl-chandler version >/dev/null || fail "no plugin of kubectl"
on chandler-agent --version | grep "^chandler-agent $VERSION ("
for user in chandler chandler-agent; do on id "$user" || fail "no user $user"; done
on getent group chandler-envoy || fail "no group"
[ "$(on stat -c '%a %U' /etc/chandler/serve.env /etc/chandler/agent.env)" = "640 root
640 root" ] || fail "the files of the administrator"
for unit in chandler chandler-agent chandler-agent-beside; do
	file=/usr/lib/systemd/system/$unit.service
	on grep -q '^ExecStart=/usr/bin/chandler' "$file" || fail "$unit starts another program"
	! on grep -q /usr/local/bin/chandler "$file" || fail "$unit names /usr/local"
	[ ! -e "/mnt/root/etc/systemd/system/multi-user.target.wants/$unit.service" ] || fail "$unit is enabled"
done
if on sh -c 'command -v systemd-analyze' >/dev/null; then
	touch /mnt/root/usr/local/bin/envoy && chmod 755 /mnt/root/usr/local/bin/envoy
	on systemd-analyze verify --man=no /usr/lib/systemd/system/chandler.service /usr/lib/systemd/system/chandler-agent.service
fi

# What the administrator wrote stays when a package comes again, and when it goes.
echo CHANDLER_AGENT_CONTROL=10.0.0.1:9910 >/mnt/root/etc/chandler/agent.env
on dpkg -i /debs/chandler-agent.deb
on grep -q 10.0.0.1:9910 /etc/chandler/agent.env || fail "the new package wrote over agent.env"
on dpkg -r chandler chandler-agent
[ ! -e /mnt/root/usr/bin/chandler ] && [ ! -e /mnt/root/usr/bin/chandler-agent ] || fail "programs stay"
on grep -q 10.0.0.1:9910 /etc/chandler/agent.env || fail "agent.env is gone"
echo "installed, upgraded, removed"
