"""Planning and running studies: schedule, Ray Tune, searches, disk budget."""
