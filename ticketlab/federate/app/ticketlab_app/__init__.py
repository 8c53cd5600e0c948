"""What Flower carries to the clients: two names, no code."""
