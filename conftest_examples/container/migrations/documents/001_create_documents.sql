CREATE EXTENSION IF NOT EXISTS "uuid-ossp";

CREATE TABLE {{tables.documents}} (
    id UUID PRIMARY KEY DEFAULT uuid_generate_v4(),
    owner_id INT NOT NULL REFERENCES {{tables.people.people}} (id) ON DELETE RESTRICT,
    title TEXT NOT NULL
);
