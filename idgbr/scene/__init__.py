"""A scene of any size, refined in strips of tiles."""
