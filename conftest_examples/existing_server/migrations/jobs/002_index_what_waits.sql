-- pgdbm:no-transaction
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_waiting ON {{tables.jobs}} (id) WHERE state = 'waiting';
