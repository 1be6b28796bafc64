"""Connections to the server: the private loop, the administration, the pool of each loop, the manager of a test."""
