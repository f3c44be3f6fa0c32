"""python -m deployments: the same as ``lm``, for a checkout that is not installed."""

from deployments.cli import main

if __name__ == "__main__":
    main()
