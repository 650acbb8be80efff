"""`python -m tunnel` is `catalyst-tunnel`."""

from .cli import main

if __name__ == "__main__":
    main()
