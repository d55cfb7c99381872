"""`python -m afterimage`: the same as `afterimage`."""

from afterimage.commands import main

if __name__ == "__main__":
    main()
