"""`python -m convoscope` is the command `convoscope`."""

from convoscope.cli import main

if __name__ == "__main__":
    main()
