"""`python -m gateway` is `catalyst-gateway`."""

from .cli import main

if __name__ == "__main__":
    main()
