"""Several trainings of one recipe side by side: a grid of them, and the table that compares them."""
