"""The general refiner: one class against the rest, three bands, any ground size; it needs no labels of the user."""
