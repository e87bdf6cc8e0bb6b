"""What each verb of the `idgbr` command does."""
