"""Sets of services: what belongs together, is built, given to a test and taken back."""
