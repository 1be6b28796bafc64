CREATE TYPE {{schema}}.payment_state AS ENUM ('open', 'paid', 'refunded');

CREATE TABLE {{tables.payments}} (
    id SERIAL PRIMARY KEY,
    order_id INT NOT NULL REFERENCES {{tables.orders.orders}} (id),
    amount NUMERIC(12, 2) NOT NULL CHECK (amount > 0),
    state {{schema}}.payment_state NOT NULL DEFAULT 'open'
);

CREATE UNIQUE INDEX one_open_payment ON {{tables.payments}} (order_id) WHERE state = 'open';
