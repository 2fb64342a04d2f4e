"""The engine and the methods that act inside the UNet."""
