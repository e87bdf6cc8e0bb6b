"""Many machines: one training sharded by Ray Train; rendering and submitting cluster jobs; doctor."""
