-- Every installation has a user who owns what nobody else does.
INSERT INTO {{tables.users}} (email) VALUES ('librarian@example.org');
