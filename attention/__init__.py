"""The engine, what it works on, and the methods that act inside the network."""
