#!/bin/sh
# Sees to it that machines can be made for tests (Linux only): as root, with systemd, the
# programs that make namespaces, and what the pages' commands use; and to the programs that
# it is told, whose packages have their names. Where it may, it installs Debian's packages;
# else it says what to do.
set -eu
fail() { echo "machines for tests: $1" >&2; exit 1; }
[ "$(uname -s)" = Linux ] || fail "they are Linux's namespaces; run this on Linux"
[ "$(id -u)" = 0 ] || fail "they want root, for mounts and cgroups; run this as root, or in a container or virtual machine where you are"
missing=
[ -x /usr/lib/systemd/systemd ] || missing="$missing systemd"
command -v unshare >/dev/null && command -v nsenter >/dev/null || missing="$missing util-linux"
command -v ip >/dev/null || missing="$missing iproute2"
command -v openssl >/dev/null || missing="$missing openssl"
command -v curl >/dev/null || missing="$missing curl"
command -v dbus-daemon >/dev/null || missing="$missing dbus"
command -v git >/dev/null || missing="$missing git"
command -v pidof >/dev/null || missing="$missing sysvinit-utils"
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
for program; do
	command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || fail "missing:$missing; install them and run this again"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # words
apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >&2
