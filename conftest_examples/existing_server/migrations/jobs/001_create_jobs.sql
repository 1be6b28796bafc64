CREATE TYPE {{schema}}.job_state AS ENUM ('waiting', 'running', 'done');

CREATE TABLE {{tables.jobs}} (
    id INT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id INT NOT NULL REFERENCES {{tables.accounts.accounts}} (id),
    task TEXT NOT NULL,
    state {{schema}}.job_state NOT NULL DEFAULT 'waiting'
);

CREATE TABLE {{tables.history}} (
    job_id INT NOT NULL REFERENCES {{tables.jobs}} (id),
    state {{schema}}.job_state NOT NULL,
    since TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION {{schema}}.remember() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {{tables.history}} (job_id, state) VALUES (NEW.id, NEW.state);
    RETURN NULL;
END
$$;

CREATE TRIGGER remember
    AFTER INSERT OR UPDATE OF state ON {{tables.jobs}}
    FOR EACH ROW EXECUTE FUNCTION {{schema}}.remember();
