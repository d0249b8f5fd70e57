"""``python -m voc_rl.cli``."""

from voc_rl.cli import main

if __name__ == "__main__":
    main()
