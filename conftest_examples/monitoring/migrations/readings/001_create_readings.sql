CREATE TABLE {{tables.readings}} (
    sensor_id INT NOT NULL REFERENCES {{tables.sensors.sensors}} (id),
    value DOUBLE PRECISION NOT NULL,
    read_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE {{tables.totals}} (
    sensor_id INT PRIMARY KEY REFERENCES {{tables.sensors.sensors}} (id),
    count INT NOT NULL,
    highest DOUBLE PRECISION NOT NULL
);

CREATE FUNCTION {{schema}}.count_reading() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {{tables.totals}} AS t VALUES (NEW.sensor_id, 1, NEW.value)
    ON CONFLICT (sensor_id) DO UPDATE
        SET count = t.count + 1, highest = GREATEST(t.highest, EXCLUDED.highest);
    RETURN NULL;
END
$$;

CREATE TRIGGER count_reading
    AFTER INSERT ON {{tables.readings}}
    FOR EACH ROW EXECUTE FUNCTION {{schema}}.count_reading();
