CREATE TABLE IF NOT EXISTS {{tables.orders}} (
    id SERIAL PRIMARY KEY,
    user_id INT NOT NULL REFERENCES {{tables.users.users}} (id),
    quantity INT NOT NULL CHECK (quantity > 0),
    placed_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);

-- At most ten of everything for one user.
CREATE OR REPLACE FUNCTION {{schema}}.check_limit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT sum(quantity) FROM {{tables.orders}} WHERE user_id = NEW.user_id) > 10 THEN
        RAISE EXCEPTION 'more than ten for one user' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER check_limit
    AFTER INSERT OR UPDATE ON {{tables.orders}}
    FOR EACH ROW EXECUTE FUNCTION {{schema}}.check_limit();
