#!/bin/sh
# Sees to it that a browser is there for "make test-browser": Debian's chromium, or
# another of its family. Where it may, it installs Debian's package; else it says what to
# do.
set -eu
for name in chromium chromium-browser google-chrome; do
	command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >&2 && exit 0
fi
echo "make test-browser: there is no browser: install chromium (apt-get install chromium) and run this again" >&2
exit 1
