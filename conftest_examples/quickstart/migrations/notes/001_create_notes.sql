CREATE TABLE {{tables.notes}} (
    id SERIAL PRIMARY KEY,
    author_id INT NOT NULL REFERENCES {{tables.users.users}} (id) ON DELETE CASCADE,
    text TEXT NOT NULL CHECK (text <> ''),
    written_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    corrected_at TIMESTAMPTZ
);

CREATE FUNCTION {{schema}}.note_was_corrected() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.corrected_at := clock_timestamp();
    RETURN NEW;
END
$$;

CREATE TRIGGER note_was_corrected
    BEFORE UPDATE OF text ON {{tables.notes}}
    FOR EACH ROW WHEN (OLD.text IS DISTINCT FROM NEW.text)
    EXECUTE FUNCTION {{schema}}.note_was_corrected();
