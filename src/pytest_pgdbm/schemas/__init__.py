"""What the plugin makes on a server, and takes away again: sets of schemas, built by pgdbm itself."""
