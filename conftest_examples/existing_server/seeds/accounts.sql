INSERT INTO {{tables.accounts}} (name) VALUES ('Analytical Engines Ltd');
