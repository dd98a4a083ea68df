"""`python -m vlp` and `accelerate launch -m vlp`: the command line."""

from vlp.cli.main import main

if __name__ == "__main__":
    main()
