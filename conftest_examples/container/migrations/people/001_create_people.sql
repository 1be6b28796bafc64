CREATE EXTENSION IF NOT EXISTS pgcrypto;

CREATE TABLE {{tables.people}} (
    id SERIAL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    secret TEXT NOT NULL
);

-- Passwords are hashed by the database, whatever wrote them.
CREATE FUNCTION {{schema}}.hash_secret() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.secret := crypt(NEW.secret, gen_salt('bf', 4));
    RETURN NEW;
END
$$;

CREATE TRIGGER hash_secret
    BEFORE INSERT OR UPDATE OF secret ON {{tables.people}}
    FOR EACH ROW EXECUTE FUNCTION {{schema}}.hash_secret();
