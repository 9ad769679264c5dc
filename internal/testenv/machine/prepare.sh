# Makes a machine's disk at $DISK and its root at $DISK/root, which later boots share: of
# this system only its packages (/usr, /etc and dpkg's list), to be written to without
# this system being changed. Runs in mount and network namespaces of its own.
set -e
mount --make-rprivate /
case $(stat -f -c %T "$DISK") in overlayfs) mount -t tmpfs -o mode=755 disk "$DISK" ;; esac # nothing can be laid over one
mkdir -p "$DISK/cgroup"
mount -t cgroup2 cgroup2 "$DISK/cgroup"
root=$DISK/root
mkdir -p "$root"
mount -t tmpfs -o mode=755 root "$root"
lay() { # NAME, FOLDER: this system's folder, with what the machine changes in it
	mkdir -p "$DISK/$1/upper" "$DISK/$1/work" "$root$2"
	mount -t overlay "$1" -o "lowerdir=$2,upperdir=$DISK/$1/upper,workdir=$DISK/$1/work" "$root$2"
}
mkdir -p "$DISK/var/lib" "$DISK/var/tmp" "$DISK/var/log/journal" "$DISK/root-home" "$DISK/home" "$DISK/opt" "$DISK/local/bin" "$DISK/local/sbin"
chmod 1777 "$DISK/var/tmp"
chmod 700 "$DISK/root-home"
cd "$root"
mkdir -p var root home opt mnt tmp run proc sys dev old
chmod 1777 tmp
mount --bind "$DISK/var" var
mount --bind "$DISK/root-home" root
mount --bind "$DISK/home" home
mount --bind "$DISK/opt" opt
if [ -n "$MEDIUM" ]; then
	mount --bind "$MEDIUM" mnt
	mount -o remount,bind,ro mnt
fi
lay usr /usr
lay etc /etc
lay dpkg /var/lib/dpkg
mount --bind "$DISK/local" usr/local
for hidden in usr/src usr/lib/go* usr/share/go*; do
	[ ! -d "$hidden" ] || mount -t tmpfs -o mode=755,ro hidden "$hidden"
done
for name in bin sbin lib lib64; do
	[ ! -e "/$name" ] || ln -s "usr/$name" "$name"
done
# What is enabled here is not enabled there, and nothing waits for hardware or people.
rm -rf etc/systemd/system/*.wants etc/resolv.conf etc/machine-id
for unit in systemd-udevd.service systemd-networkd.service systemd-resolved.service systemd-timesyncd.service systemd-logind.service \
	getty.target getty@tty1.service console-getty.service apt-daily.timer apt-daily-upgrade.timer systemd-udev-trigger.service; do
	ln -sf /dev/null "etc/systemd/system/$unit"
done
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
printf '127.0.0.1 localhost %s\n::1 localhost\n' "$NAME" >etc/hosts
echo "$NAME" >etc/hostname
hostname "$NAME"
ip link set lo up
echo prepared
exec cat # until the test closes our input, or is gone
