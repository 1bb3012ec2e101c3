#!/usr/bin/env bash
# The steps that make the image, from a bare Debian 12 on; docker/Dockerfile calls each of them, and
# `make image-steps` all of them on a machine that is thrown away afterwards.
#
#   install.sh tools                 what building needs (root)
#   install.sh build                 /opt/contourcast from the checkout in the current folder, whose
#                                    review page is built (make page)
#   install.sh runtime               what running needs, and the user (root)
#   install.sh check                 as that user: the command answers, and no compiler is about
#
# VARIANT  cpu, or cuda
# TORCH    what brings PyTorch, in pip's words: a wheel file of the checkout, a requirement, options;
#          left out: PyTorch's own CPU build, or for cuda what the package index has
# PARTS    extras of the package
set -euo pipefail

VARIANT=${VARIANT:-cpu}
PARTS=${PARTS:-baselines,codecs,report,s3,tracing}
HOME_OF_ALL=/opt/contourcast
ACCOUNT=contourcast
NUMBER=10001  # fixed: volumes and pods name it

apt_install() {
  apt-get update -qq
  # what the base holds stays as its digest says
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-upgrade "$@"
  rm -rf /var/lib/apt/lists/*
}

torch() {
  local version
  version=$(sed -n 's/^torch==//p' constraints.txt)
  case $VARIANT in
    cpu) echo "--index-url https://download.pytorch.org/whl/cpu torch==$version+cpu" ;;
    cuda) echo "torch==$version" ;;
    *) echo "there is no variant '$VARIANT': cpu, cuda" >&2; exit 2 ;;
  esac
}

tools() {
  apt_install ca-certificates gcc libc6-dev python3 python3-venv
}

build() {
  if [[ ! -e contourcast/service/static/index.html ]]; then
    echo "the review page is not built: make page, on any machine with Node.js 20.19 or newer" >&2
    exit 2
  fi
  local -a wanted
  read -ra wanted <<< "${TORCH:-$(torch)}"
  # PyTorch's CUDA build brings a triton of its own choice
  if [[ $VARIANT = cuda ]]; then
    grep -v '^triton==' constraints.txt > /tmp/constraints.txt
  else
    cp constraints.txt /tmp/constraints.txt
  fi
  python3 -m venv /tmp/builder
  /tmp/builder/bin/pip wheel --quiet --no-deps --wheel-dir /tmp/wheel .
  python3 -m venv "$HOME_OF_ALL"
  # torch first and by itself: its pin is then met, and nothing else comes from where it came from
  "$HOME_OF_ALL/bin/pip" install --quiet --no-cache-dir --no-deps "${wanted[@]}"
  "$HOME_OF_ALL/bin/pip" install --quiet --no-cache-dir -c /tmp/constraints.txt \
    "$(echo /tmp/wheel/contourcast-*.whl)[$PARTS]"
  "$HOME_OF_ALL/bin/pip" check
  # nothing is installed later, so nothing that installs stays
  "$HOME_OF_ALL/bin/pip" uninstall --quiet --yes pip
}

runtime() {
  apt_install ca-certificates python3
  groupadd --gid "$NUMBER" "$ACCOUNT"
  useradd --uid "$NUMBER" --gid "$NUMBER" --no-create-home --home-dir /data \
    --shell /usr/sbin/nologin "$ACCOUNT"
  install -d -o "$NUMBER" -g "$NUMBER" -m 0750 /data
}

check() {
  local found
  for found in cc gcc pip; do
    if command -v "$found"; then echo "the image holds $found" >&2; exit 1; fi
  done
  test "$(id -u)" = "$NUMBER"
  "$HOME_OF_ALL/bin/contourcast" doctor
}

case ${1:-} in
  tools | build | runtime | check) "$1" ;;
  *) sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
