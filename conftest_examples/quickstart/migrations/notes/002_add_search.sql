CREATE EXTENSION IF NOT EXISTS pg_trgm;

CREATE INDEX notes_text ON {{tables.notes}} USING gin (text gin_trgm_ops);
