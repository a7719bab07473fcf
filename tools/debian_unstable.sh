#!/usr/bin/env bash
# Run the whole suite on Pythons that this machine lacks, from Debian unstable. Everything is installed in a folder of its
# own, which is kept for the next time. Needs root, on Debian or Ubuntu.
#
#   tools/debian_unstable.sh                # Python 3.14 and 3.15
#   tools/debian_unstable.sh 3.15 valkey    # one of them, with one of the servers
#   REDISMPX_UNSTABLE=/big/disk/folder tools/debian_unstable.sh
set -euo pipefail
cd "$(dirname "$0")/.."
root=${REDISMPX_UNSTABLE:-/var/tmp/redismpx-debian-unstable}
pythons=() servers=()
for word; do
    if [[ $word == 3.* ]]; then pythons+=("$word"); else servers+=("$word"); fi
done
((${#pythons[@]})) || pythons=(3.14 3.15)

if [ ! -e "$root/complete" ]; then
    command -v debootstrap >/dev/null || { apt-get update -qq; apt-get install -y -qq --no-install-recommends debootstrap; }
    rm -rf "$root"
    debootstrap --variant=minbase --include=ca-certificates unstable "$root"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # no package starts its service
    chmod +x "$root/usr/sbin/policy-rc.d"
    touch "$root/complete"
fi

# The tree as it is, without what git ignores.
rm -rf "$root/tree"
mkdir "$root/tree"
git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C "$root/tree"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"

cat >"$root/suites" <<'INSIDE'
#!/bin/bash
set -euo pipefail
scratch=$(mktemp -d)
export HOME=$scratch DEBIAN_FRONTEND=noninteractive REDISMPX_NO_SKIP=1
packages=(redis-server chromium nodejs npm gcc libc6-dev) # gcc: for packages without a wheel for such a new Python
for python; do packages+=("python$python-venv" "python$python-dev"); done
apt-get -o Acquire::Check-Valid-Until=false update -qq # a mirror may be behind
apt-get install -y -qq --no-install-recommends "${packages[@]}" >"$scratch/apt.log" 2>&1 || { cat "$scratch/apt.log"; exit 1; }
cd /tree
failed=()
for python; do
    "python$python" -m venv "$scratch/nox-$python"
    "$scratch/nox-$python/bin/pip" install -q "nox[uv]"
    "$scratch/nox-$python/bin/python" -m nox -s "suite($python)" -- $SERVERS || failed+=("$python")
done
((!${#failed[@]})) || { echo "failed: ${failed[*]}"; exit 1; }
INSIDE
chmod +x "$root/suites"

# The mounts are seen by these processes only, and end with them.
SERVERS="${servers[*]}" unshare --mount bash -euo pipefail -c '
    mount -t proc proc "$0/proc"
    mount --rbind /dev "$0/dev"
    mount --bind /etc/ssl/certs "$0/etc/ssl/certs"
    exec chroot "$0" /suites "$@"
' "$root" "${pythons[@]}" </dev/null
