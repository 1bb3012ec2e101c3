#!/usr/bin/env bash
# The stages of docker/Dockerfile without a container engine, on a bare Debian 12 that is thrown away
# afterwards (root): the first stage is this machine, the last one a copy of it from before.
#
# The review page has to be built already, on any machine (make page).
#
# The last stage then runs as its user on a root that cannot be written, with the image's own check.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ ! -e contourcast/service/static/index.html ]]; then
  echo "the review page is not built: make page, on any machine with Node.js 20.19 or newer" >&2
  exit 2
fi
last=$(mktemp -d /var/tmp/last.XXXX)
mounted=()

bind() { # OPTIONS… PLACE
  mount "${@:1:$#-1}" "$last${*: -1}"
  mounted=("$last${*: -1}" "${mounted[@]}")
}

tidy() {
  local place
  for place in "${mounted[@]}"; do umount -l "$place"; done
  rm -rf --one-file-system "$last"
}
trap tidy EXIT

# words, and no function: what runs in the background is then the process itself
as_user=(chroot --userspec=10001:10001 "$last" env -i PATH=/opt/contourcast/bin:/usr/bin:/bin
  HOME=/tmp PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib CONTOURCAST_DATA_FOLDER=/data)

tar -C / --one-file-system --exclude=./root --exclude=./proc --exclude=./sys --exclude=./dev \
  --exclude=./tmp --exclude=./var/tmp -cf - . | tar -C "$last" -xf -
mkdir -p "$last"/{proc,sys,dev,tmp,root}
chmod 1777 "$last/tmp"

docker/install.sh tools
docker/install.sh build

bind --bind "$last" /
bind --rbind /dev /dev
mount --make-rslave "$last/dev"  # what is unmounted here stays mounted there
bind -t proc proc /proc
cp -a /opt/contourcast "$last/opt/"
cp docker/install.sh "$last/install.sh"
chroot "$last" /install.sh runtime
du -sh "$last/opt/contourcast" | sed 's/^/installed: /'

mount -o remount,bind,ro "$last"
bind -t tmpfs -o mode=1777 tmpfs /tmp
bind -t tmpfs -o uid=10001,gid=10001,mode=0750 tmpfs /data
"${as_user[@]}" /install.sh check
if chroot "$last" touch /written 2> /dev/null; then echo "its root can be written" >&2; exit 1; fi

"${as_user[@]}" contourcast serve --all &
serving=$!
check=$(sed -n '/AS contourcast$/,$p' docker/Dockerfile | sed -n 's/.*"-c", "\(.*\)"\]$/\1/p')
deadline=$((SECONDS + 120))
until "${as_user[@]}" python -c "$check" 2> /dev/null; do
  ((SECONDS < deadline)) || { echo "it does not answer" >&2; exit 1; }
  sleep 1
done
kill -TERM "$serving"
wait "$serving" || test $? = 143
echo "the last stage answers, as user 10001, on a root that cannot be written"
