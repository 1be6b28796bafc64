"""Reading SQL text: tokens, statements, templates, and what a migration names. No server."""
