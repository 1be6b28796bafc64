CREATE TABLE IF NOT EXISTS {{tables.items}} (
    id SERIAL PRIMARY KEY,
    order_id INT NOT NULL REFERENCES {{tables.orders}} (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    price NUMERIC(12, 2) NOT NULL CHECK (price >= 0)
);

-- An order's total is always the sum of its items.
CREATE OR REPLACE FUNCTION {{schema}}.add_up() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed INT := COALESCE(NEW.order_id, OLD.order_id);
BEGIN
    UPDATE {{tables.orders}}
    SET total = (SELECT COALESCE(sum(price), 0) FROM {{tables.items}} WHERE order_id = changed)
    WHERE id = changed;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER add_up
    AFTER INSERT OR UPDATE OR DELETE ON {{tables.items}}
    FOR EACH ROW EXECUTE FUNCTION {{schema}}.add_up();
