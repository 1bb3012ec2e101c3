#!/usr/bin/env bash
# One backup: the database as it is now, then every file of the store that the last one lacked.
#
# In this order, because a file is in the store before a row of the database speaks of it: whatever
# the dump points to is copied after it. Files never change, so what is there is not copied again.
#
# BACKUP_DATABASE  postgresql://…, of a user who may read everything
# BACKUP_STORE     folder of the store
# BACKUP_TO        folder of the backups, on another disk
# BACKUP_DAYS      how long dumps are kept; copies of the store's files are never deleted here
set -euo pipefail
umask 077
: "${BACKUP_DATABASE:?}" "${BACKUP_STORE:?}" "${BACKUP_TO:?}" "${BACKUP_DAYS:=30}"

# a store that is not mounted looks like an empty one
test -e "$BACKUP_STORE/.contourcast-store" || { echo "no store in BACKUP_STORE" >&2; exit 1; }
mkdir -p "$BACKUP_TO/database" "$BACKUP_TO/store"

dump=$BACKUP_TO/database/$(date -u +%Y-%m-%dT%H-%M-%SZ).dump
pg_dump --dbname="$BACKUP_DATABASE" --format=custom --file="$dump.part"
pg_restore --list "$dump.part" > /dev/null
sync "$dump.part"
mv "$dump.part" "$dump"

copied=0
while IFS= read -r -d '' file; do
  target=$BACKUP_TO/store/$file
  if [[ ! -e $target ]]; then
    mkdir -p "$(dirname "$target")"
    # deleted by retention between the list and the copy: then nobody needs it
    cp --preserve=timestamps "$BACKUP_STORE/$file" "$target.part" 2> /dev/null || continue
    sync "$target.part"
    mv "$target.part" "$target"
    copied=$((copied + 1))
  fi
done < <(cd "$BACKUP_STORE" && find . -type f -not -path './.drafts/*' -print0)

find "$BACKUP_TO/database" -name '*.dump' -mtime "+$BACKUP_DAYS" -delete
find "$BACKUP_TO" -name '*.part' -mmin +1440 -delete
echo "dumped $(basename "$dump"), copied $copied files"
