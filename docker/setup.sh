#!/usr/bin/env bash
# Makes what compose.yaml asks for; a second run only fills in what is still empty.
#
#   ./setup.sh            passwords, images by digest, our images, the key of Orthanc's rule
#   ./setup.sh secrets    the passwords alone; needs no container engine
#
# VARIANT=cuda, TORCH=…: see install.sh; kept for the builds that follow.
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
  if [[ -z $2 ]]; then echo "nothing to write for $1" >&2; exit 1; fi
  sed "s|^$1=.*|$1=$2|" "$FILE" > "$FILE.new"
  mv "$FILE.new" "$FILE"
}

secrets() {
  [[ -e $FILE ]] || cp secrets.env.example "$FILE"
  chmod 600 "$FILE"
  local line
  while IFS= read -r line; do # what a newer version asks for
    if [[ $line == [A-Z]*= ]] && ! grep -q "^$line" "$FILE"; then echo "$line" >> "$FILE"; fi
  done < secrets.env.example
  local name
  for name in POSTGRES_PASSWORD CONTOURCAST_ORTHANC_PASSWORD; do
    if is_empty "$name"; then fill "$name" "$(random)"; fi
  done
}

pinned() { # IMAGE: its name with the digest of today
  docker pull --quiet "$1" > /dev/null
  docker image inspect --format '{{index .RepoDigests 0}}' "$1"
}

choices() {
  if [[ -n ${VARIANT:-} ]]; then fill VARIANT "$VARIANT"; fi
  if [[ -n ${TORCH:-} ]]; then fill TORCH "$TORCH"; fi
}

digest() { # IMAGE: that of today
  local found
  found=$(pinned "$1")
  echo "${found#*@}"
}

images() {
  if is_empty DEBIAN_DIGEST; then fill DEBIAN_DIGEST "$(digest debian:bookworm-slim)"; fi
  if is_empty NODE_DIGEST; then fill NODE_DIGEST "$(digest node:22-bookworm-slim)"; fi
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
choices
if [[ ${1:-} != secrets ]]; then
  images
  compose build
  first_key
  echo "now: docker compose --env-file $FILE up --detach --wait" >&2
fi
