INSERT INTO {{tables.users}} (id, email) VALUES
    (1, 'ada@example.org'),
    (2, 'grace@example.org');
SELECT setval(pg_get_serial_sequence('{{tables.users}}', 'id'), 2);

INSERT INTO {{tables.profiles}} (user_id, handle) VALUES (1, 'Countess'), (2, 'Admiral');
