INSERT INTO {{tables.users}} (email) VALUES ('guest@example.org');
