"""`python -m idgbr`: the `idgbr` command where its folder is not on the PATH, as in a submitted job."""

from idgbr.cli import main

if __name__ == "__main__":
    main()
