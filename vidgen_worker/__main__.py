"""`python -m vidgen_worker`: the same as `vidgen-worker`."""

import sys

if __name__ == "__main__":
    try:
        from vidgen_worker.cli import main
    except KeyboardInterrupt:  # the imports alone take half a second
        sys.exit(130)
    main()
