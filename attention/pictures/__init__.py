"""Pictures for people: heat maps and grids."""
