"""A set of schemas given back: looked at, emptied of what a test wrote, and as it was when it was first leased."""
