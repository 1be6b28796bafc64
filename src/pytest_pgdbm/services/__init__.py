"""What a service is: its declaration, its files, and where declarations come from."""
