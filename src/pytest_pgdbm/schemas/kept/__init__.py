"""Sets that wait for the next run, in a worker's database on a kept server, and what shows that they are the same."""
