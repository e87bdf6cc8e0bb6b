"""Cluster specifications, the files rendered from them, and how jobs are submitted."""
