#!/usr/bin/env bash
# Makes what compose.yaml asks for, once; a second run only fills in what is still empty.
#
#   ./setup.sh            passwords, images by digest, our images, the key of Orthanc's rule
#   ./setup.sh secrets    the passwords alone; needs no container engine
#
# VARIANT=cuda, TORCH=…: see install.sh.
set -euo pipefail
cd "$(dirname "$0")"
FILE=secrets.env
umask 077

random() {
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

is_empty() {
  grep -qx "$1=" "$FILE"
}

fill() { # NAME VALUE
  sed "s|^$1=\$|$1=$2|" "$FILE" > "$FILE.new"
  mv "$FILE.new" "$FILE"
}

secrets() {
  [[ -e $FILE ]] || cp secrets.env.example "$FILE"
  chmod 600 "$FILE"
  local name
  for name in POSTGRES_PASSWORD CONTOURCAST_ORTHANC_PASSWORD; do
    if is_empty "$name"; then fill "$name" "$(random)"; fi
  done
}

pinned() { # IMAGE: its name with the digest of today
  docker pull --quiet "$1" > /dev/null
  docker image inspect --format '{{index .RepoDigests 0}}' "$1"
}

images() {
  local debian
  if is_empty DEBIAN_DIGEST; then
    debian=$(pinned debian:bookworm-slim)
    fill DEBIAN_DIGEST "${debian#*@}"
  fi
  if is_empty POSTGRES_IMAGE; then fill POSTGRES_IMAGE "$(pinned postgres:15-bookworm)"; fi
  if is_empty NGINX_IMAGE; then fill NGINX_IMAGE "$(pinned nginx:stable-bookworm)"; fi
}

compose() {
  docker compose --env-file "$FILE" "$@"
}

first_key() {
  is_empty CONTOURCAST_EVENTS_KEY || return 0
  compose up --detach --wait postgres
  fill CONTOURCAST_EVENTS_KEY "$(compose run --rm -T api keys make orthanc --role machine --days 0)"
}

secrets
if [[ ${1:-} != secrets ]]; then
  images
  compose build
  first_key
  echo "now: docker compose --env-file $FILE up --detach --wait" >&2
fi
