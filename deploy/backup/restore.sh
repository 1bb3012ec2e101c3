#!/usr/bin/env bash
# Brings a backup back into an empty database and a store. Nothing of the service may run.
#
#   restore.sh DUMP
#
# RESTORE_DATABASE  postgresql://…, of the owner of an empty database
# RESTORE_STORE     folder of the store; what is there stays
# BACKUP_TO         folder of the backups
set -euo pipefail
umask 077
: "${RESTORE_DATABASE:?}" "${RESTORE_STORE:?}" "${BACKUP_TO:?}"
dump=${1:?which dump, of those in $BACKUP_TO/database}

mkdir -p "$RESTORE_STORE"
cp --recursive --no-clobber --preserve=timestamps "$BACKUP_TO/store/." "$RESTORE_STORE/"
sync --file-system "$RESTORE_STORE"
pg_restore --dbname="$RESTORE_DATABASE" --no-owner --no-privileges --exit-on-error \
  --single-transaction "$dump"
echo "restored $(basename "$dump")"
