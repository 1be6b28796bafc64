CREATE TABLE IF NOT EXISTS {{tables.orders}} (
    id SERIAL PRIMARY KEY,
    user_id INT NOT NULL REFERENCES {{tables.users.users}} (id),
    total NUMERIC(12, 2) NOT NULL DEFAULT 0,
    placed_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
