# Boots the machine whose root is $DISK/root: systemd is PID 1 of a PID namespace, until our
# input is closed. Runs in the namespaces that prepare.sh made.
set -e
# Each boot has a control group of its own as its root: of groups that another left behind
# systemd takes those away that are empty, while it starts units in them.
group=$DISK/cgroup/machine-$$
mkdir "$group"
echo $$ >"$group/cgroup.procs"
unshare --mount --pid --cgroup --fork --kill-child sh -c '
	set -e
	cd "$DISK/root"
	mount -t proc proc proc
	mount -t sysfs sysfs sys
	mount -t cgroup2 cgroup2 sys/fs/cgroup
	mount -t tmpfs -o mode=755 run run
	mount -t tmpfs -o mode=1777 tmp tmp
	mount -t tmpfs -o mode=755 dev dev
	for node in null zero full random urandom tty; do
		: >"dev/$node"
		mount --bind "/dev/$node" "dev/$node"
	done
	ln -s /proc/self/fd dev/fd
	ln -s fd/0 dev/stdin
	ln -s fd/1 dev/stdout
	ln -s fd/2 dev/stderr
	mkdir dev/pts dev/shm
	mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
	ln -s pts/ptmx dev/ptmx
	mount -t tmpfs -o mode=1777 shm dev/shm
	pivot_root . old
	umount -l /old
	exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin container=chandler \
		/usr/lib/systemd/systemd --system --unit=multi-user.target --show-status=no
' </dev/null &
child=$!
until first=$(cat "/proc/$child/task/$child/children") && [ -n "$first" ]; do sleep 0.05; done
echo "booted $first"
cat >/dev/null || :
kill -9 $first 2>/dev/null || :
wait
echo $$ >"$DISK/cgroup/cgroup.procs"
find "$group" -depth -type d -exec rmdir {} +
