"""Numbers to tables, figures, one HTML page and published results."""
