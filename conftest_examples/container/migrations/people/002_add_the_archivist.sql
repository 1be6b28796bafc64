INSERT INTO {{tables.people}} (name, secret) VALUES ('archivist', 'please change me');
