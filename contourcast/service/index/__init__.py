"""The index: one database, SQLite or Postgres, that says what there is and what was promised."""
